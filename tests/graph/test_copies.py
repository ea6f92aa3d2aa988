"""Copies and pickles of graphs and layers: equal, with the same functions and the same sharing."""

import copy
import operator
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import graphs as declared
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

KEY = jax.random.key(0)
IMAGE = (6, 6, 2)


@jax.jit
def squashed(x):
    return x / (1 + abs(x))


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defjvps(lambda t, *_: t)


@jax.custom_vjp
def passed(x):
    return x


passed.defvjp(lambda x: (x, None), lambda _, g: (g,))


class Functions:
    @staticmethod
    @jax.jit
    def doubled(x):
        return 2 * x


@dataclass(frozen=True)
class Scaled:
    """A function with an option that compares by value."""

    factor: float

    def __call__(self, x):
        return self.factor * x

    def backwards(self, x):
        return x / self.factor

    @classmethod
    def twice(cls, x):
        return cls(2.0)(x)


class Pair(NamedTuple):
    first: object
    second: object


def centered(x):
    return x - x.mean(0, keepdims=True)


FUNCTIONS = {
    "relu": jax.nn.relu,
    "silu, which has two names": jax.nn.swish,
    "softmax": jax.nn.softmax,
    "a ufunc": jnp.tanh,
    "another ufunc": jnp.negative,
    "an operator": operator.neg,
    "options": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "options of options": partial(partial(jax.nn.gelu, approximate=False)),
    "a function as an option": partial(fc.pool, window=2, reduce=jnp.max),
    "a pool": fc.max_pool,
    "a pool with options": partial(fc.max_pool, window=3),
    "own": fc.global_pool,
    "the module's, jitted": squashed,
    "the module's, with a derivative": clipped,
    "the module's, with a pullback": passed,
    "of a class": Functions.doubled,
    "a primitive of lax": jax.lax.tanh,
    "of scipy": jax.scipy.special.expit,
    "an instance": Scaled(0.5),
    "a method": Scaled(0.5).backwards,
    "a method of a class": Scaled.twice,
    "a getter": operator.methodcaller("clip", -1, max=1),
    "options of a getter": partial(operator.itemgetter(Ellipsis)),
}


def graph_of(function):
    """Return a graph with shared layers, a named graph, arithmetic, and layers that hold functions."""
    x, c = fc.Input("x", IMAGE), fc.Conv(2, 3, padding=1, init=jax.nn.initializers.ones)
    trunk = fc.Graph(x, fc.serial(c, fc.node(jnp.square, name="square"), function)(x), name="trunk")
    body = fc.Conv(2, 3, padding=1, name="body")
    node = fc.residual(fc.serial(body, body, fc.WeightStandardize(fc.Conv(2, 1))))(2 * x - 1)
    normed = fc.BatchNorm()(fc.node(centered, node, batched=True))
    return fc.Graph(
        {"x": x}, Pair(fc.Pool(2, reduce=jnp.median)(normed), {"trunk": trunk(x), "own": fc.serial(function)(normed)})
    )


def check_copy(again, graph, rng):
    assert again == graph
    assert hash(again) == hash(graph)
    params, x = graph.init(KEY), rng.normal(size=(3, *IMAGE))
    jax.tree.map(np.testing.assert_array_equal, again.init(KEY), params)
    state = graph.init_state()
    jax.tree.map(close, again.apply(params, state, x)[0], graph.apply(params, state, x)[0])
    y = fc.Input("y", IMAGE)  # as a part of another graph, it shares as before
    assert fc.Graph(y, again(y)).entries == fc.Graph(y, graph(y)).entries
    assert again.subgraph("trunk") == graph.subgraph("trunk")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_is_copied_and_pickled(name, rng):
    graph = graph_of(FUNCTIONS[name])
    assert graph == graph_of(FUNCTIONS[name])
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        check_copy(pickle.loads(pickle.dumps(graph, protocol)), graph, rng)
    for copied in (copy.copy(graph), copy.deepcopy(graph), copy.deepcopy([graph, graph])[1]):
        check_copy(copied, graph, rng)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layers_and_compositions_are_copied_and_pickled(name):
    layers = fc.serial(fc.residual(fc.Conv(2, 1)), fc.parallel(FUNCTIONS[name], jnp.tanh, merge=fc.concat))
    for layer in (layers, fc.node(FUNCTIONS[name], name="act"), fc.node(FUNCTIONS[name], batched=True)):
        for again in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert again == layer
            assert hash(again) == hash(layer)


