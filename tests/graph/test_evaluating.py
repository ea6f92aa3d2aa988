"""Parts of a graph in evaluation mode while the rest is in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

KEY = jax.random.key(0)
WIDTH = 4


def layers():
    return fc.serial(fc.Dense(WIDTH), fc.BatchNorm(), fc.Dropout(0.5))


def trunk_and_head():
    x = fc.Input("x", (WIDTH,))
    trunk = fc.Graph(x, layers()(x), name="trunk")
    return fc.Graph(x, fc.serial(trunk, jnp.tanh, layers())(x))


def everything():
    """A graph with a trunk that is used twice, a repeat with a repeat in it, and layers of their own."""
    x = fc.Input("x", (WIDTH,))
    trunk = fc.Graph(x, layers()(x), name="trunk")
    block = fc.serial(fc.residual(layers()), fc.repeat(fc.serial(fc.BatchNorm(), fc.Dropout(0.5)), 2))
    own = fc.serial(fc.BatchNorm(name="use", params="norm"), fc.Dropout(0.5))
    return fc.Graph(x, fc.serial(trunk, trunk, fc.repeat(block, 3), own)(x))


def changed(before, after):
    """Return the names of the entries that differ."""
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    paths = [path for (path, leaf), other in leaves if not np.array_equal(leaf, other)]
    return {jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path in paths}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(3, 2, size=(8, WIDTH)))


@pytest.mark.parametrize("pattern", ["trunk", "trunk/*", ["trunk/dense1", "trunk/batch_norm*", "*/dropout1"]])
def test_a_part_is_evaluated_and_the_rest_is_trained(x, pattern):
    graph = trunk_and_head()
    trunk = graph.subgraph("trunk")
    params, state = graph.init(KEY), graph.init_state()
    # As by hand: two parts, each in its mode.
    between = jnp.tanh(trunk.apply(params["trunk"], state["trunk"], x)[0])
    y, after = graph.apply(params, state, x, key=KEY, train=True, evaluating=pattern)
    expected, _ = graph.apply(params, state, x, key=KEY, train=True, edits={"tanh1": between})
    close(y, expected)
    assert changed(state, after) == {"batch_norm1"}
    all_trained, _ = graph.apply(params, state, x, key=KEY, train=True)
    assert not np.allclose(y, all_trained)


@pytest.mark.parametrize(
    ("pattern", "stay"),
    [
        ("trunk/*", {"trunk/batch_norm1"}),
        ("trunk@2/*", set()),  # the first use still changes the statistics, which both share
        (["trunk@2/*", "trunk/batch_norm1"], {"trunk/batch_norm1"}),
        ("repeat1", {"repeat1/batch_norm1", "repeat1/repeat1/batch_norm1"}),
        ("repeat1/*", {"repeat1/batch_norm1", "repeat1/repeat1/batch_norm1"}),
        ("repeat1/batch_norm1", {"repeat1/batch_norm1"}),
        ("repeat1/repeat1", {"repeat1/repeat1/batch_norm1"}),
        ("repeat1/repeat1/batch*", {"repeat1/repeat1/batch_norm1"}),
        ("*/repeat1/*", {"repeat1/repeat1/batch_norm1"}),
        ("use", {"norm"}),
        ("norm", {"norm"}),
        ("norm/*", {"norm"}),
        ("trunk/*/*", {"trunk/batch_norm1"}),  # all arrays, as `frozen` names them
        ("*dropout*", set()),
        ("*", {"trunk/batch_norm1", "repeat1/batch_norm1", "repeat1/repeat1/batch_norm1", "norm"}),
    ],
)
def test_the_statistics_of_these_nodes_stay(x, pattern, stay):
    graph = everything()
    params, state = graph.init(KEY), graph.init_state()
    _, trained = graph.apply(params, state, x, key=KEY, train=True)
    _, after = graph.apply(params, state, x, key=KEY, train=True, evaluating=pattern)
    assert changed(state, trained) - changed(state, after) == stay
    assert changed(state, after) <= changed(state, trained)


def test_everything_in_evaluation_is_evaluation(x):
    graph = everything()
    params, state = graph.init(KEY), graph.init_state()
    y, after = graph.apply(params, state, x, train=True, evaluating="*")
    jax.tree.map(np.testing.assert_array_equal, (y, after), graph.apply(params, state, x))


@pytest.mark.parametrize("remat", [None, "block"])
def test_a_row_in_a_repeat_is_evaluated_as_in_separate_copies(x, remat):
    layer = fc.repeat(fc.residual(layers()), 3, remat)
    i = fc.Input("x", (WIDTH,))
    graph = fc.Graph(i, layer(i))
    params, state = graph.init(KEY), graph.init_state()
    separate, own_params, own_state = fc.unstack(graph, params, state)
    # No key is needed, because the only layers that draw are in evaluation.
    y, after = graph.apply(params, state, x, train=True, evaluating="repeat1/dropout1")
    expected, own_after = separate.apply(own_params, own_state, x, train=True, evaluating="repeat1/*/dropout1")
    close(y, expected)
    jax.tree.map(close, after, fc.stack(graph, own_params, own_after)[1])
    assert changed(state, after) == {"repeat1/batch_norm1"}
    other, _ = graph.apply(params, state, x, key=KEY, train=True, evaluating="repeat1/batch_norm1")
    assert not np.allclose(y, other)


def test_masked_inputs(x):
    i = fc.Input("x", (5, WIDTH))
    graph = fc.Graph(i, fc.serial(fc.BatchNorm(), fc.repeat(fc.serial(fc.BatchNorm(), fc.Dropout(0.5)), 2))(i))
    params, state = graph.init(KEY), graph.init_state()
    masked = fc.Masked(jnp.tile(x[:, None], (1, 5, 1)), jnp.asarray(np.arange(5) < np.arange(1, 9)[:, None] % 5))
    for pattern, stay in (("batch_norm1", "batch_norm1"), ("repeat1/*", "repeat1/batch_norm1")):
        evaluating = [pattern, "*dropout1"]
        y, after = graph.apply(params, state, masked, train=True, evaluating=evaluating, masked=True)
        assert isinstance(y, fc.Masked)
        assert changed(state, after) == {"batch_norm1", "repeat1/batch_norm1"} - {stay}


def test_transformations(x):
    graph = everything()
    params, state = graph.init(KEY), graph.init_state()
    traces = []

    @jax.jit
    def value(params, state, x):
        traces.append(0)
        y, state = graph.apply(params, state, x, key=KEY, train=True, evaluating=("trunk", "repeat1/dropout1"))
        return jnp.square(y).sum(), state

    eager = value.__wrapped__(params, state, x)
    traces.clear()
    for _ in range(2):
        jax.tree.map(close, value(params, state, x), eager)
    assert len(traces) == 1
    gradient, _ = jax.grad(value, has_aux=True)(params, state, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    close(
        jax.vmap(lambda x: value(params, state, x)[0])(jnp.stack([x, 2 * x])),
        [value(params, state, x)[0], value(params, state, 2 * x)[0]],
    )


def test_a_traced_program_without_it_stays(x):
    """Checkpoints record a digest of the traced step."""
    graph = everything()
    params, state = graph.init(KEY), graph.init_state()

    def program(**options):
        return str(jax.make_jaxpr(lambda x: graph.apply(params, state, x, key=KEY, train=True, **options)[0])(x))

    assert program() == program(evaluating=()) == program(evaluating=[])
    assert program() != program(evaluating="use")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("trnk/*", r"evaluating='trnk/\*' matches no node and no entry; did you mean 'trunk/dense1'"),
        (["trunk", "dense9"], "evaluating='dense9' matches no node"),
        ("trunk/dense1/kernel", "matches no node"),  # a part of the parameters of a node
        ("", "evaluating='' matches no node"),
        (3, "must be patterns of names of nodes.*got 3"),
        ([None], "must be patterns of names of nodes.*got None"),
        (True, "must be patterns of names of nodes.*got True"),
    ],
)
def test_patterns_that_match_nothing(x, pattern, said):
    graph = trunk_and_head()
    for train in (False, True):
        with pytest.raises(fc.FuncconvError, match=said):
            graph.apply(graph.init(KEY), graph.init_state(), x, key=KEY, train=train, evaluating=pattern)


def test_it_is_an_option_and_no_input(x):
    graph = trunk_and_head()
    with pytest.raises(fc.FuncconvError, match="did you mean 'evaluating'"):
        graph.apply(graph.init(KEY), graph.init_state(), x, evaluate="trunk")
