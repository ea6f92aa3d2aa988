"""Graphs: names, sharing, equality, evaluation and parts."""

import copy
import operator
import pickle
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._graph.declare.known_functions import ELEMENTWISE

pytestmark = pytest.mark.once

KEY = jax.random.key(0)
IMAGE = (8, 8, 2)


def inputs(*names, shape=IMAGE):
    nodes = tuple(fc.Input(name, shape) for name in names)
    return nodes if len(nodes) > 1 else nodes[0]


def distance(a, b):
    return jnp.sqrt(((a - b) ** 2).sum(-1))


def trunk_layers():
    return fc.serial(fc.Conv(3, 3), jax.nn.relu, fc.max_pool, fc.flatten, fc.Dense(4))


def twins():
    a, b = inputs("a", "b")
    return fc.Graph((a, b), fc.siamese(trunk_layers(), distance)(a, b))


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


# evaluation ------------------------------------------------------------------------------------------------


def test_evaluates_like_the_same_program_written_by_hand(rng):
    x = inputs("x")
    body = fc.serial(fc.Conv(4, 3, padding="SAME"), jnp.tanh)
    wide = fc.parallel(fc.Conv(3, 1), fc.Conv(3, 3, padding=1), merge=fc.concat)
    head = fc.serial(fc.residual(body, fc.Conv(4, 1, bias=False)), wide, fc.avg_pool, fc.flatten, fc.Dense(2))
    graph = fc.Graph(x, head(x))
    params = graph.init(KEY)

    def by_hand(p, x):
        h = jnp.tanh(fc.conv(p["conv1"], x, padding="SAME")) + fc.conv(p["conv2"], x)
        h = jnp.concatenate([fc.conv(p["conv3"], h), fc.conv(p["conv4"], h, padding=1)], -1)
        return fc.dense(p["dense1"], fc.flatten(fc.avg_pool(h)))

    batch = rng.normal(size=(5, *IMAGE))
    close(graph(params, batch), by_hand(params, batch))
    ours = jax.grad(lambda p: (graph(p, batch) ** 2).sum())(params)
    theirs = jax.grad(lambda p: (by_hand(p, batch) ** 2).sum())(params)
    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_axes(batch, rng):
    graph = twins()
    params = graph.init(KEY)
    a, b = rng.normal(size=(2, *batch, *IMAGE))
    y = graph(params, a, b)
    assert y.shape == batch
    for index in np.ndindex(batch):
        close(y[index], graph(params, a[index], b[index]))


def test_ops_are_written_for_one_example(rng):
    """An op that counts axes from the front is right for every batch, even one as long as an axis."""
    x = inputs("x", shape=(3, 3))
    mean = fc.node(lambda x: x.mean(0), x, batched=False)
    graph = fc.Graph(
        x,
        (
            mean,
            x - mean,
            fc.node(lambda x, m: x + m[None], x, mean, batched=False),
            1 - 2 * x,
            x / 2,
            2**x,
            -x,
            abs(x),
            x @ x,
            x**2,
        ),
    )
    batch = rng.normal(size=(3, 3, 3))
    for i, outputs in enumerate(zip(*graph({}, batch), strict=True)):
        one = batch[i]
        m = one.mean(0)
        expected_values = (m, one - m, one + m, 1 - 2 * one, one / 2, 2.0**one, -one, abs(one), one @ one, one**2)
        for y, expected in zip(outputs, expected_values, strict=True):
            close(y, expected)


def test_a_batched_op_sees_one_batch_axis(rng):
    seen = []

    def center(x):
        seen.append(x.shape)
        return x - x.mean(0, keepdims=True)

    x = inputs("x", shape=(4,))
    graph = fc.Graph(x, fc.node(center, x, batched=True))
    batch = rng.normal(size=(2, 3, 4))
    assert graph.init(KEY) == {}
    close(graph({}, batch), batch - batch.mean((0, 1), keepdims=True))
    close(graph({}, batch[0, 0]), np.zeros(4))
    assert seen == [(1, 4), (6, 4), (1, 4)]


def test_functions_learn_how_many_axes_are_spatial(rng):
    x = inputs("x", shape=(6, 4, 2))
    layers = fc.serial(partial(fc.max_pool, window=2), fc.global_pool)
    graph = fc.Graph(x, layers(x))
    batch = rng.normal(size=(5, 6, 4, 2))
    close(graph({}, batch), fc.global_pool(fc.max_pool(batch)))
    close(graph({}, batch[0]), graph({}, batch)[0])


