"""Derivatives at nodes, and by each use of shared parameters."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import STEP, close, close_to_differences

import funcconv as fc

pytestmark = pytest.mark.once

KEY = jax.random.key(0)


def matvec(w, x):
    return w @ x


def course():
    """The course's graph of three nodes: x1 = w1 x0, x2 = x0 + w2 x1, x3 = w1 (x1 + x2)."""
    x0 = fc.Input("x0", (3,))
    x1 = fc.node(matvec, x0, params="w1", name="x1")
    x2 = fc.node(lambda w, a, b: a + w @ b, x0, x1, params="w2", name="x2")
    return fc.Graph(x0, fc.node(lambda w, a, b: w @ (a + b), x1, x2, params="w1", name="x3"))


@pytest.fixture
def weights(rng):
    return {name: jnp.asarray(rng.normal(size=(3, 3))) for name in ("w1", "w2")}


def twins():
    a, b = fc.Input("a", (6, 6, 1)), fc.Input("b", (6, 6, 1))
    trunk = fc.Graph(a, fc.serial(fc.Conv(2, 3), jnp.tanh, fc.Pool(2), fc.Flatten(), fc.Dense(3))(a), name="trunk")
    return fc.Graph((a, b), trunk(a) - trunk(b))


@pytest.fixture
def pair(rng):
    graph = twins()
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape)), graph.init(KEY))
    return graph, params, jnp.asarray(rng.normal(size=(4, 6, 6, 1))), jnp.asarray(rng.normal(size=(4, 6, 6, 1)))


def loss(y):
    return jnp.sin(y).sum()


def test_values_are_the_course_s(weights, rng):
    x0, (w1, w2) = rng.normal(size=3), weights.values()
    values = course().values(weights, x0)
    x1 = w1 @ x0
    x2 = x0 + w2 @ x1
    for name, value in {"x0": x0, "x1": x1, "x2": x2, "x3": w1 @ (x1 + x2)}.items():
        close(values[name], value)


def test_values_are_those_of_the_parts(pair):
    graph, params, a, b = pair
    values = graph.values(params, a, b)
    assert tuple(values) == graph.nodes
    for name in graph.nodes[2:]:
        part = graph.subgraph(name)
        close(values[name], part(part.select(params), *[x for x, n in ((a, "a"), (b, "b")) if n in part.inputs]))


def test_backward_is_the_course_s(weights, rng):
    """The derivative by every activation, with the Jacobians written out."""
    x0, (w1, w2), c = rng.normal(size=3), weights.values(), rng.normal(size=3)
    nodes, by_params = course().backward(weights, x0, cotangent=c)
    by_x3 = c
    by_x2 = w1.T @ by_x3
    by_x1 = w1.T @ by_x3 + w2.T @ by_x2
    by_x0 = w1.T @ by_x1 + by_x2
    for name, value in {"x3": by_x3, "x2": by_x2, "x1": by_x1, "x0": by_x0}.items():
        close(nodes[name], value)
    x1 = w1 @ x0
    x2 = x0 + w2 @ x1
    close(by_params["w1"], np.outer(by_x1, x0) + np.outer(by_x3, x1 + x2))
    close(by_params["w2"], np.outer(by_x2, x1))


def test_backward_is_differences(pair, rng):
    graph, params, a, b = pair
    cotangent = rng.normal(size=(4, 3))
    nodes, by_params = graph.backward(params, a, b, cotangent=cotangent)
    expected = jax.grad(lambda params: (graph(params, a, b) * cotangent).sum())(params)
    jax.tree.map(close, by_params, expected)
    assert tuple(nodes) == graph.nodes
    for name in graph.nodes:
        value, rest = graph.continuation(params, a, b, at=name)
        close(value, graph.values(params, a, b)[name])
        close(rest(value), graph(params, a, b))
        direction = rng.normal(size=value.shape)
        ahead, behind = (((rest(value + h * direction)) * cotangent).sum() for h in (STEP, -STEP))
        close_to_differences((nodes[name] * direction).sum(), (ahead - behind) / (2 * STEP), terms=1024)


def test_the_default_cotangent_is_one_for_each_example(rng):
    x = fc.Input("x", (3,))
    graph = fc.Graph(x, {"loss": fc.node(jnp.sum, x * x, batched=False)})
    values = jnp.asarray(rng.normal(size=(2, 5, 3)))
    close(graph.backward({}, values).nodes["x"], 2 * values)
    close(graph.backward({}, values, cotangent={"loss": 3 * np.ones((2, 5))}).nodes["x"], 6 * values)
    close(graph.backward({}, values[0, 0]).nodes["x"], 2 * values[0, 0])


