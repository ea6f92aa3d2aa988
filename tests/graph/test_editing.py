"""Changed copies of graphs, batch norms that are folded, and values that are replaced during a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc


def declared():
    """Return a network with a shortcut, whose layers have automatic names."""
    x = fc.Input("x", (8, 8, 2))
    y = fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh, fc.Dropout(0.5))(x)
    y = fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh)(y) + y
    return fc.Graph(x, fc.serial(fc.global_pool, fc.Dense(3))(y))


@pytest.fixture
def network(rng):
    graph = declared()
    return graph, graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 8, 8, 2)))


def with_missing(graph, params):
    """Return the parameters of a changed graph: those that it had, and new ones for new layers."""
    kept = {name: entry for name, entry in params.items() if name in graph.entries}
    return graph.init(jax.random.key(1), **kept)


def test_a_node_is_replaced_and_the_others_keep_their_names(network):
    graph, params, x = network
    changed = graph.replace("tanh2", jax.nn.relu)
    assert changed.nodes == graph.nodes
    assert changed.entries == graph.entries
    values = graph.values(params, x)
    expected = jax.nn.relu(values["conv2"]) + values["dropout1"]
    close(changed.values(params, x)["add1"], expected)
    wider = graph.replace("dense1", fc.Dense(7))
    assert wider.shapes()["dense1"].shape == (7,)
    own = wider.init(jax.random.key(1), **{name: params[name] for name in ("conv1", "conv2")})
    close(wider.values(own, x)["add1"], values["add1"])
    named = graph.replace("dense1", fc.Dense(7, name="head"))
    assert named.entries == ("conv1", "conv2", "head")
    assert declared() == graph  # which did not change


def test_a_node_is_removed(network):
    graph, params, x = network
    without = graph.remove("dropout1")
    assert without.nodes == tuple(name for name in graph.nodes if name != "dropout1")
    close(without(params, x), graph(params, x))
    # The last node, and a choice of inputs.
    assert graph.remove("dense1").outputs == ("global_pool1",)
    assert graph.remove("add1", keep="tanh2").rows[-2].inputs == (5,)
    with pytest.raises(fc.FuncconvError, match=r"remove: node 'add1' has the inputs \['tanh2', 'dropout1'\]"):
        graph.remove("add1")
    with pytest.raises(fc.FuncconvError, match="node 'add1'"):
        graph.remove("conv1").replace("conv2", fc.Conv(3, 1))


def test_a_layer_is_inserted(network):
    graph, params, x = network
    changed = graph.insert_after("dropout1", fc.GroupNorm(2))
    assert changed.nodes == (*graph.nodes[:4], "group_norm1", *graph.nodes[4:])
    own = with_missing(changed, params)
    values, before = changed.values(own, x), graph.values(params, x)
    expected = fc.group_norm(own["group_norm1"], before["dropout1"], 2)
    close(values["group_norm1"], expected)
    close(values["add1"], jnp.tanh(fc.conv(params["conv2"], expected, padding=1)) + expected)
    first = graph.insert_after("x", fc.Conv(2, 1))
    assert first.nodes[:3] == ("x", "conv3", "conv1")
    assert first.rows[1].inputs == (1,)
    last = graph.insert_after("dense1", jax.nn.softmax)
    assert last.outputs == ("softmax1",)
    assert jax.jit(last)(params, x).shape == (2, 3)


def test_changes_of_changes_are_values(network):
    graph, _, _ = network
    there = graph.insert_after("conv1", jax.nn.relu)
    assert there.remove("relu1") == graph
    assert hash(there.remove("relu1")) == hash(graph)
    assert fc.Graph.from_json(there.to_json()) == there
    assert "relu1" in str(fc.summary(there))


def test_changes_that_make_no_network_are_refused(network):
    graph, _, _ = network
    for change, match in (
        (lambda: graph.replace("conv9", fc.Conv(1, 1)), "replace: the graph has no node 'conv9'; did you mean"),
        (lambda: graph.replace("x", jnp.tanh), "replace: 'x' is an input"),
        (lambda: graph.insert_after("conv9", jnp.tanh), "insert_after: the graph has no node 'conv9'"),
        (lambda: graph.replace("conv2", fc.Conv(5, 3, padding=1)), "node 'add1'"),
        (lambda: graph.replace("conv2", fc.serial(fc.Conv(4, 1), jnp.tanh)), "expected one layer or a function"),
        (lambda: graph.replace("add1", fc.Dense(4)), "takes 1 input, but the node has 2"),
        (lambda: graph.insert_after("conv1", fc.Conv(4, 1, name="conv2")), "all nodes must have different names"),
        (lambda: graph.replace("conv2", 3), "replace: expected a layer, a graph or a function of arrays; got 3"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            change()


def test_a_shared_entry_is_neither_split_nor_changed_in_silence():
    x, conv = fc.Input("x", (6, 6, 2)), fc.Conv(2, 3, padding=1)
    graph = fc.Graph(x, conv(conv(x)))
    with pytest.raises(fc.FuncconvError, match=r"the nodes \['conv1'\] have the entry 'conv1'"):
        graph.replace("conv1@2", fc.Conv(2, 3, padding=1))
    own = graph.replace("conv1@2", fc.Conv(2, 3, padding=1, params="second"))
    assert own.entries == ("conv1", "second")
    shared = own.replace("conv1@2", fc.Conv(2, 3, padding=1, params="conv1"))
    assert shared.entries == ("conv1",)
    params = graph.init(jax.random.key(0))
    close(shared(params, jnp.ones((1, 6, 6, 2))), graph(params, jnp.ones((1, 6, 6, 2))))


def test_nodes_of_nested_graphs_can_be_changed(rng):
    x = fc.Input("x", (6, 6, 1))
    trunk = fc.Graph(x, fc.serial(fc.Conv(2, 3), jnp.tanh)(x), name="trunk")
    graph = fc.Graph(x, fc.serial(trunk, fc.global_pool)(x))
    changed = graph.replace("trunk/tanh1", jax.nn.relu)
    params, image = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 6, 6, 1)))
    assert changed.nodes == graph.nodes
    close(changed(params, image), fc.global_pool(jax.nn.relu(fc.conv(params["trunk"]["conv1"], image))))
    assert changed.subgraph("trunk/tanh1").nodes[-1] == "trunk/tanh1"


LAYERS = {
    "conv": (fc.Conv(4, 3, groups=2), (6, 5, 2)),
    "conv-no-bias": (fc.Conv(4, 3, bias=False), (6, 2)),
    "conv_transpose": (fc.ConvTranspose(6, 2, stride=2, groups=2), (3, 4, 4)),
    "conv_transpose-no-bias": (fc.ConvTranspose(3, 2, bias=False), (5, 4)),
    "local_conv": (fc.LocalConv(4, 2), (4, 3, 2)),
    "local_conv-no-bias": (fc.LocalConv(4, 2, bias=False), (4, 2)),
    "dense": (fc.Dense(3), (5, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{}, {"scale": False, "bias": False}], ids=["affine", "plain"])
def test_batch_norms_are_folded_into_the_layers_before_them(name, options, rng):
    layer, shape = LAYERS[name]
    x = fc.Input("x", shape)
    graph = fc.Graph(x, fc.serial(layer, fc.BatchNorm(**options), jnp.tanh)(x))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    params, state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), (params, state))
    images = jnp.asarray(rng.normal(size=(3, *shape)))
    folded, own, own_state = graph.fold_norms(params, state)
    assert own_state == {}
    assert len(folded.nodes) == len(graph.nodes) - 1
    close(folded(own, images), graph.apply(params, state, images)[0])
    assert fc.Graph.from_json(folded.to_json()) == folded


def test_only_norms_that_can_be_folded_are():
    x = fc.Input("x", (6, 6, 2))
    conv, norm = fc.Conv(2, 3, padding=1), fc.BatchNorm()
    y = conv(x)
    both = fc.BatchNorm()(y) + y  # another node reads the convolution
    twice = norm(norm(fc.Conv(2, 1)(both)))  # a norm with two uses
    pooled = fc.BatchNorm()(fc.Pool(2)(twice))  # after a pool
    last = fc.BatchNorm()(fc.Conv(3, 1)(pooled))
    graph = fc.Graph(x, (last, fc.BatchNorm()(x)))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    folded, own, own_state = graph.fold_norms(params, state)
    assert len(graph.nodes) - len(folded.nodes) == 1
    images = jnp.ones((1, 6, 6, 2))
    jax.tree.map(close, folded.apply(own, own_state, images)[0], graph.apply(params, state, images)[0])


def test_values_are_edited_during_a_call(network):
    graph, params, x = network
    values = graph.values(params, x)

    def rest(value):
        y = jnp.tanh(fc.conv(params["conv2"], value, padding=1)) + value
        return fc.dense(params["dense1"], fc.global_pool(y))

    changed = 2 * values["tanh1"]
    close(graph(params, x, edits={"tanh1": lambda value: 2 * value}), rest(changed))
    close(jax.jit(lambda array: graph(params, x, edits={"tanh1": array}))(changed), rest(changed))
    close(graph.apply(params, {}, x, edits={"x": jnp.zeros_like})[0], graph(params, jnp.zeros_like(x)))
    assert not graph.values(params, x, edits={"conv2": jnp.zeros_like})["tanh2"].any()
    scale = jax.grad(lambda scale: graph(params, x, edits={"tanh1": lambda value: scale * value}).sum())
    close(scale(2.0), jax.grad(lambda scale: rest(scale * values["tanh1"]).sum())(2.0))
    patched = graph(params, x, edits={"conv2": graph.values(params, x[::-1])["conv2"], "add1": lambda value: value})
    assert np.isfinite(patched).all()
    for edits, match in (
        ({"tanh9": 0.0}, "edits: the graph has no node 'tanh9'; did you mean"),
        ({"tanh1": 0.0}, r"node 'tanh1' must be like its value, float64\[2, 8, 8, 4\]; got float64\[\]"),
        ({"tanh1": values["tanh1"][0]}, r"got float64\[8, 8, 4\]"),
        ({"tanh1": lambda value: value.astype(jnp.float32)}, r"got float32\[2, 8, 8, 4\]"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            graph(params, x, edits=edits)