def test_outputs_keep_their_structure(rng):
    a, b = inputs("a", "b", shape=(2,))
    both = fc.node(lambda a, b: {"sum": a + b, "pair": (a, b)}, a, b)
    graph = fc.Graph({"left": a, "right": b}, {"all": both, "some": (both["sum"], both["pair"][1]), "input": a})
    x, y = rng.normal(size=(2, 3, 2))
    result = graph({}, x, y)
    assert jax.tree.structure(result) == jax.tree.structure(graph({}, {"right": y, "left": x}))
    close(result["all"]["sum"], x + y)
    close(result["some"][1], y)
    close(result["input"], x)
    with pytest.raises(fc.FuncconvError, match="a dict of inputs with the keys"):
        graph({}, {"left": x})


def test_a_node_without_inputs_has_every_batch(rng):
    x = inputs("x", shape=(2,))
    graph = fc.Graph(x, x + fc.node(lambda p: 2 * p, params="p"))
    p, batch = rng.normal(size=2), rng.normal(size=(3, 2))
    close(graph({"p": p}, batch), batch + 2 * p)


def test_apply_gives_outputs_and_state():
    graph = twins()
    params = graph.init(KEY)
    a = jnp.ones((2, *IMAGE))
    outputs, state = graph.apply(params, {}, a, a, key=KEY, train=True)
    assert state == {}
    close(outputs, graph(params, a, a))


def test_one_dimension_and_three():
    x = inputs("x", shape=(9, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.Pool(), fc.ConvTranspose(2, 3, stride=2), fc.LocalConv(1, 2))(x))
    assert graph(graph.init(KEY), jnp.ones((5, 9, 2))).shape == (5, 6, 1)
    x = inputs("x", shape=(4, 5, 6, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, (1, 2, 3)), fc.Pool((1, 2, 2)), fc.Flatten(order="channels_first"))(x))
    assert graph(graph.init(KEY), jnp.ones((5, 4, 5, 6, 2))).shape == (5, 4 * 2 * 2 * 4)


def test_a_window_of_fewer_axes_leaves_the_others_to_the_batch(rng):
    x = inputs("x")
    graph = fc.Graph(x, fc.Conv(4, (3,))(x))
    params, batch = graph.init(KEY), rng.normal(size=(2, *IMAGE))
    assert shapes(params)["conv1"]["kernel"] == (3, 2, 4)
    close(graph(params, batch), fc.conv(params["conv1"], batch))


def test_layers_of_channels_first_images(rng):
    x = inputs("x", shape=(2, 8, 6))
    layers = fc.serial(
        fc.Conv(4, 3, layout="NCHW"),
        fc.Pool(2, layout="NCHW"),
        fc.ConvTranspose(3, 2, stride=2, layout="NCHW"),
        fc.LocalConv(2, 3, layout="NCHW"),
        fc.Flatten(layout="NCHW"),
    )
    last = inputs("x", shape=(8, 6, 2))
    plain = fc.serial(fc.Conv(4, 3), fc.Pool(2), fc.ConvTranspose(3, 2, stride=2), fc.LocalConv(2, 3), fc.Flatten())
    first, second = fc.Graph(x, layers(x)), fc.Graph(last, plain(last))
    params = first.init(KEY)
    jax.tree.map(np.testing.assert_array_equal, params, second.init(KEY))
    batch = rng.normal(size=(5, 8, 6, 2))
    close(first(params, batch.transpose(0, 3, 1, 2)), second(params, batch))


# names and sharing -----------------------------------------------------------------------------------------


def test_names_are_in_the_order_of_first_use():
    a, b = inputs("a", "b")
    late, early = fc.Conv(2, 1), fc.Conv(2, 1)
    y = fc.node(operator.add, early(a), late(b))
    graph = fc.Graph((a, b), early(y))
    assert graph.nodes == ("a", "b", "conv1", "conv2", "add1", "conv1@2")
    assert [row.params for row in graph.rows] == ["conv1", "conv2", None, "conv1"]
    assert graph.entries == ("conv1", "conv2")
    assert graph.inputs == ("a", "b")
    assert graph.outputs == ("conv1@2",)


