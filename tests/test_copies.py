"""Copies and pickles of graphs and layers: equal, with the same functions and the same sharing."""

import copy
import operator
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    for each in (layers, fc.node(FUNCTIONS[name], name="act"), fc.node(FUNCTIONS[name], batched=True)):
        for again in (copy.copy(each), copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert again == each
            assert hash(again) == hash(each)


def test_a_copy_is_not_traced_again():
    graph = graph_of(jax.nn.relu)
    traces = []

    @partial(jax.jit, static_argnums=0)
    def shape(graph, params):
        traces.append(graph)
        return graph.shapes(params)["trunk/square"].shape[0] + jnp.zeros(())

    for each in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        shape(each, graph.init(KEY))
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


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_pickle_is_read_in_another_process(seed, tmp_path):
    """There, hashes of texts and functions are others."""
    names = ("relu", "options", "a pool with options", "the module's, jitted", "of a class")
    graphs = {name: graph_of(FUNCTIONS[name]) for name in names}
    (tmp_path / "graphs.pickle").write_bytes(pickle.dumps(graphs))
    code = f"import {__name__} as test_copies"
    code += """
import pickle, sys, jax
jax.config.update("jax_enable_x64", True)
graphs = pickle.loads(open(sys.argv[1], "rb").read())
for name, graph in graphs.items():
    here = test_copies.graph_of(test_copies.FUNCTIONS[name])
    assert graph == here, (name, graph, here)
    assert hash(graph) == hash(here), name
    assert graph.init(jax.random.key(0)).keys() == here.init(jax.random.key(0)).keys()
print("read", len(graphs))
"""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "graphs.pickle")],
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["read", str(len(graphs))], done.stderr[-2000:]


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