def test_backward_through_trees_and_integers(rng):
    x = fc.Input("x", (4,))
    both = fc.node(
        lambda x: {"largest": x.max(), "place": x.argmax(), "double": (2 * x,)}, x, name="both", batched=False
    )
    out = fc.node(lambda tree: tree["largest"] + tree["double"][0].sum(-1) + 0 * tree["place"].astype(float), both)
    graph = fc.Graph(x, out)
    array = jnp.asarray(rng.normal(size=4))
    nodes, _ = graph.backward({}, array)
    assert nodes["both"]["place"] is None
    assert nodes["both"]["largest"] == 1
    close(nodes["both"]["double"][0], np.ones(4))
    close(nodes["x"], 2.0 + np.asarray(array == array.max()))


def test_jacobians_of_the_course(weights, rng):
    graph, x0, (w1, w2) = course(), rng.normal(size=3), weights.values()
    identity = np.eye(3)
    total = {
        ("x1", "x0"): w1,
        ("x2", "x1"): w2,
        ("x2", "x0"): identity + w2 @ w1,
        ("x3", "x2"): w1,
        ("x3", "x1"): w1 @ (identity + w2),
        ("x3", "x0"): w1 @ (w1 + identity + w2 @ w1),
        ("x1", "x3"): np.zeros((3, 3)),
        ("x2", "x2"): identity,
    }
    for (of, wrt), expected in total.items():
        close(graph.jacobian(weights, x0, of=of, wrt=wrt), expected)
    own = {("x1", "x0"): w1, ("x2", "x1"): w2, ("x2", "x0"): identity, ("x3", "x2"): w1, ("x3", "x1"): w1}
    for (of, wrt), expected in own.items():
        close(graph.jacobian(weights, x0, of=of, wrt=wrt, local=True), expected)
    values = graph.values(weights, x0)
    by_w1 = np.einsum("ij,k->ijk", identity, values["x1"] + values["x2"])  # of w1 s, by w1, with s given
    close(graph.jacobian(weights, x0, of="x3", wrt="w1", local=True), by_w1)
    through_x1 = np.einsum("im,mj,k->ijk", w1 @ (identity + w2), identity, x0)
    close(graph.jacobian(weights, x0, of="x3", wrt="w1"), by_w1 + through_x1)


def test_jacobians_keep_the_batch(pair):
    graph, params, a, b = pair
    jacobian = graph.jacobian(params, a, b, of="sub1", wrt="trunk/conv1")
    assert jacobian.shape == (4, 3, 4, 4, 2)
    by_kernel = graph.jacobian(params, a, b, of="sub1", wrt="trunk/conv1/kernel")
    assert by_kernel.shape == (4, 3, 3, 3, 1, 2)
    expected = jax.jacrev(
        lambda kernel, a, b: graph(
            {"trunk": params["trunk"] | {"conv1": params["trunk"]["conv1"] | {"kernel": kernel}}}, a, b
        )
    )(params["trunk"]["conv1"]["kernel"], a[1], b[1])
    close(by_kernel[1], expected)
    whole = graph.jacobian(params, a, b, of="sub1", wrt="params/trunk/conv1")
    close(whole["kernel"], by_kernel)
    assert whole["bias"].shape == (4, 3, 2)
    own = graph.jacobian(params, a, b, of="trunk@2/conv1", wrt="params/trunk/conv1", local=True)
    assert own["kernel"].shape == (4, 4, 4, 2, 3, 3, 1, 2)
    one = graph.jacobian(params, a[0], b[0], of="sub1", wrt="trunk/conv1/kernel")
    close(one, by_kernel[0])


def test_an_operation_that_takes_a_value_twice():
    x = fc.Input("x", ())
    graph = fc.Graph(x, fc.node(operator.mul, x, x, name="square"))
    assert graph.jacobian({}, 3.0, of="square", wrt="x", local=True) == 6
    assert graph.jacobian({}, 3.0, of="square", wrt="x") == 6


def test_a_product_with_the_hessian_by_an_activation(pair, rng):
    graph, params, a, b = pair
    value, rest = graph.continuation(params, a, b, at="trunk/conv1")
    v = jnp.asarray(rng.normal(size=value.shape))
    gradient = jax.grad(lambda value: loss(rest(value)))
    product = jax.jvp(gradient, (value,), (v,))[1]
    differences = (gradient(value + STEP * v) - gradient(value - STEP * v)) / (2 * STEP)
    close_to_differences(product, differences, terms=1024)


def test_the_sharing_law(pair, rng):
    """With E the map from the shared parameters to the copies: grad shared = E^T grad copies, H v = E^T H E v."""
    graph, params, a, b = pair
    unshared, copies = graph.unshared(), graph.copies(params)
    assert unshared.entries == ("trunk/conv1", "trunk/dense1", "trunk@2/conv1", "trunk@2/dense1")
    assert unshared.nodes == graph.nodes
    close(unshared(copies, a, b), graph(params, a, b))

    def shared(params):
        return loss(graph(params, a, b))

    def apart(copies):
        return loss(unshared(copies, a, b))

    def transposed(copies):
        return {"trunk": jax.tree.map(jnp.add, copies["trunk"], copies["trunk@2"])}

    jax.tree.map(close, transposed(jax.grad(apart)(copies)), jax.grad(shared)(params))
    by_use = graph.grad_by_use(loss)(params, a, b)
    jax.tree.map(close, by_use, jax.grad(apart)(copies))
    assert float(jnp.abs(by_use["trunk"]["conv1"]["kernel"] - by_use["trunk@2"]["conv1"]["kernel"]).max()) > 1e-3

    v = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    product = jax.jvp(jax.grad(shared), (params,), (v,))[1]
    in_copies = jax.jvp(jax.grad(apart), (copies,), (graph.copies(v),))[1]
    jax.tree.map(lambda one, other: close(one, other, ulps=1024), transposed(in_copies), product)