def test_automatic_names_leave_given_ones_alone():
    x = inputs("x")
    layers = fc.serial(fc.Conv(2, 1), fc.Conv(2, 1, name="conv1"), fc.Conv(2, 1), fc.ConvTranspose(2, 1), lambda x: x)
    assert fc.Graph(x, layers(x)).nodes == ("x", "conv2", "conv1", "conv3", "conv_transpose1", "lambda1")


def test_one_object_is_one_set_of_weights_and_two_are_two():
    x = inputs("x")
    c = fc.Conv(2, 1)
    assert fc.Graph(x, c(c(x))).entries == ("conv1",)
    assert fc.Graph(x, fc.Conv(2, 1)(fc.Conv(2, 1)(x))).entries == ("conv1", "conv2")


def test_weights_are_shared_by_name_between_layers_and_ops(rng):
    x = inputs("x")
    layers = fc.serial(fc.Conv(2, 3, padding=1, params="w"), fc.Conv(2, 3, padding=2, dilation=2, params="w"))
    flipped = fc.node(lambda p, x: fc.conv(p, x, flip=True, padding=1), layers(x), params="w", name="back")
    graph = fc.Graph(x, flipped)
    assert graph.entries == ("w",)
    assert graph.nodes == ("x", "conv1", "conv2", "back")
    params, batch = graph.init(KEY), rng.normal(size=(1, *IMAGE))
    w = params["w"]
    expected = fc.conv(w, fc.conv(w, fc.conv(w, batch, padding=1), padding=2, dilation=2), padding=1, flip=True)
    close(graph(params, batch), expected)


def test_a_transposed_convolution_shares_the_kernel_of_the_one_it_transposes(rng):
    x = inputs("x")
    encode, decode = fc.Conv(5, 3, bias=False, params="w"), fc.ConvTranspose(2, 3, bias=False, params="w")
    graph = fc.Graph(x, decode(encode(x)))
    params, batch = graph.init(KEY), rng.normal(size=(1, *IMAGE))
    close(graph(params, batch), fc.conv_transpose(params["w"], fc.conv(params["w"], batch)))


def test_gradients_of_shared_weights_are_sums_over_the_uses(rng):
    """With E the map from shared to copied parameters: grad f_shared = E^T grad f_copies, H_shared = E^T H_copies E."""

    def chain(*layers):
        x = inputs("x")
        return fc.Graph(
            x, fc.serial(*(layer_or_activation for layer in layers for layer_or_activation in (layer, jnp.tanh)))(x)
        )

    c = fc.Conv(2, 3, padding=1)
    shared, copies = chain(c, c, c), chain(*(fc.Conv(2, 3, padding=1) for _ in range(3)))
    batch, one = rng.normal(size=(2, *IMAGE)), shared.init(KEY)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), one)

    def expand(params):
        return {f"conv{i}": params["conv1"] for i in (1, 2, 3)}

    def reduce(tree):
        return {"conv1": jax.tree.map(lambda *copies: sum(copies), *tree.values())}

    def derivatives(graph, params, v):
        gradient = jax.grad(lambda p: (graph(p, batch) ** 3).sum())
        return jax.jvp(gradient, (params,), (v,))

    together = jax.jit(derivatives, static_argnums=0)(shared, one, direction)
    apart = jax.jit(derivatives, static_argnums=0)(copies, expand(one), expand(direction))
    for ours, theirs in zip(together, apart, strict=True):
        jax.tree.map(partial(close, ulps=4096), ours, reduce(theirs))


