"""Values inside of a repeat, edits of them, and norms folded there: what separate copies give."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compare import close

import funcconv as fc

ONE = fc.residual(fc.serial(fc.Conv(4, 3, padding=1), fc.BatchNorm(), jnp.tanh))
NESTED = fc.serial(fc.repeat(fc.serial(fc.Conv(4, 1, bias=False), fc.BatchNorm(), jnp.tanh), 2), jnp.sin)


def graphs_of(block, rng, **options):
    """Return a function of edits for three copies of a block and one for separate copies, and their values."""
    x = fc.Input("x", (5, 5, 4))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 1), fc.repeat(block, 3, **options))(x))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), state)
    separate, own, own_state = fc.unstack(graph, params, state)
    images = jnp.asarray(rng.normal(size=(2, 5, 5, 4)))

    def call(graph, params, state, edits):
        return graph.apply(params, state, images, edits=edits)[0]

    values = graph.values(params, images, state=state), separate.values(own, images, state=own_state)
    return partial(call, graph, params, state), partial(call, separate, own, own_state), *values


@pytest.mark.parametrize("options", [{}, {"remat": "block"}], ids=["plain", "remat"])
def test_values_inside_have_an_axis_of_copies(options, rng):
    _, _, values, separate = graphs_of(ONE, rng, **options)
    inner = {"conv1", "batch_norm1", "tanh1", "add1"}
    assert set(values) == {"x", "conv1", "repeat1", *(f"repeat1/{name}" for name in inner)}
    for name in inner:
        close(values[f"repeat1/{name}"], jnp.stack([separate[f"repeat1/{i}/{name}"] for i in range(3)]), steps=8)


@pytest.mark.parametrize("options", [{}, {"remat": "block"}], ids=["plain", "remat"])
def test_edits_reach_all_copies_or_one(options, rng):
    ours, theirs, values, _ = graphs_of(ONE, rng, **options)
    double, name = (lambda value: 2 * value), "repeat1/{}/tanh1"
    close(ours({"repeat1/tanh1": double}), theirs({name.format(i): double for i in range(3)}), steps=8)
    close(ours({name.format(1): double}), theirs({name.format(1): double}), steps=8)
    new = jnp.asarray(rng.normal(size=values["repeat1/tanh1"].shape))
    close(ours({"repeat1/tanh1": new}), theirs({name.format(i): new[i] for i in range(3)}), steps=8)
    close(ours({name.format(2): new[0]}), theirs({name.format(2): new[0]}), steps=8)
    both = {"repeat1/tanh1": double, name.format(0): new[0]}  # one after the other
    close(ours(both), theirs({name.format(0): new[0], **{name.format(i): double for i in (1, 2)}}), steps=8)
    gradient, own = (jax.grad(lambda a, f=f: f({name.format(1): a}).sum())(new[0]) for f in (ours, theirs))
    close(gradient, own, steps=100)


def test_repeats_within_repeats(rng):
    ours, theirs, values, separate = graphs_of(NESTED, rng)
    name, each = "repeat1/{}/repeat1/{}/conv1", [(i, j) for i in range(3) for j in range(2)]
    stacked = values["repeat1/repeat1/conv1"]
    assert stacked.shape == (3, 2, 2, 5, 5, 4)
    close(stacked[2, 1], separate[name.format(2, 1)], steps=8)
    new = jnp.asarray(rng.normal(size=stacked.shape))
    for ours_at, theirs_at in (
        (("repeat1/repeat1/conv1", new), {name.format(*at): new[at] for at in each}),
        (("repeat1/1/repeat1/conv1", new[1]), {name.format(1, j): new[1, j] for j in range(2)}),
        (("repeat1/repeat1/1/conv1", new[:, 1]), {name.format(i, 1): new[i, 1] for i in range(3)}),
        ((name.format(1, 0), new[1, 0]), {name.format(1, 0): new[1, 0]}),
        ((name.format(1, 0), jnp.zeros_like), {name.format(1, 0): jnp.zeros_like}),
    ):
        close(ours(dict([ours_at])), theirs(theirs_at), steps=8)


def test_values_of_masked_inputs(rng):
    x = fc.Input("x", (6, 4))
    graph = fc.Graph(x, fc.repeat(fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh), 2)(x))
    params, signal = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(1, 6, 4)))
    given = fc.Masked(signal, jnp.arange(6)[None] < 4)
    values = graph.values(params, given, masked=True)
    assert values["repeat1/tanh1"].mask.shape == (2, 1, 6)
    close(graph.values(params, given)["repeat1/tanh1"], values["repeat1/tanh1"].x)


def test_wrong_edits_are_refused(rng):
    call, _, values, _ = graphs_of(ONE, rng)
    for name, edit, match in (
        ("repeat1/conv7", jnp.zeros_like, "node 'repeat1': edits: its block has no node 'conv7'; did you mean 'conv1'"),
        ("repeat1/1/conv7", jnp.zeros_like, "no node '1/conv7'; did you mean 'conv1'"),
        ("repeat1/3/conv1", jnp.zeros_like, "3 copies, from 0 to 2; got 3 for the node 'conv1'"),
        ("repeat1/conv1", values["repeat1/conv1"][0], r"an entry for each copy.*\(3,\); got the shape \(2, 5, 5, 4\)"),
        (
            "repeat1/conv1",
            lambda value: value[:1],
            r"'repeat1/conv1' must be like its value.*got float64\[1, 5, 5, 4\]",
        ),
        ("repeat2/conv1", jnp.zeros_like, "the graph has no node 'repeat2/conv1'"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            call({name: edit})
    x = fc.Input("x", (4,))
    act = fc.node(jnp.tanh, name="act")
    graph = fc.Graph(x, fc.repeat(fc.serial(act, fc.Graph(x, act(x), name="0")), 2)(x))
    with pytest.raises(fc.FuncconvError, match="'0/act' can be a node in all copies, or 'act' in copy 0"):
        graph({}, jnp.ones(4), edits={"repeat1/0/act": jnp.zeros_like})


@pytest.mark.parametrize("block", [ONE, NESTED], ids=["one", "nested"])
def test_norms_are_folded_in_each_copy(block, rng):
    x = fc.Input("x", (5, 5, 4))
    body = fc.repeat(block, 3, "block")
    graph = fc.Graph(x, fc.serial(body, body, fc.Conv(2, 1), fc.BatchNorm())(x))  # used twice
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    params, state = (
        jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), tree) for tree in (params, state)
    )
    folded, own, own_state = graph.fold_norms(params, state)
    assert own_state == {}
    assert "BatchNorm" not in repr(folded.rows)
    images = jnp.asarray(rng.normal(size=(2, 5, 5, 4)))
    close(folded(own, images), graph.apply(params, state, images)[0], steps=100)