def test_a_copy_is_not_traced_again():
    graph = graph_of(jax.nn.relu)
    traces = []

    @partial(jax.jit, static_argnums=0)
    def shape(graph, params):
        traces.append(graph)
        return graph.shapes(params)["trunk/square"].shape[0] + jnp.zeros(())

    for copied in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        shape(copied, graph.init(KEY))
    assert len(traces) == 1


def test_a_graph_with_a_lambda_is_copied_and_says_why_it_is_not_pickled(rng):
    for function in (lambda x: 2 * x, jax.jit(lambda x: 2 * x), partial(lambda x, n: n * x, n=2)):
        graph = graph_of(function)
        check_copy(copy.deepcopy(graph), graph, rng)
        with pytest.raises(pickle.PicklingError, match=r"cannot be pickled.*top level of a module"):
            pickle.dumps(graph)


def test_a_name_that_stands_for_another_function_is_not_pickled():
    other = partial(jnp.clip, min=0)
    other = jax.jit(other.func)
    assert other is not jnp.clip
    with pytest.raises(pickle.PicklingError, match="cannot be pickled"):
        pickle.dumps(fc.node(other))


def test_a_deep_copy_of_a_layer_has_weights_of_its_own():
    x, c = fc.Input("x", IMAGE), fc.Conv(2, 3, padding=1)
    assert fc.Graph(x, copy.deepcopy(c)(c(x))).entries == ("conv1", "conv2")
    pair = copy.deepcopy([c, c])
    assert fc.Graph(x, pair[0](pair[1](x))).entries == ("conv1",)
    trunk = fc.Graph(x, c(c(x)))
    assert fc.Graph(x, copy.deepcopy(trunk)(trunk(x))).entries == ("conv1", "conv2")


def test_an_object_that_is_equal_to_no_copy_is_not_pickled():
    class Squared:
        def __call__(self, x):
            return x * x

        def cubed(self, x):
            return x**3

    for function in (Squared(), Squared().cubed, partial(Squared())):
        with pytest.raises(pickle.PicklingError, match=r"node 'mine': .*compares by identity.*frozen dataclass"):
            pickle.dumps(fc.Graph(x := fc.Input("x", (3,)), fc.node(function, x, name="mine")))


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        (b"squashed", b"squished", fc.FuncconvError, "needs the function 'squished' of the module .*test_copies"),
        (b"window", b"wxndow", fc.FuncconvError, "a Conv of another version, with the options .*'wxndow'"),
        (b"Conv", b"Comv", AttributeError, "Comv"),
    ],
)
def test_what_a_pickle_names_and_is_not_there_is_said(old, new, error, said):
    text = pickle.dumps(fc.serial(fc.Conv(2, 3), fc.node(squashed, batched=False)))
    with pytest.raises(error, match=said):
        pickle.loads(text.replace(old, new))


def test_what_is_remembered_does_not_travel():
    graph = graph_of(jax.nn.relu)
    text = pickle.dumps(graph)
    params, state = graph.init(KEY), graph.init_state()
    graph.apply(params, state, jnp.ones((1, *IMAGE))), fc.summary(graph), hash(graph)
    assert pickle.dumps(graph) == text


def layers_and_graphs():
    """Return what travels, by name: layers, compositions and graphs, of each kind of layer and function."""
    objects_by_name = {f"a graph of {name}": graph_of(function) for name, function in FUNCTIONS.items()}
    objects_by_name |= {f"a layer of {name}": fc.node(function, name="act") for name, function in FUNCTIONS.items()}
    graphs = {declare.__name__: declare() for declare in (declared.everything, declared.nested)}
    graphs |= {"arithmetic": declared.arithmetic(), "part": declared.nested().subgraph("trunk")}
    layers = dict.fromkeys(row.op for graph in graphs.values() for row in graph.rows)
    objects_by_name |= graphs | {f"layer {i}": layer for i, layer in enumerate(layers)}
    c = fc.Conv(2, 1)
    alone = [fc.serial(c, c), fc.parallel(c, jnp.tanh, merge=fc.concat), fc.residual(c, c), fc.siamese(c, jnp.subtract)]
    return objects_by_name | {f"composition {i}": composition for i, composition in enumerate(alone)}