def test_keys_depend_on_names_alone():
    x = inputs("x")

    def init(*layers):
        return fc.Graph(x, fc.serial(*layers)(x)).init(KEY)

    short = init(fc.Conv(2, 3), fc.Conv(4, 1, name="last"))
    long = init(fc.Conv(2, 3), fc.Conv(2, 3), fc.Pool(2), fc.Conv(4, 1, name="last"))
    for name in ("conv1", "last"):
        jax.tree.map(np.testing.assert_array_equal, short[name], long[name])
    assert not np.array_equal(long["conv1"]["kernel"], long["conv2"]["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal, short, jax.jit(fc.Graph(x, fc.Conv(2, 3)(x)).init)(KEY) | {"last": short["last"]}
    )


def test_entries_may_be_given():
    x = inputs("x", shape=(2,))
    drawn = fc.node(lambda p, x: p * x, x, init=lambda key, shape: jax.random.normal(key, shape), name="scale")
    given = fc.node(jnp.dot, drawn, params="w1")
    graph = fc.Graph(x, given)
    params = graph.init(KEY, w1=2 * jnp.eye(2))
    assert shapes(params) == {"scale": (2,), "w1": (2, 2)}
    assert graph.init(KEY, w1=jnp.eye(2), scale=jnp.ones(2))["scale"].tolist() == [1, 1]


# nested graphs ---------------------------------------------------------------------------------------------


def trunk_graph(name=None):
    x = inputs("x")
    return fc.Graph(x, trunk_layers()(x), name=name)


def test_a_named_graph_is_one_subtree():
    trunk, (a, b) = trunk_graph("trunk"), inputs("a", "b")
    graph = fc.Graph((a, b), fc.Dense(1)(fc.node(jnp.subtract, trunk(a), trunk(b))))
    assert graph.entries == ("trunk/conv1", "trunk/dense1", "dense1")
    assert "trunk/relu1" in graph.nodes
    assert "trunk@2/dense1" in graph.nodes
    params = graph.init(KEY)
    assert sorted(params) == ["dense1", "trunk"]
    part = graph.subgraph("trunk")
    assert part == trunk
    image = jnp.ones((1, *IMAGE))
    close(part(part.select(params), image), graph.subgraph("trunk/dense1")({"trunk": params["trunk"]}, image))
    close(part(params["trunk"], image), part(part.select(params), image))


def test_an_unnamed_graph_leaves_no_trace():
    trunk, (a, b) = trunk_graph(), inputs("a", "b")
    by_graph = fc.Graph((a, b), fc.siamese(trunk, distance)(a, b))
    assert by_graph == twins()
    assert by_graph.entries == ("conv1", "dense1")


def test_graphs_nest_in_graphs():
    x = inputs("x")
    inner = fc.Graph(x, fc.Conv(2, 3, padding=1)(x), name="inner")
    outer = fc.Graph(x, fc.serial(inner, jnp.tanh, inner)(x), name="outer")
    top = fc.Graph(x, fc.serial(outer, fc.Conv(2, 1))(x))
    assert top.entries == ("outer/inner/conv1", "conv1")
    assert top.nodes == ("x", "outer/inner/conv1", "outer/tanh1", "outer/inner@2/conv1", "conv1")
    assert top.subgraph("outer") == outer
    assert top.subgraph("outer/inner") == inner
    through = fc.Graph(x, fc.Graph(x, fc.serial(inner, jnp.tanh)(x))(inner(x)))  # unnamed around named
    assert through.nodes == ("x", "inner/conv1", "inner@2/conv1", "tanh1")
    params = top.init(KEY)
    image = jnp.ones((1, *IMAGE))
    h = fc.conv(params["outer"]["inner"]["conv1"], image, padding=1)
    h = fc.conv(params["outer"]["inner"]["conv1"], jnp.tanh(h), padding=1)
    close(top(params, image), fc.conv(params["conv1"], h))


@pytest.mark.parametrize("name", [None, "part"])
@pytest.mark.parametrize("layers", [fc.Conv(3, 3), fc.global_pool], ids=["parameters", "none"])
@pytest.mark.parametrize("shape", [(8, 8, 5), (8, 2), (2, 8, 8, 2), ()])
def test_a_nested_graph_refuses_other_channels_and_axes(name, layers, shape):
    x, other = inputs("x"), fc.Input("other", shape)
    part = fc.Graph(x, fc.serial(layers)(x), name=name)
    title = "graph 'part'" if name else "graph"
    said = f"{title}: input 'x' is declared with shape (8, 8, 2)"
    for node, text in ((other, "<input other"), (fc.node(jnp.tanh, other, name="h"), "<node h: tanh>")):
        with pytest.raises(fc.FuncconvError) as error:
            part(node)
        assert said in str(error.value)
        assert text in str(error.value)
        assert f"of shape {shape}. Declare fc.Input" in str(error.value)
    with pytest.raises(fc.FuncconvError, match=r"siamese: the trunk .* on input 2, <input other.* is declared with"):
        fc.siamese(part, fc.add)(x, other)


def test_a_nested_graph_refuses_a_tuple():
    a, b = inputs("a", "b")
    pair = fc.node(lambda a, b: (a, b), a, b)
    with pytest.raises(fc.FuncconvError, match=r"with shape \(8, 8, 2\).* of shape \(\(8, 8, 2\), \(8, 8, 2\)\)"):
        fc.Graph(a, fc.Conv(3, 3)(a))(pair)


def test_a_nested_graph_takes_sizes_that_keep_its_parameters(rng):
    x, small, large = inputs("x"), fc.Input("small", (5, 4, 2)), fc.Input("large", (9, 7, 2))
    layers = fc.serial(fc.Conv(3, 3), fc.BatchNorm(), jax.nn.relu, fc.global_pool, fc.Dense(4))
    trunk = fc.Graph(x, layers(x), name="trunk")
    graph = fc.Graph((small, large), fc.siamese(trunk, fc.add)(small, large))
    assert graph.entries == ("trunk/conv1", "trunk/batch_norm1", "trunk/dense1")
    params, state = graph.init(KEY), graph.init_state()
    assert shapes(params["trunk"]) == shapes(trunk.init(KEY))
    assert shapes(state["trunk"]) == shapes(trunk.init_state())
    xs = [rng.normal(size=(3, *node.shape)) for node in (small, large)]
    expected = sum(
        fc.Graph(node, layers(node)).apply(params["trunk"], state["trunk"], x)[0]
        for node, x in zip((small, large), xs, strict=True)
    )
    close(graph.apply(params, state, *xs)[0], expected)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            fc.serial(fc.Conv(3, 3), fc.flatten, fc.Dense(4)),
            r"the parameters of its node 'dense1' would have .*\(54, 4\).*, not .*\(108, 4\)",
        ),
        (
            fc.serial(fc.flatten, fc.BatchNorm(scale=False, bias=False)),
            r"the state of its node 'batch_norm1' would have .*\(80,\).*, not .*\(128,\)",
        ),
        (
            fc.node(lambda w, x: w * x, init=jax.random.normal, name="gain"),
            r"node 'gain' .* \(5, 8, 2\), not \(8, 8, 2\)",
        ),
    ],
    ids=["a kernel", "a state", "an array"],
)
def test_a_nested_graph_refuses_sizes_with_other_parameters(layers, said):
    x, other = inputs("x"), fc.Input("other", (5, 8, 2))
    part = fc.Graph(x, layers(x), name="part")
    declared = r"graph 'part': it declares 'x' of shape \(8, 8, 2\), and is called on 'x' of shape \(5, 8, 2\)"
    with pytest.raises(fc.FuncconvError, match=f"{declared}.*{said}"):
        part(other)


