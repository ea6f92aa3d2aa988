"""What is refused or accepted while a graph is declared: sharing, shapes, nodes used as arrays, names."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

KEY = jax.random.key(0)
IMAGE = (8, 8, 2)


def inputs(*names):
    nodes = tuple(fc.Input(name, IMAGE) for name in names)
    return nodes if len(nodes) > 1 else nodes[0]


# sharing by mistake ----------------------------------------------------------------------------------------


def test_two_layers_of_one_name_are_refused():
    x = inputs("x")
    cases = (
        lambda: fc.serial(fc.Conv(2, 1, name="a"), jnp.tanh, fc.Conv(2, 1, name="a"))(x),
        lambda: fc.serial(fc.Conv(2, 1, name="a"), fc.Conv(2, 3, name="a"))(x),
        lambda: fc.serial(fc.Dense(2, name="a"), fc.LayerNorm(name="a"))(x),
        lambda: fc.parallel(fc.Graph(x, fc.Conv(2, 1, name="a")(x)), fc.Conv(2, 1, name="a"), merge=fc.add)(x),
        lambda: fc.Conv(2, 1, name="a")(copy.deepcopy(fc.Conv(2, 1, name="a"))(x)),
    )
    for declare in cases:
        with pytest.raises(fc.FuncconvError, match=r"two are called 'a': .*name='a'.*name='a'.*twice.*params='a'"):
            fc.Graph(x, declare())
    c = fc.Conv(2, 1, name="a")
    assert fc.Graph(x, c(c(x))).entries == ("a",)
    assert fc.Graph(x, fc.serial(fc.Conv(2, 1, params="a"), fc.Conv(2, 1, params="a"))(x)).entries == ("a",)
    assert fc.Graph(x, fc.Conv(2, 1, params="a")(c(x))).entries == ("a",)
    one, other = (fc.Graph(x, fc.Conv(2, 1, name="a")(x), name=name) for name in ("one", "other"))
    assert fc.Graph(x, one(other(x))).entries == ("other/a", "one/a")


def test_parameters_of_other_shapes_than_declared_are_refused():
    x = inputs("x")
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 1, name="c"), fc.LayerNorm(), fc.Flatten(), fc.Dense(3))(x))
    params, batch = graph.init(KEY), jnp.ones((2, *IMAGE))
    wrong = {
        "c": {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2)},
        "layer_norm1": {"scale": jnp.ones(1), "bias": jnp.ones(4)},
        "dense1": {"kernel": jnp.ones((256, 1)), "bias": jnp.ones(1)},
    }
    uses = (
        lambda params: graph(params, batch),
        lambda params: jax.jit(graph)(params, batch),
        jax.grad(lambda params: graph(params, batch).sum()),
        lambda params: graph.apply(params, {}, batch),
        lambda params: graph.values(params, batch),
        lambda params: graph.jacobian(params, batch, of="c", wrt="x"),
        graph.copies,
        lambda params: graph.unshared()(params, batch),
        lambda params: pickle.loads(pickle.dumps(graph))(params, batch),
        lambda params: fc.Graph.from_json(graph.to_json())(params, batch),
    )
    for entry, tree in wrong.items():
        for use in uses:
            with pytest.raises(fc.FuncconvError, match=f"node '{entry}'"):
                use(params | {entry: tree})
    shapes_of_both = r"parameters 'c' must have.*\(1, 1, 2, 4\).*as given, they have.*\(1, 1, 2, 2\)"
    with pytest.raises(fc.FuncconvError, match=shapes_of_both):
        fc.Graph(x, fc.Conv(4, 1, name="c")(x))({"c": wrong["c"]}, batch)


def test_parameters_of_the_declared_shapes_may_be_anything_else():
    """Of other dtypes, without a bias, stacked under `vmap`, or in another mapping."""
    x = fc.Input("x", IMAGE, dtype="float32")
    graph = fc.Graph(x, fc.Conv(4, 1, name="c", dtype="float32")(x))
    params, batch = graph.init(KEY), jnp.ones((2, *IMAGE), "float32")
    half = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    assert graph(half, batch.astype("bfloat16")).dtype == "bfloat16"
    kernel = params["c"]["kernel"]
    for entry in ({"kernel": kernel}, {"kernel": kernel, "bias": None}):
        close(graph({"c": entry}, batch), fc.conv({"kernel": kernel}, batch))
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    close(jax.vmap(graph, (0, None))(stacked, batch)[0], graph(params, batch))
    with pytest.raises(fc.FuncconvError, match="node 'c'"):
        graph(stacked, batch)
    extra = fc.Graph(x, fc.Conv(4, 1, name="c", dtype="float32", bias=False)(x))
    with pytest.raises(fc.FuncconvError, match=r"node 'c'.*must have shapes"):
        extra(params, batch)


def test_the_check_of_parameters_is_no_part_of_the_program():
    x = inputs("x")
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu)(x))
    params, batch = graph.init(KEY), jnp.ones((2, *IMAGE))

    def by_hand(params, x):
        return jax.nn.relu(fc.conv(params["conv1"], x))

    assert str(jax.make_jaxpr(graph)(params, batch)) == str(jax.make_jaxpr(by_hand)(params, batch))


# nodes -----------------------------------------------------------------------------------------------------


def test_nodes_are_joined_and_added():
    x, y = inputs("x", "y")
    graph = fc.Graph((x, y), (fc.concat(x, y), fc.add(x, y, x), fc.concat(x)))
    a, b = jnp.ones((3, *IMAGE)), 2 * jnp.ones((3, *IMAGE))
    joined, total, alone = graph({}, a, b)
    np.testing.assert_array_equal(joined, jnp.concatenate([a, b], -1))
    np.testing.assert_array_equal(total, a + b + a)
    np.testing.assert_array_equal(alone, a)
    with pytest.raises(fc.FuncconvError, match="called on nodes"):
        fc.concat(x, a)


def test_a_node_is_no_array():
    x = inputs("x")
    uses = (
        lambda: jax.nn.relu(x),
        lambda: jax.nn.softmax(x),
        lambda: jnp.concatenate([x, x]),
        lambda: jnp.concatenate([x + 1, x]),
        lambda: jnp.sum(x + 1),
        lambda: jnp.exp(x),
        lambda: jnp.asarray(x),
        lambda: np.asarray(x),
        lambda: jax.jit(lambda x: x)(x),
        lambda: jax.vmap(lambda x: x)(x),
        lambda: fc.max_pool(x),
        lambda: fc.flatten(x),
        lambda: jnp.where(x, 1, 2),
        lambda: fc.Graph(x, fc.node(lambda y: y + jnp.tanh(x), x)).init(KEY),
        lambda: jnp.ones(3) + x,
        lambda: np.tanh(x),
        lambda: np.ones(3) * x,
        lambda: np.float32(2) * x,
        lambda: np.add.reduce(x),
    )
    for use in uses:
        with pytest.raises(fc.FuncconvError, match=r"fc.node\("):
            use()


def test_a_node_has_no_truth_value_and_is_no_number():
    x = inputs("x")
    for use in (lambda: bool(x), lambda: x == 0, lambda: x != 0.5, lambda: x == jnp.ones(2), lambda: x and x):
        with pytest.raises(fc.FuncconvError, match=r"fc\.node"):
            use()
    assert x == x
    assert x != x + 1
    assert x in [x]
    assert x != "x"


def test_a_node_has_a_shape():
    x = inputs("x")
    c = fc.Conv(4, 3)(x)
    pair = fc.Pool(2, return_indices=True)(c)
    assert (x.shape, c.shape, (2 * c).shape, pair.shape, pair[0].shape) == (
        IMAGE,
        (6, 6, 4),
        (6, 6, 4),
        ((3, 3, 4), (3, 3, 4)),
        (3, 3, 4),
    )
    assert fc.node(lambda x: {"a": x, "b": x[..., 0]}, x).shape == {"a": IMAGE, "b": IMAGE[:-1]}
    assert fc.Graph(x, fc.Dense(5)(x), name="g")(x).shape == (8, 8, 5)
    given = fc.node(jnp.matmul, x, params="w")
    with pytest.raises(fc.FuncconvError, match="nothing draws"):
        _ = (given + 1).shape
    with pytest.raises(fc.FuncconvError, match="window of 9 does not fit"):
        _ = (fc.Pool(9)(x) + 1).shape


def test_inputs_are_given_by_name():
    left, right = inputs("left", "right")
    graph = fc.Graph((left, right), {"y": fc.Conv(2, 1)(left) - right})
    params = graph.init(KEY)
    a, b = jnp.ones((3, *IMAGE)), 2 * jnp.ones((3, *IMAGE))
    named = {"right": b, "left": a}
    cotangent = {"y": jnp.ones((3, *IMAGE))}
    pairs = (
        (graph(params, a, b), graph(params, **named)),
        (jax.jit(graph)(params, a, b), jax.jit(graph)(params, **named)),
        (graph.apply(params, {}, a, b)[0], graph.apply(params, {}, **named, train=True)[0]),
        (graph.values(params, a, b), graph.values(params, **named)),
        (graph.backward(params, a, b, cotangent=cotangent), graph.backward(params, cotangent=cotangent, **named)),
        (graph.jacobian(params, a, b, of="conv1", wrt="left"), graph.jacobian(params, of="conv1", wrt="left", **named)),
        (graph.continuation(params, a, b, at="left")[0], graph.continuation(params, at="left", **named)[0]),
    )
    for by_position, by_name in pairs:
        jax.tree.map(np.testing.assert_array_equal, by_position, by_name)

    def loss(outputs):
        return outputs["y"].sum()

    by_use = graph.grad_by_use(loss)
    jax.tree.map(np.testing.assert_array_equal, by_use(params, a, b), by_use(params, **named))
    graph.hessian_by_use(loss)(params, **named)
    assert fc.Graph((left, right), graph(left=left, right=right)) == graph
    by_key = fc.Graph({"one": left, "two": right}, left - right)
    np.testing.assert_array_equal(by_key({}, one=a, two=b), a - b)
    for use in (
        lambda: graph(params, left=a),
        lambda: graph(params, a, right=b),
        lambda: graph(left=left),
        lambda: graph.values(params, left=a),
    ):
        with pytest.raises(fc.FuncconvError, match=r"all by position or all by name \((left|one)=\.\.\., "):
            use()
    for use, name in (
        (lambda: graph(params, left=a, right=b, other=b), "'other' is neither an option nor an input"),
        (lambda: graph.apply(params, {}, a, b, trian=True), "did you mean 'train'"),
        (lambda: by_key({}, left=a, right=b), "'left' is neither"),
    ):
        with pytest.raises(fc.FuncconvError, match=name):
            use()
        with pytest.raises(TypeError, match=name):
            use()


def test_a_function_in_a_composition_has_a_name_and_options():
    x = inputs("x")
    act = fc.node(jax.nn.relu, name="act")
    graph = fc.Graph(x, fc.serial(fc.Conv(2, 1), act, fc.Conv(2, 1), act)(x))
    assert graph.nodes == ("x", "conv1", "act", "conv2", "act@2")
    scale = fc.node(jnp.multiply, params="w", init=lambda _, shape: 2 * jnp.ones(shape))
    assert fc.Graph(x, fc.serial(scale, scale)(x)).entries == ("w",)
    for again in (partial(fc.node, jax.nn.relu, name="act"), fc.node(jax.nn.relu, name="act")):
        assert fc.Graph(x, fc.serial(again)(x)).nodes == ("x", "act")
    with pytest.raises(fc.FuncconvError, match="call the layer on nodes first"):
        x + act
    with pytest.raises(fc.FuncconvError, match="Call a layer on nodes"):
        fc.Graph(x, act)
    with pytest.raises(fc.FuncconvError, match="expected a layer"):
        fc.serial(x)
    bias = fc.node(lambda p: 2 * p, params="p")  # takes no arrays, so that it is a node at once
    close(fc.Graph(x, x + bias)({"p": jnp.ones(IMAGE)}, jnp.ones((1, *IMAGE))), 3 * np.ones((1, *IMAGE)))


def test_what_is_put_together_has_no_name():
    layers = (fc.Conv(2, 1), jnp.tanh)
    for kind, declare in (
        ("serial", lambda: fc.serial(*layers, name="trunk")),
        ("parallel", lambda: fc.parallel(*layers, name="trunk")),
        ("residual", lambda: fc.residual(layers[0], name="trunk")),
        ("siamese", lambda: fc.siamese(*layers, name="trunk")),
    ):
        with pytest.raises(fc.FuncconvError, match=rf"fc.{kind}\(.*fc.Graph\(x, layers\(x\), name='trunk'\)"):
            declare()


def test_wrong_shapes_say_in_which_branch_they_are():
    x = inputs("x")
    small = fc.Input("small", (4, 4, 2))
    good, bad = fc.Conv(2, 3, padding=1), fc.serial(fc.Conv(4, 3), fc.Conv(4, 9, name="wide"))
    named = fc.Graph(small, fc.Pool(2)(small), name="half")
    cases = {
        "parallel: branch 2, .*name='wide'.*node 'wide': conv: a window of 9": lambda: fc.parallel(good, bad)(x),
        "parallel: branch 1, .*node 'pool1'": lambda: fc.parallel(fc.Pool(9), good, merge=fc.add)(x),
        r"merge concat of branch 1, Conv\(2, 3, padding=1\): \(8, 8, 2\) and branch 2, the graph 'half': \(4, 4, 2\): "
        "node 'concat1': concat": lambda: fc.parallel(good, named, merge=fc.concat)(x),
        "residual: the layer .*node 'wide'": lambda: fc.residual(bad)(x),
        "residual: the shortcut .*node 'wide'": lambda: fc.residual(good, bad)(x),
        r"residual: the sum of the layer Conv\(4, 1\): \(8, 8, 4\) and the shortcut \(the input\): \(8, 8, 2\): node "
        "'add1': add": lambda: fc.residual(fc.Conv(4, 1))(x),
        "siamese: the trunk .* on input 2, <input small.*node 'pool1'": lambda: fc.siamese(fc.Pool(5), fc.add)(
            x, small
        ),
        r"siamese: the head add on the results of the trunk on input 1: \(4, 4, 2\) and the trunk on input 2: "
        r"\(2, 2, 2\)": lambda: fc.siamese(fc.Pool(2), fc.add)(x, small),
        "parallel: branch 1, .*residual: the layer .*node 'wide'": lambda: fc.parallel(fc.residual(bad))(x),
    }
    for message, declare in cases.items():
        with pytest.raises(fc.FuncconvError, match=f"(?s){message}"):
            declare()
    broken = fc.Pool(9)(x)  # not the branch's fault
    fc.parallel(good, fc.Conv(4, 1))(broken)


def test_an_init_that_cannot_be_traced_is_left_to_init():
    """Its shapes are known when it is called."""
    x = inputs("x")

    def init(key, shape):
        return np.asarray(jax.random.normal(key, shape))

    scale = fc.node(jnp.multiply, init=init, name="scale")
    graph = fc.Graph(x, fc.serial(fc.parallel(scale, jnp.tanh, merge=fc.add), fc.Conv(2, 1))(x))
    params, batch = graph.init(KEY), jnp.ones((2, *IMAGE))
    expected = fc.conv(params["conv1"], params["scale"] * batch[0] + jnp.tanh(batch[0]))
    close(graph(params, batch)[0], expected)


COUNTS = {
    "a window first": lambda: fc.Conv((3, 3), 8),
    "a transposed window first": lambda: fc.ConvTranspose((3, 3), 8),
    "a local window first": lambda: fc.LocalConv((3, 3), 8),
    "a negative count": lambda: fc.Conv(-1, 3),
    "a fraction": lambda: fc.Conv(2.5, 3),
    "a text": lambda: fc.Conv("8", 3),
    "a bool": lambda: fc.Conv(True, 3),
    "no features": lambda: fc.Dense(0),
    "several features": lambda: fc.Dense((3,)),
}


@pytest.mark.parametrize("wrong", COUNTS)
def test_counts_of_channels_are_positive_integers(wrong):
    with pytest.raises(
        fc.FuncconvError, match=r"(out_channels|features) must be a positive integer; got .*Write \w+\("
    ):
        COUNTS[wrong]()


@pytest.mark.parametrize("window", [0, (0, 3), (), "3", 1.5])
def test_windows_are_positive_integers(window):
    with pytest.raises(fc.FuncconvError, match="window must be"):
        fc.Conv(8, window)


def test_integers_of_numpy_are_those_of_python():
    x = fc.Input("x", (8, 8, 3))
    layers = fc.Conv(np.int64(8), np.int32(3), stride=(np.int8(2), 1)), fc.Conv(8, 3, stride=(2, 1))
    ours, theirs = (fc.Graph(x, layer(x)) for layer in layers)
    assert ours == theirs
    assert ours.to_json() == theirs.to_json()