def texts(graph):
    """Return the JSON of a graph and its hash, None where a function of it has no name."""
    try:
        return graph.to_json(), graph.content_hash
    except (AttributeError, fc.FuncconvError):
        return None


ELSEWHERE = """
import pickle, sys
import jax

def main():
    jax.config.update("jax_enable_x64", True)
    import NAME as test_copies
    things, texts = pickle.load(open("things.pickle", "rb"))
    here = test_copies.layers_and_graphs()
    assert things.keys() == here.keys()
    for name, thing in things.items():
        assert thing == here[name] and hash(thing) == hash(here[name]), name
        assert " at 0x" in repr(thing) or repr(thing) == repr(here[name]), name
        assert test_copies.texts(thing) == test_copies.texts(here[name]) == texts[name], name
        if texts[name]:
            assert type(thing).from_json(texts[name][0]) == thing, name
    pickle.dump(things, open("back.pickle", "wb"))
    print("read", len(things))

if __name__ == "__main__":
    main()
"""


def test_all_travel_to_another_process_and_back(tmp_path):
    """There, hashes of texts and functions are others."""
    objects = layers_and_graphs()
    written = {name: texts(value) for name, value in objects.items()}
    assert sum(text is not None for text in written.values()) > 3
    (tmp_path / "things.pickle").write_bytes(pickle.dumps((objects, written)))
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE.replace("NAME", __name__))
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    process = subprocess.run(
        [sys.executable, "elsewhere.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.split() == ["read", str(len(objects))], process.stderr[-2000:]
    assert pickle.loads((tmp_path / "back.pickle").read_bytes()) == objects


def test_all_travel_by_cloudpickle():
    cloudpickle = pytest.importorskip("cloudpickle")
    for name, value in layers_and_graphs().items():
        again = pickle.loads(cloudpickle.dumps(value))
        assert again == value, name
        assert hash(again) == hash(value), name


def test_equal_options_have_equal_json():
    x = fc.Input("x", IMAGE)
    for one, two in (
        (fc.Dropout(0), fc.Dropout(0.0)),
        (fc.Pool(p=2.0, reduce="lp"), fc.Pool(p=2, reduce="lp")),
        (fc.Conv(2, 1, bias=0), fc.Conv(2, 1, bias=False)),
        (fc.BatchNorm(momentum=1), fc.BatchNorm(momentum=1.0)),
        (fc.GroupNorm(2, epsilon=np.float64(0.5)), fc.GroupNorm(2, epsilon=0.5)),
    ):
        graphs = fc.Graph(x, one(x)), fc.Graph(x, two(x))
        assert graphs[0] == graphs[1]
        assert graphs[0].to_json() == graphs[1].to_json()


def test_a_graph_from_json_shares_as_before():
    x, c = fc.Input("x", IMAGE), fc.Conv(2, 3, padding=1, name="c")
    graph = fc.Graph(x, c(jnp_tanh(c(x))))
    again = fc.Graph.from_json(graph.to_json())
    assert again == graph
    y = fc.Input("y", IMAGE)
    assert fc.Graph(y, again(y)).entries == ("c",)


def jnp_tanh(node):
    return fc.node(jnp.tanh, node)


def test_an_unshared_graph_stays_unshared_in_another():
    x, c = fc.Input("x", IMAGE), fc.Conv(2, 3, padding=1, name="c")
    given = fc.node(jnp.multiply, c(c(x)), params="w")
    unshared = fc.Graph(x, fc.node(jnp.multiply, given, params="w")).unshared()
    y = fc.Input("y", IMAGE)
    assert len(fc.Graph(y, unshared(y)).entries) == 4