def test_a_graph_as_a_function_refuses_other_shapes():
    x, other = inputs("x"), fc.Input("other", (5, 8, 2))
    part = fc.Graph(x, fc.Conv(3, 3)(x))
    called = fc.node(part, other, init=lambda key, _: part.init(key), name="called")
    with pytest.raises(fc.FuncconvError, match=r"node 'called': .*input 'x' must have shape .*got \(5, 8, 2\)"):
        fc.Graph(other, called).init(KEY)


def test_a_layer_inside_and_outside_of_a_named_graph_is_one():
    x = inputs("x")
    c = fc.Conv(2, 3, padding=1)
    inner = fc.Graph(x, c(x), name="inner")
    assert fc.Graph(x, inner(c(x))).entries == ("inner/conv1",)
    again = fc.Graph(x, c(x), name="again")
    with pytest.raises(fc.FuncconvError, match=r"one entry in the parameters.*two named graphs"):
        fc.Graph(x, again(inner(x)))


def test_parts_keep_their_names():
    graph = twins()
    params = graph.init(KEY)
    part = graph.subgraph("dense1@2")
    assert part.inputs == ("b",)
    assert sorted(part.select(params)) == ["conv1", "dense1"]
    assert graph.subgraph("conv1").select(params).keys() == {"conv1"}
    image = jnp.ones((1, *IMAGE))
    close(part(params, image), graph.subgraph("dense1")(params, image))
    both = graph.subgraph("dense1", "dense1@2")
    left, right = both(params, image, 0 * image)
    close(distance(left, right), graph(params, image, 0 * image))