def test_the_hessian_by_pairs_of_uses(pair):
    graph, params, a, b = pair
    by_use = graph.hessian_by_use(loss)(params, a, b)
    shared = fc.hessian(lambda params: loss(graph(params, a, b)), params).block("trunk/conv1").dense()
    uses = ("trunk/conv1", "trunk@2/conv1")
    blocks = {(one, other): by_use.block(one, other).dense() for one in uses for other in uses}
    close(sum(blocks.values()), shared, ulps=1024)
    close(blocks[uses], blocks[uses[::-1]].T, ulps=1024)
    assert float(jnp.abs(blocks[uses]).max()) > 1e-3


def test_one_array_used_by_different_operations(weights, rng):
    x0 = jnp.asarray(rng.normal(size=(5, 3)))
    graph = course()
    by_use = graph.grad_by_use(loss)(weights, x0)
    assert sorted(by_use) == ["x1", "x2", "x3"]
    shared = jax.grad(lambda weights: loss(graph(weights, x0)))(weights)
    close(by_use["x1"] + by_use["x3"], shared["w1"])
    close(by_use["x2"], shared["w2"])


def test_everything_jits(pair):
    graph, params, a, b = pair
    jitted = jax.jit(lambda params, a, b: graph.backward(params, a, b, cotangent=jnp.ones((4, 3))))(params, a, b)
    jax.tree.map(close, jitted, graph.backward(params, a, b, cotangent=jnp.ones((4, 3))))
    close(
        jax.jit(lambda params: graph.jacobian(params, a, b, of="sub1", wrt="trunk/conv1/bias"))(params),
        graph.jacobian(params, a, b, of="sub1", wrt="trunk/conv1/bias"),
    )


ERRORS = {
    "unknown of": (dict(of="x4", wrt="x1"), ["no node 'x4'", "did you mean 'x"]),
    "unknown wrt": (dict(of="x3", wrt="w3"), ["no node and no parameters 'w3'", "did you mean 'x3'?"]),
    "not taken": (
        dict(of="x3", wrt="x0", local=True),
        ["an input of the node 'x3'", "takes 'x1', 'x2', 'w1'; got 'x0'"],
    ),
    "not its parameter": (
        dict(of="x2", wrt="w1", local=True),
        ["an input of the node 'x2'", "'x0', 'x1', 'w2'; got 'w1'"],
    ),
    "of an input": (dict(of="x0", wrt="x1", local=True), ["an input of the node 'x0'", "takes nothing; got 'x1'"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_jacobian(name, weights):
    options, parts = ERRORS[name]
    with pytest.raises(fc.FuncconvError) as error:
        course().jacobian(weights, np.ones(3), **options)
    for part in parts:
        assert part in str(error.value)


def test_errors_of_backward(weights):
    graph, x = course(), fc.Input("x", ())
    with pytest.raises(
        fc.FuncconvError, match=r"shapes \[\(3,\)\], more than one number for each example; give cotangent="
    ):
        graph.backward(weights, np.ones(3))
    with pytest.raises(fc.FuncconvError, match=r"output float64\[3\] must be like it; got float64\[2\]"):
        graph.backward(weights, np.ones(3), cotangent=np.ones(2))
    with pytest.raises(fc.FuncconvError, match="must be like the outputs"):
        fc.Graph(x, (fc.node(jnp.sin, x), x * 2)).backward({}, 1.0, cotangent=1.0)
    with pytest.raises(fc.FuncconvError, match="no node 'x9'"):
        graph.continuation(weights, np.ones(3), at="x9")


def test_integers_have_no_derivative():
    x = fc.Input("x", (3,))
    place = fc.node(jnp.argmax, x, name="place", batched=False)
    graph = fc.Graph(x, place)
    with pytest.raises(fc.FuncconvError, match="the output 'place' is int64, which has no derivative"):
        graph.backward({}, np.ones((2, 3)))
    with pytest.raises(fc.FuncconvError, match="floating values; the value of of= is int64"):
        graph.jacobian({}, np.ones((2, 3)), of="place", wrt="x")
    again = fc.Graph(x, fc.node(lambda place, x: x[place], place, x, name="largest", batched=False))
    with pytest.raises(fc.FuncconvError, match="floating values; the value of wrt= is int64"):
        again.jacobian({}, np.ones((2, 3)), of="largest", wrt="place")
