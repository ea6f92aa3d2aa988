"""Copies of a block in one loop: the values, derivatives and state of a serial of separate blocks."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close
from jaxprs import equations

import funcconv as fc

SHAPE, COPIES = (6, 6, 4), 3
TIMES = "\N{MULTIPLICATION SIGN}"


def conv(**options):
    return fc.Conv(4, 3, padding=1, **options)


def shared():
    layer, norm = conv(bias=False), fc.BatchNorm(momentum=None, count=True)
    return fc.serial(layer, norm, jnp.tanh, layer, norm)


def graph_block(channels=4):
    x = fc.Input("x", (6, 6, channels))
    return fc.Graph(x, x + fc.serial(fc.Conv(channels, 3, padding=1), jnp.tanh)(x))


def named_graph_block():
    x = fc.Input("x", SHAPE)
    return fc.Graph(x, fc.serial(conv(), jnp.tanh)(x), name="trunk")


def centered(x):
    return x - x.mean(-1, keepdims=True)


def scaled(w, x):
    return w[None, None] * x


def ones(key, shape):
    del key
    return jnp.ones(shape[-1:])


# name: a function that makes a new block
BLOCKS = {
    "a layer": conv,
    "batch norm": lambda: fc.serial(conv(bias=False), fc.BatchNorm(), jnp.tanh),
    "shared layers": shared,
    "residual": lambda: fc.residual(fc.serial(fc.GroupNorm(2), conv(), jax.nn.silu)),
    "branches": lambda: fc.parallel(fc.Conv(2, 1), fc.Conv(2, 3, padding="SAME"), merge=fc.concat),
    "spectral norm": lambda: fc.SpectralNorm(conv()),
    "a graph": graph_block,
    "a named graph": named_graph_block,
    "a function": lambda: centered,
    "a function with parameters": lambda: fc.node(scaled, init=ones),
    "a repeat": lambda: fc.repeat(fc.serial(conv(), fc.BatchNorm(), jnp.tanh), 2),
}


def graph_of(*layers, shape=SHAPE):
    x = fc.Input("x", shape)
    return fc.Graph(x, fc.serial(*layers)(x))


def pair(name):
    """Return the graph of a repeat, that of the blocks in series, and how to part a tree of the first for the other."""
    repeated = graph_of(fc.repeat(BLOCKS[name](), COPIES))
    if name == "a named graph":  # its names must differ in series
        return repeated, *unstacked_pair(repeated)
    one, series = graph_of(BLOCKS[name]()), graph_of(*(BLOCKS[name]() for _ in range(COPIES)))

    def parted(tree):
        """Part the entries by their order, which knows nothing of how a repeat names them."""
        if not tree:
            return {}
        entries, parts = series.entries, {}
        for i in range(COPIES):
            for k, entry in enumerate(one.entries):
                if entry in tree["repeat1"]:
                    own = jax.tree.map(lambda leaf, i=i: leaf[i], tree["repeat1"][entry])
                    parts[entries[i * len(one.entries) + k]] = own
        return parts

    return repeated, series, parted


def unstacked_pair(repeated):
    series, _ = fc.unstack(repeated, repeated.init(jax.random.key(0)))

    def parted(tree):
        return {name: {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], tree[name]) for i in range(3)} for name in tree}

    return series, parted


def perturbed(tree, rng):
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.asarray(rng.uniform(size=leaf.shape)) if leaf.dtype.kind == "f" else leaf, tree
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_it_equals_blocks_in_series(name, rng):
    repeated, series, parted = pair(name)
    params = perturbed(repeated.init(jax.random.key(0)), rng)
    state = repeated.init_state() if name == "spectral norm" else perturbed(repeated.init_state(), rng)
    x = jnp.asarray(rng.normal(size=(5, *SHAPE)))

    def loss(graph, split, params, x):
        y, new = graph.apply(split(params), split(state), x, train=True)
        return (y**3).sum(), (y, new, graph.apply(split(params), split(state), x)[0])

    v = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, x))
    results = []
    for graph, split in ((repeated, lambda tree: tree), (series, parted)):
        gradient = jax.grad(functools.partial(loss, graph, split), argnums=(0, 1), has_aux=True)
        results.append(jax.jit(lambda params, x, g=gradient: jax.jvp(g, (params, x), v, has_aux=True))(params, x))
    (grads, hvp, (y, new, y_eval)), (own_grads, own_hvp, (own_y, own_new, own_y_eval)) = results
    jax.tree.map(functools.partial(close, steps=8), (y, y_eval), (own_y, own_y_eval))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    jax.tree.map(functools.partial(close, steps=8), parted(new), dict(own_new))
    jax.tree.map(functools.partial(close, steps=100), (grads, hvp), (own_grads, own_hvp))


@pytest.mark.parametrize("remat", ["block", fc.checkpoint_policy, jax.checkpoint_policies.dots_saveable])
def test_remat_changes_no_derivative(remat, rng):
    block = fc.serial(conv(), fc.BatchNorm(), jnp.tanh)
    plain, saving = (graph_of(fc.repeat(block, COPIES, remat)) for remat in (None, remat))
    assert plain != saving
    params, state, x = plain.init(jax.random.key(0)), plain.init_state(), jnp.asarray(rng.normal(size=(2, *SHAPE)))

    def grad(graph):
        return jax.jit(jax.grad(lambda params: (graph.apply(params, state, x, train=True)[0] ** 2).sum()))(params)

    jax.tree.map(functools.partial(close, steps=100), grad(plain), grad(saving))
    assert fc.Graph.from_json(saving.to_json()) == saving == pickle.loads(pickle.dumps(saving))


@pytest.mark.once
def test_the_program_does_not_grow_with_the_number_of_copies():
    def sizes(n, remat):
        graph = graph_of(fc.repeat(fc.residual(fc.serial(conv(), fc.BatchNorm(), fc.Dropout(0.1), jnp.tanh)), n, remat))
        params, state = jax.eval_shape(graph.init, jax.random.key(0)), jax.eval_shape(graph.init_state)

        def loss(params, state, x, key):
            return graph.apply(params, state, x, key=key, train=True)[0].sum()

        arguments = (params, state, jax.ShapeDtypeStruct((2, *SHAPE), "float64"), jax.random.key(1))
        text = jax.jit(jax.grad(loss)).lower(*arguments).as_text()
        programs = [jax.make_jaxpr(f)(*arguments) for f in (loss, jax.grad(loss))]
        programs.append(jax.make_jaxpr(graph.init)(jax.random.key(0)))
        return [len(list(equations(program))) for program in programs], text

    for remat in (None, "block"):
        (few, short), (many, long) = sizes(2, remat), sizes(200, remat)
        assert few == many
        assert len(short.splitlines()) == len(long.splitlines())
        assert len(long) - len(short) < 0.05 * len(short)  # the digits of the number of copies


@pytest.mark.once
def test_remat_bounds_the_memory():
    def temporary(n, remat):
        graph = graph_of(fc.repeat(fc.serial(conv(), jnp.tanh, conv(), jnp.tanh), n, remat), shape=(16, 16, 4))
        params, x = jax.eval_shape(graph.init, jax.random.key(0)), jax.ShapeDtypeStruct((4, 16, 16, 4), "float64")
        grad = jax.jit(jax.grad(lambda params, x: (graph(params, x) ** 2).sum()))
        return grad.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    value = 4 * 16 * 16 * 4 * 8
    for_each_copy = {remat: (temporary(24, remat) - temporary(8, remat)) / 16 / value for remat in (None, "block")}
    assert for_each_copy["block"] < 1.5  # the input of the copy, and its parameters
    assert for_each_copy[None] > 1.5 * for_each_copy["block"]


def test_each_copy_draws_its_own_numbers():
    graph = graph_of(fc.repeat(fc.Dropout(0.5), 2), shape=(10_000,))
    x, key = jnp.ones(10_000), jax.random.key(0)
    y, _ = graph.apply({}, {}, x, key=key, train=True)
    # Two equal draws would leave half of the numbers, different ones a quarter.
    assert set(np.unique(y)) == {0.0, 4.0}
    assert abs((y > 0).mean() - 0.25) < 0.02
    assert jnp.array_equal(graph({}, x), x)
    again, _ = jax.jit(lambda key: graph.apply({}, {}, x, key=key, train=True))(key)
    assert jnp.array_equal(y, again)
    named = graph_of(fc.repeat(fc.Dropout(0.5), 2, name="other"), shape=(10_000,))
    assert not jnp.array_equal(named.apply({}, {}, x, key=key, train=True)[0], y)
    raw, _ = graph.apply({}, {}, x, key=jax.random.PRNGKey(0), train=True)  # a key without a type
    assert jnp.array_equal(raw, y)
    with pytest.raises(fc.FuncconvError, match=r"node 'repeat1': node 'dropout1'.*needs a random key"):
        graph.apply({}, {}, x, train=True)


def test_initial_weights_differ_and_do_not_depend_on_the_number_of_copies():
    two, three = (graph_of(fc.repeat(conv(), n)).init(jax.random.key(0))["repeat1"]["conv1"]["kernel"] for n in (2, 3))
    assert not jnp.array_equal(two[0], two[1])
    assert jnp.array_equal(two, three[:2])
    named = graph_of(conv(), fc.repeat(conv(), 2, name="body"))
    assert jnp.array_equal(
        named.init(jax.random.key(0))["body"]["conv1"]["kernel"],
        graph_of(fc.repeat(conv(), 2, name="body")).init(jax.random.key(0))["body"]["conv1"]["kernel"],
    )


def test_one_repeat_used_twice_shares_its_stack(rng):
    body = fc.repeat(fc.serial(conv(), fc.BatchNorm(), jnp.tanh), COPIES)
    twice = graph_of(body, body)
    assert twice.entries == ("repeat1",)
    assert twice.nodes == ("x", "repeat1", "repeat1@2")
    once = graph_of(body)
    params, state = twice.init(jax.random.key(0)), twice.init_state()
    x = jnp.asarray(rng.normal(size=(2, *SHAPE)))
    y, after = once.apply(params, state, x, train=True)
    y, after = once.apply(params, after, y, train=True)
    z, new = twice.apply(params, state, x, train=True)
    jax.tree.map(functools.partial(close, steps=8), (z, dict(new)), (y, dict(after)))
    series, own, own_state = fc.unstack(twice, params, state)
    assert len(series.entries) == 2 * COPIES
    assert series.nodes[-1] == "repeat1@2/2/tanh1"
    close(series.apply(own, own_state, x, train=True)[0], z, steps=8)
    copies = twice.unshared()
    close(copies.apply(twice.copies(params), twice.copies_of_state(state), x)[0], twice.apply(params, state, x)[0])
    two = graph_of(fc.repeat(conv(), 2, params="w"), fc.repeat(conv(), 2, params="w"))
    assert two.entries == ("w",)


def test_it_is_mapped_and_called_on_other_sizes_and_batches(rng):
    graph = graph_of(fc.repeat(fc.serial(conv(), jnp.tanh), COPIES))
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 3, *SHAPE)))
    y = graph(params, x)
    close(jax.vmap(functools.partial(graph, params))(x), y)
    close(graph(params, x[0, 0]), y[0, 0])
    stacks = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    close(jax.vmap(graph)(stacks, x)[0], y[0])
    wide = fc.Input("wide", (9, 7, 4))
    assert fc.Graph(wide, graph(wide)).entries == ("repeat1",)
    per_example = fc.per_example_grad(lambda params, x: graph(params, x).sum())(params, x[0])
    close(
        per_example["repeat1"]["conv1"]["bias"].sum(0),
        jax.grad(lambda p: graph(p, x[0]).sum())(params)["repeat1"]["conv1"]["bias"],
        steps=8,
    )
    close(
        graph.jacobian(params, x[0, 0], of="repeat1", wrt="x"),
        jax.jacobian(functools.partial(graph, params))(x[0, 0]),
        steps=8,
    )


def test_a_second_call_compiles_nothing():
    traces = []

    def counted(x):
        traces.append(1)
        return jnp.tanh(x)

    graph = graph_of(fc.repeat(fc.node(counted, batched=False), COPIES))
    x = jnp.ones((2, *SHAPE))
    graph({}, x)
    before = len(traces)
    graph({}, x)
    assert len(traces) == before


def test_masked_inputs_pass_through(rng):
    network = (fc.repeat(fc.residual(fc.serial(conv(), fc.GroupNorm(2), jnp.tanh)), COPIES), fc.global_pool)
    graph = graph_of(*network)
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, *SHAPE)))
    mask = jnp.zeros((2, 6, 6), bool).at[0, :4, :5].set(True).at[1].set(True)
    y = graph(params, fc.Masked(x, mask))
    close(y[:1], graph_of(*network, shape=(4, 5, 4))(params, x[:1, :4, :5]), steps=8)
    masked = graph.values(params, fc.Masked(x, mask), masked=True)["repeat1"]
    assert jnp.array_equal(masked.mask, mask)
    mixing = graph_of(fc.repeat(lambda x: x - x.mean((-3, -2), keepdims=True), 2))
    with pytest.raises(fc.FuncconvError, match=r"node 'repeat1': node 'lambda1'.*would mix real and masked"):
        mixing({}, fc.Masked(x, mask))


@pytest.mark.parametrize("name", [name for name in BLOCKS if "param" not in name and name != "a function"])
def test_files(name):
    graph = graph_of(fc.repeat(BLOCKS[name](), COPIES))
    equal = graph_of(fc.repeat(BLOCKS[name](), COPIES))
    assert graph == equal
    assert hash(graph) == hash(equal)
    assert graph != graph_of(fc.repeat(BLOCKS[name](), COPIES + 1))
    for again in (fc.Graph.from_json(graph.to_json()), pickle.loads(pickle.dumps(graph))):
        assert again == graph
        assert again.content_hash == graph.content_hash
        jax.tree.map(np.testing.assert_array_equal, again.init(jax.random.key(0)), graph.init(jax.random.key(0)))


def test_sharing_inside_is_part_of_the_value():
    layer = conv()
    assert fc.repeat(fc.serial(layer, layer), 2) != fc.repeat(fc.serial(conv(), conv()), 2)
    assert fc.repeat(conv(), 2) == fc.repeat(conv(), 2)
    body = fc.repeat(conv(), 2)
    assert fc.serial(body, body) != fc.serial(fc.repeat(conv(), 2), fc.repeat(conv(), 2))


@pytest.mark.parametrize("change", [{"output": 9}, {"nodes": 3}, {"shape": [-1]}, {"output": True}])
def test_damaged_files_are_refused(change):
    text = graph_of(fc.repeat(conv(), 2)).to_json()
    data = json.loads(text)
    data.pop("hash")
    data["nodes"][0]["op"]["options"]["block"]["block"] |= change
    with pytest.raises(fc.FuncconvError, match="from_json"):
        fc.Graph.from_json(json.dumps(data))


def test_functions_without_a_name_cannot_be_written():
    graph = graph_of(fc.repeat(fc.serial(conv(), lambda x: x), 2))
    with pytest.raises(fc.FuncconvError, match=r"node 'repeat1': node 'lambda1'.*register_op"):
        graph.to_json()
    with pytest.raises(pickle.PicklingError, match="repeat1"):
        pickle.dumps(graph)


@pytest.mark.parametrize("name", BLOCKS)
def test_stacking_again_is_exact(name, rng):
    graph = graph_of(conv(), fc.repeat(BLOCKS[name](), COPIES), conv())
    params, state = perturbed(graph.init(jax.random.key(0)), rng), graph.init_state()
    separate, own, own_state = fc.unstack(graph, params, state)
    assert not any("repeat(" in row.operation for row in separate.rows)
    again, again_state = fc.stack(graph, own, own_state)
    assert jax.tree.structure((again, again_state)) == jax.tree.structure((params, state))
    jax.tree.map(np.testing.assert_array_equal, (again, again_state), (params, state))
    x = jnp.asarray(rng.normal(size=(2, *SHAPE)))
    close(separate.apply(own, own_state, x)[0], graph.apply(params, state, x)[0], steps=16)
    assert fc.Graph.from_json(separate.to_json()) == separate if "function" not in name else True
    # As a part of another graph, each copy still has its own weights.
    outer = fc.Input("outer", SHAPE)
    assert len(fc.Graph(outer, separate(outer)).entries) == len(separate.entries)


def test_trees_that_cannot_be_stacked_are_refused():
    graph = graph_of(fc.repeat(conv(), 2))
    params = graph.init(jax.random.key(0))
    _, own = fc.unstack(graph, params)
    with pytest.raises(fc.FuncconvError, match=r"stack: the entry 'repeat1' must have the 2 copies \['0', '1'\]"):
        fc.stack(graph, {"repeat1": {"0": own["repeat1"]["0"]}})
    other = {"repeat1": own["repeat1"] | {"1": {"conv1": {"kernel": jnp.ones((1, 1, 4, 4))}}}}
    with pytest.raises(fc.FuncconvError, match=r"same arrays.*copy 1 has"):
        fc.stack(graph, other)
    with pytest.raises(fc.FuncconvError, match=r"unstack.*2 copies.*\(3,"):
        fc.unstack(graph, jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), params))
    with pytest.raises(fc.FuncconvError, match="missing"):
        fc.unstack(graph, {})


def test_summary_counts_every_copy():
    block = fc.residual(fc.serial(conv(), fc.BatchNorm(), jnp.tanh))
    graph = graph_of(conv(), fc.repeat(block, COPIES))
    separate, _ = fc.unstack(graph, graph.init(jax.random.key(0)))
    one, other = fc.summary(graph, 2), fc.summary(separate, 2)
    for name in ("parameters", "flops", "real_flops", "gradient_flops", "activation_bytes"):
        assert getattr(one, name) == getattr(other, name), name
    saving = graph_of(conv(), fc.repeat(block, COPIES, "block"))
    assert fc.summary(saving, 2).activation_bytes < one.activation_bytes
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    explained = fc.explain(lambda params, x: graph.apply(params, state, x)[0], params, jnp.ones((2, *SHAPE)))
    assert sum(row.times for row in explained) == COPIES + 1


def test_pictures_say_how_many_copies():
    graph = graph_of(fc.repeat(fc.serial(conv(), jnp.tanh), 12))
    for text in (fc.to_dot(graph), fc.to_mermaid(graph), fc.to_text(graph), fc.draw(graph).dot):
        assert f"{TIMES} 12" in text
        assert "Conv(4, 3, padding=1)" in text
    assert fc.to_dot(graph).count("label=") == 2  # the input, and one box
    assert TIMES not in fc.to_dot(graph_of(conv()))


RECEPTIVE = {
    "convolutions": lambda: fc.serial(conv(), jnp.tanh),
    "residual": lambda: fc.residual(fc.Conv(4, 3, padding="CAUSAL")),
    "wraps": lambda: conv(pad_mode="circular"),
    "one axis": lambda: fc.Conv(4, (3, 1), padding=((1, 1), (0, 0))),
    "dilated": lambda: fc.Conv(4, 3, padding="SAME", dilation=2),
    "down and up": lambda: fc.serial(fc.Conv(4, 2, stride=2), fc.ConvTranspose(4, 2, stride=2)),
    "a function": lambda: centered,
    "channels first": lambda: fc.Conv(6, 3, padding=1, layout="NCHW"),
    "whole": lambda: fc.serial(fc.LayerNorm(axes=3)),
}


@pytest.mark.parametrize("name", RECEPTIVE)
@pytest.mark.parametrize("n", [1, 9])
def test_receptive_fields_are_those_of_blocks_in_series(name, n):
    graph = graph_of(fc.repeat(RECEPTIVE[name](), n), shape=(6, 12, 4))
    separate, _ = fc.unstack(graph, graph.init(jax.random.key(0)))
    one, other = fc.receptive_field(graph)["x"], fc.receptive_field(separate)["x"]
    assert one == other
    for a, b in zip(one, other, strict=True):
        assert [a.interval(i) for i in range(4)] == [b.interval(i) for i in range(4)]


def test_receptive_field_of_a_long_axis():
    graph = graph_of(fc.repeat(fc.Conv(2, 3, padding=1), 5), shape=(40_000, 2))
    (axis,) = fc.receptive_field(graph)["x"]
    assert (axis.size, axis.stride, axis.padding) == (11, 1, (5, 5))


def test_a_loop_of_the_user_is_followed():
    def blurred(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: x + jnp.pad(x, ((1, 0), (0, 0)))[:-1], x)

    x = fc.Input("x", (12, 2))
    (axis,) = fc.receptive_field(fc.Graph(x, fc.node(blurred, x, batched=False)))["x"]
    assert [axis.interval(i) for i in (0, 2, 8)] == [(0, 0), (0, 2), (5, 8)]


def test_parameters_that_nothing_draws(rng):
    graph = graph_of(fc.repeat(fc.node(scaled, params="w"), 2))
    w = jnp.asarray(rng.normal(size=(2, 4)))
    params = graph.init(jax.random.key(0), repeat1={"w": w})
    x = jnp.ones((1, *SHAPE))
    close(graph(params, x)[0, 0, 0], w[0] * w[1])
    with pytest.raises(fc.FuncconvError, match=r"first axis.*2, the number of copies; 'w' has the shape \(3, 4\)"):
        graph({"repeat1": {"w": jnp.ones((3, 4))}}, x)


ERRORS = {
    r"node 'repeat1': repeat: .*float64\[6, 6, 4\].*float64\[6, 6, 5\]": lambda: (fc.Conv(5, 3, padding=1), 2),
    r"node 'repeat1': repeat: .*float64\[6, 6, 4\].*float64\[4, 4, 4\]": lambda: (fc.Conv(4, 3), 1),
    r"node 'repeat1': repeat: .*float64\[6, 6, 4\].*float32\[6, 6, 4\]": lambda: (lambda x: x.astype("float32"), 2),
    r"node 'repeat1': node 'conv1': .*window": lambda: (fc.Conv(4, 9), 2),
    r"repeat: n, the number of copies, must be a positive integer; got 0": lambda: (conv(), 0),
    r"repeat: n, the number of copies, must be a positive integer; got 2.0": lambda: (conv(), 2.0),
    r"repeat: remat must be None.*got 'all'": lambda: (conv(), 2, "all"),
    r"repeat: expected a layer.*not their classes": lambda: (fc.Flatten, 2),
    r"repeat: a block returns one value.*tuple of 2": lambda: (fc.parallel(conv(), conv()), 2),
    r"repeat: a block has one input.*a, b": lambda: (two_inputs(), 2),
    r"node 'repeat1': repeat: the block is a graph that declares.*\(6, 6, 3\).*got \(6, 6, 4\)": lambda: (
        graph_block(3),
        2,
    ),
    r"different results.*batched=False": lambda: (lambda x: x - x.mean(0), 2),
}


def two_inputs():
    a, b = fc.Input("a", SHAPE), fc.Input("b", SHAPE)
    return fc.Graph((a, b), a + b)


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    with pytest.raises(fc.FuncconvError, match=f"(?s){message}"):
        graph_of(fc.repeat(*ERRORS[message]())).init(jax.random.key(0))


def test_a_value_that_is_no_array_is_refused():
    x = fc.Input("x", SHAPE)
    pair = fc.node(lambda x: (x, x), x)
    with pytest.raises(fc.FuncconvError, match=r"node 'repeat1'"):
        fc.Graph(x, fc.repeat(conv(), 2)(pair)).init(jax.random.key(0))


def test_inputs_of_another_dtype():
    x = fc.Input("x", SHAPE, "float32")
    graph = fc.Graph(x, fc.repeat(fc.serial(conv(dtype="float32"), fc.BatchNorm(dtype="float32"), jnp.tanh), 2)(x))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    y, _ = graph.apply(params, state, jnp.ones((2, *SHAPE), "float32"), train=True)
    assert y.dtype == params["repeat1"]["conv1"]["kernel"].dtype == "float32"


def test_a_graph_with_a_repeat_can_be_edited_and_cut():
    graph = graph_of(conv(), fc.repeat(conv(), 2), conv())
    params, x = graph.init(jax.random.key(0)), jnp.ones((2, *SHAPE))
    assert graph.insert_after("repeat1", jnp.tanh).nodes == ("x", "conv1", "repeat1", "tanh1", "conv2")
    assert graph.replace("repeat1", fc.repeat(conv(), 4)).init(jax.random.key(0))["repeat1"]["conv1"]["bias"].shape == (
        4,
        4,
    )
    part = graph.subgraph("repeat1")
    close(part(part.select(params), x), graph.values(params, x)["repeat1"])
    nodes, _ = graph.backward(params, x, cotangent=jnp.ones((2, *SHAPE)))
    assert nodes["repeat1"].shape == x.shape
    inside = fc.Input("inside", SHAPE)
    trunk = fc.Graph(inside, fc.serial(fc.repeat(conv(), 2))(inside), name="trunk")
    outer = graph_of(trunk, trunk)
    assert outer.entries == ("trunk/repeat1",)
    own = outer.init(jax.random.key(0))
    separate, own_separate = fc.unstack(outer, own)
    assert separate.entries == ("trunk/repeat1/0/conv1", "trunk/repeat1/1/conv1")
    close(separate(own_separate, x), outer(own, x))


@pytest.mark.filterwarnings("ignore")  # those of jax2onnx 0.17, November 2026
def test_files_of_other_libraries_have_separate_layers(tmp_path):
    needed("torch"), needed("jax2onnx")
    x = fc.Input("x", SHAPE, "float32")
    graph = fc.Graph(x, fc.repeat(fc.residual(conv(dtype="float32")), 2)(x))
    params = graph.init(jax.random.key(0))
    for convert in (fc.interop.to_torch, fc.interop.to_torch_module):
        with pytest.raises(fc.FuncconvError, match=r"repeat1.*fc.unstack\(graph, params\)"):
            convert(graph, params)
    separate, own = fc.unstack(graph, params)
    assert len(fc.interop.to_torch(separate, own)) == 4
    assert fc.interop.to_onnx(graph, params, tmp_path / "net.onnx") == ("repeat1",)  # compares the results


def test_a_stream_is_that_of_separate_layers(rng):
    graph = graph_of(fc.repeat(fc.serial(fc.Conv(2, 3, padding="CAUSAL"), jnp.tanh), 2), shape=(8, 2))
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(1, 8, 2)))
    separate, own = fc.unstack(graph, params)
    for network, tree in ((graph, params), (separate, own)):
        stream = fc.stream(network)
        _, y = stream.step(tree, stream.init(tree, 1), x)
        close(y, graph(params, x))