# values ----------------------------------------------------------------------------------------------------


def test_equal_graphs_built_twice_are_equal():
    assert twins() == twins()
    assert hash(twins()) == hash(twins())
    assert twins() != trunk_graph()
    assert twins() != "a graph"
    x = inputs("x")

    def built(merge, number):
        return fc.Graph(x, merge(x) * number)

    assert built(fc.serial(partial(fc.max_pool, window=3)), 2) == built(fc.serial(partial(fc.max_pool, window=3)), 2)
    assert built(fc.serial(partial(fc.max_pool, window=3)), 2) != built(fc.serial(partial(fc.max_pool, window=2)), 2)
    assert built(fc.serial(fc.max_pool), 2) != built(fc.serial(fc.max_pool), 2.0)  # integers stay integers
    assert built(fc.serial(lambda x: x), 2) != built(fc.serial(lambda x: x), 2)
    a, b = inputs("a", "b")
    assert fc.Graph((a, b), a - b) != fc.Graph((a, b), b - a)
    assert fc.Graph((a, b), (a, b)) != fc.Graph((a, b), {"a": a, "b": b})
    one, other = fc.Input("x", (2, 3)), fc.Input("x", (3, 2))
    assert fc.Graph(one, one) != fc.Graph(other, other)


def test_compositions_are_equal_if_they_share_alike():
    c = fc.Conv(8, 3)
    assert fc.serial(c, c) != fc.serial(fc.Conv(8, 3), fc.Conv(8, 3))
    d = fc.Conv(8, 3)
    assert fc.serial(c, c) == fc.serial(d, d)
    assert hash(fc.serial(c, c)) == hash(fc.serial(d, d))
    assert fc.serial(c, d) == fc.serial(fc.Conv(8, 3), fc.Conv(8, 3))
    assert fc.serial(c, fc.residual(c)) != fc.serial(c, fc.residual(d))
    assert fc.serial(c) != fc.parallel(c)
    assert fc.parallel(c, merge=fc.add) != fc.parallel(c)
    x = inputs("x")
    assert fc.Graph(x, fc.serial(c, c)(x)) != fc.Graph(x, fc.serial(c, d)(x))


def test_an_equal_graph_as_a_static_argument_is_not_traced_again():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def loss(graph, params, a, b):
        traces.append(graph)
        return graph(params, a, b).sum()

    params, image = twins().init(KEY), jnp.ones((2, *IMAGE))
    for _ in range(3):
        loss(twins(), params, image, image)
    assert len(traces) == 1
    jax.jit(twins())(params, image, image)


def test_graphs_are_copied_and_pickled():
    x = inputs("x")
    layers = fc.serial(fc.Conv(3, 3), fc.max_pool, operator.neg, fc.Flatten(), fc.Dense(2))
    for graph in (fc.Graph(x, layers(x)), fc.Graph(x, fc.Graph(x, layers(x), name="trunk")(x), name="all")):
        for again in (copy.copy(graph), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert again == graph
            jax.tree.map(np.testing.assert_array_equal, again.init(KEY), graph.init(KEY))


def test_a_thousand_nodes():
    begin = time.perf_counter()
    x = fc.Input("x", (3,))
    y = x
    for _ in range(1000):
        y = y + y
    graph = fc.Graph(x, y * 2.0**-1000)
    hash(graph)
    graph({}, jnp.ones((2, 3)))
    assert time.perf_counter() - begin < 20  # exponential in the depth would not end
    assert graph({}, jnp.ones((2, 3))).tolist() == [[1.0] * 3] * 2
    assert graph.nodes[1000] == "add1000"


def test_a_description_fits_in_a_line():
    graph = twins()
    numbers = sum(array.size for array in jax.tree.leaves(graph.init(KEY)))
    counts = f"{len(graph.nodes)} nodes, {len(graph.entries)} parameter entries with {numbers} numbers"
    shape = graph.shapes()[graph.outputs[0]].shape
    inputs_with_shapes = ", ".join(f"{name} {graph.shapes()[name].shape}" for name in graph.inputs)
    assert repr(graph) == f"Graph: {inputs_with_shapes} -> {graph.outputs[0]} {shape}; {counts}"
    x = fc.Input("x", (32, 32, 3))
    layers = fc.serial(*[fc.Conv(8, 3, padding=1) for _ in range(100)])
    deep = fc.Graph(x, layers(x), name="deep")
    assert repr(deep).startswith("Graph 'deep': x (32, 32, 3) -> conv100 (32, 32, 8); 101 nodes, 100 parameter entries")
    assert repr(layers).endswith(", ... 94 more ..., Conv(8, 3, padding=1))")
    for value in (deep, layers, fc.residual(layers), fc.parallel(layers, layers), layers(x)):
        assert len(repr(value)) < 600
    backward = deep.backward(deep.init(KEY), jnp.ones((32, 32, 3)), cotangent=jnp.ones((32, 32, 8)))
    assert repr(backward) == "Backward: derivatives by 101 nodes and 200 parameter arrays"
    assert (
        repr(fc.serial(fc.Conv(3, 3, stride=(2, 1)), jnp.tanh, fc.Pool()))
        == "serial(Conv(3, 3, stride=(2, 1)), tanh, Pool(2))"
    )


def test_a_description_never_fails():
    x = fc.Input("x", (4,))
    unknown = fc.Graph(x, fc.node(jnp.dot, x, params="w", name="y"))  # nothing draws w
    assert repr(unknown) == "Graph: x (4,) -> y; 2 nodes, 1 parameter entry"
    broken = fc.Graph(x, fc.Conv(3, 3)(x))  # a vector has no spatial axes
    assert repr(broken) == "Graph: x (4,) -> conv1; 2 nodes, 1 parameter entry"
    inputs = [fc.Input(f"x{i}", (2,)) for i in range(9)]
    assert repr(fc.Graph(tuple(inputs), {"a": abs(inputs[0])})).startswith(
        "Graph: x0 (2,), x1 (2,), x2 (2,), x3 (2,) and 5 more -> abs1 (2,); 10 nodes, 0 parameter entries"
    )


def test_loops_that_call_ops_are_functions_like_any_other(rng):
    def loop(params, x):
        for i in range(3):
            x = jnp.tanh(fc.conv(params[f"w{i % 2}"], x, padding="SAME"))
        return fc.global_pool(x)

    params = {f"w{i}": fc.init_conv(jax.random.key(i), 2, 2, (3, 3)) for i in range(2)}
    batch = rng.normal(size=(4, *IMAGE))
    x = inputs("x")
    by_node = fc.Graph(x, fc.node(lambda p, x: loop(p, x[None])[0], x, params="loop", batched=False))
    close(by_node({"loop": params}, batch), jax.jit(loop)(params, batch))


def test_elementwise_functions_are_what_they_are_mapped(rng):
    """Those that graphs take to act on each number by itself do so, over any batch axes."""
    x, y = jnp.asarray(rng.uniform(0.2, 2, (2, 2, 3, 4, 2)))
    for op in ELEMENTWISE:
        binary = op in (jnp.add, jnp.divide, jnp.maximum, jnp.minimum, jnp.multiply, jnp.power, jnp.subtract)
        arrays = (x, y) if binary else (x,)
        inputs = [fc.Input(name, (4, 2)) for name in "xy"[: len(arrays)]]
        result = fc.Graph(tuple(inputs), fc.node(op, *inputs))({}, *arrays)
        close(result, jax.vmap(jax.vmap(op))(*arrays))
        assert result.shape == x.shape


@pytest.mark.usefixtures("climate_of_a_user")
def test_functions_of_arrays_of_several_ranks_are_mapped():
    x, scale = fc.Input("x", (4, 2)), fc.Input("scale", (2,))
    graph = fc.Graph((x, scale), fc.node(jnp.multiply, x, scale))
    result = graph({}, jnp.ones((2, 4, 2)), jnp.array([[1.0, 2], [3, 4]]))
    np.testing.assert_array_equal(result[:, 0], [[1, 2], [3, 4]])


def test_elementwise_functions_may_have_options_of_any_kind():
    x = fc.Input("x", (3,))
    at = jnp.array([[-2.0, 0.5, 2.0]])
    for op in (partial(jnp.clip, min=-1, max=None), partial(jax.nn.gelu, approximate=False)):
        np.testing.assert_array_equal(fc.Graph(x, fc.node(op, x))({}, at), op(at))
