"""Channels that are removed from graphs: which go together, and what stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._graph.prune.follow import follow_channels


def image(size=8, channels=2):
    return fc.Input("x", (size, size, channels))


def network(*layers, size=8, channels=2):
    x = image(size, channels)
    return fc.Graph(x, fc.serial(*layers)(x))


def residual():
    x = image()
    y = fc.serial(fc.Conv(6, 3, padding=1), fc.BatchNorm(), jax.nn.relu)(x)
    y = fc.serial(fc.Conv(6, 3, padding=1), fc.BatchNorm())(y) + y
    return fc.Graph(x, fc.serial(fc.global_pool, fc.Dense(3))(y))


def concatenated():
    x = image()
    a, b = fc.Conv(4, 3, padding=1)(x), fc.Conv(3, 1)(x)
    return fc.Graph(x, fc.serial(fc.Conv(5, 3), fc.global_pool, fc.Dense(2))(fc.concat(a, b, a)))


def gated():
    """Squeeze and excitation, and a gate of one channel for all positions."""
    x = image()
    y = fc.Conv(6, 3)(x)
    scale = fc.serial(fc.global_pool, fc.Dense(3), jax.nn.relu, fc.Dense(6), jax.nn.sigmoid)(y)
    y = fc.node(lambda y, scale: y * scale[None, None], y, scale, batched=False)
    y = y * fc.Conv(1, 1)(y)
    return fc.Graph(x, fc.serial(fc.global_pool, fc.Dense(2))(y))


def shared():
    left, right = fc.Input("left", (8, 8, 2)), fc.Input("right", (8, 8, 2))
    trunk = fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Conv(5, 3), fc.Flatten())
    return fc.Graph((left, right), fc.Dense(2)(abs(trunk(left) - trunk(right))))


def nested():
    x = image()
    trunk = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Conv(6, 3))(x), name="trunk")
    return fc.Graph(x, fc.serial(fc.max_pool, fc.Flatten(), fc.Dense(2))(trunk(x)))


def unet():
    x = image()
    skip = fc.serial(fc.Conv(4, 3, padding=1), fc.InstanceNorm(), jnp.tanh)(x)
    deep = fc.serial(fc.Conv(6, 3, padding=1, stride=2), jnp.tanh, fc.ConvTranspose(5, 2, stride=2))(skip)
    return fc.Graph(x, fc.Conv(2, 1)(fc.concat(skip, deep)))


def moved():
    """Channels that are padded with zeros, and turned round."""
    x = image()
    y = fc.serial(fc.Conv(4, 3), lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)]))(x)
    return fc.Graph(x, fc.serial(lambda x: x[..., ::-1], fc.Conv(3, 1), fc.global_pool, fc.Dense(2))(y))


def shuffle(x):
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def by_alpha(alpha, x):
    return jnp.where(x > 0, x, jnp.broadcast_to(alpha, x.shape) * x)


NETWORKS = {
    "plain": lambda: network(fc.Conv(5, 3), fc.BatchNorm(), jax.nn.relu, fc.Conv(4, 3), fc.Flatten(), fc.Dense(2)),
    "channels first": lambda: network(fc.Conv(5, 3), fc.Flatten(order="channels_first"), fc.Dense(4), fc.Dense(2)),
    "depthwise": lambda: network(
        fc.Conv(6, 1), fc.Conv(12, 3, groups=6), jax.nn.relu6, fc.Conv(4, 1), fc.global_pool, fc.Dense(2)
    ),
    "groups": lambda: network(
        fc.Conv(6, 1), jax.nn.relu, fc.Conv(9, 3, groups=3), fc.ConvTranspose(6, 2, groups=3), fc.Conv(2, 1)
    ),
    "group norm": lambda: network(fc.Conv(6, 3), fc.GroupNorm(3), jnp.tanh, fc.LocalConv(4, 3), fc.Conv(2, 1)),
    "kernels": lambda: network(
        fc.WeightNorm(fc.Conv(5, 3)), jnp.tanh, fc.Conv(4, 1), fc.WeightStandardize(fc.Dense(2))
    ),
    "pools": lambda: network(
        fc.Conv(5, 3), fc.Pool(2, reduce="mean"), fc.Dropout(0.5), lambda x: fc.resize(x, (5, 5)), fc.Conv(2, 1)
    ),
    "alpha": lambda: network(
        fc.Conv(5, 3), fc.node(by_alpha, init=lambda _, shape: jnp.full(shape[-1:], 0.2)), fc.Conv(2, 1)
    ),
    "mean": lambda: network(fc.Conv(5, 3), lambda x: x.mean((-3, -2)) + 1, fc.Dense(2)),
    "residual": residual,
    "concatenated": concatenated,
    "gated": gated,
    "shared": shared,
    "nested": nested,
    "U-Net": unet,
    "moved": moved,
}


def at_zero(graph, params, removed):
    """Return edits that put zeros in place of the removed channels of each value."""
    found = follow_channels(graph, params)
    gone = set()
    for name, channels in removed.items():
        gone |= set(found.channels.sets(found.values[graph.nodes.index(name)])[list(channels)].tolist())
    masks = (~np.isin(found.channels.sets(numbers), list(gone)) for numbers in found.values)
    return {
        name: lambda value, mask=mask: jnp.where(np.broadcast_to(mask, value.shape), value, 0)
        for name, mask in zip(graph.nodes, masks, strict=True)
        if not mask.all()
    }


def random_state(graph, rng):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), graph.init_state())


@pytest.mark.parametrize("name", NETWORKS)
def test_without_channels_the_outputs_are_those_with_zeros_in_their_place(name, rng):
    graph = NETWORKS[name]()
    params, state = graph.init(jax.random.key(0)), random_state(graph, rng)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    xs = [jnp.asarray(rng.normal(size=(3, 8, 8, 2))) for _ in graph.inputs]
    groups = graph.channel_groups(params)
    assert groups
    for _ in range(3):
        chosen = [groups[i] for i in rng.permutation(len(groups))[: max(1, len(groups) // 3)]]
        gone = {name: sorted(c for group in chosen for c in group.get(name, ())) for name in graph.nodes}
        sizes = {name: spec.shape[-1] for name, spec in graph.shapes(params).items()}
        keep = {name: np.setdiff1d(np.arange(sizes[name]), own) for name, own in gone.items() if own}
        keep = {name: own for name, own in keep.items() if own.size}
        if any(len(own) == sizes[name] for name, own in gone.items()):
            continue  # no channel would be left
        pruned = graph.prune(params, keep, state)
        assert pruned.removed == {name: tuple(own) for name, own in gone.items() if own}
        assert pruned.graph.nodes == graph.nodes
        assert sum(map(np.size, jax.tree.leaves(pruned.params))) < sum(map(np.size, jax.tree.leaves(params)))
        expected, _ = graph.apply(params, state, *xs, edits=at_zero(graph, params, pruned.removed))
        actual, _ = jax.jit(pruned.graph.apply)(pruned.params, pruned.state, *xs)
        close(actual, expected)


def test_zero_parameters_can_be_removed_without_a_change(rng):
    graph = residual()
    params, state = graph.init(jax.random.key(0)), random_state(graph, rng)
    zeroed = dict(params)
    for name in ("conv1", "conv2", "batch_norm1", "batch_norm2"):
        zeroed[name] = {part: leaf.at[..., 2].set(0) for part, leaf in params[name].items()}
    pruned = graph.prune(zeroed, {"conv1": np.arange(6) != 2}, state)
    assert pruned.removed == {"conv1": (2,), "conv2": (2,)}
    x = jnp.asarray(rng.normal(size=(3, 8, 8, 2)))
    close(pruned.graph.apply(pruned.params, pruned.state, x)[0], graph.apply(zeroed, state, x)[0])
    assert pruned.state["batch_norm2"]["mean"].shape == (5,)
    # A gradient is a tree like the parameters.
    gradient = jax.grad(lambda params: graph.apply(params, state, x)[0].sum())(zeroed)
    own = jax.grad(lambda params: pruned.graph.apply(params, pruned.state, x)[0].sum())(pruned.params)
    jax.tree.map(close, own, graph.prune(gradient, {"conv1": np.arange(6) != 2}, state).params)


def test_groups_are_reported():
    graph = NETWORKS["depthwise"]()
    assert graph.channel_groups()[:1] == [{"conv1": (0,), "conv2": (0, 1)}]
    assert len(graph.channel_groups()) == 6 + 4
    params = graph.init(jax.random.key(0))
    with pytest.raises(fc.FuncconvError, match=r"together with these: \{'conv1': \(1,\), 'conv2': \(2, 3\)\}"):
        graph.prune(params, {"conv2": np.arange(12) != 3})
    pruned = graph.prune(params, {"conv1": [5, 0]})
    assert pruned.removed["conv2"] == tuple(range(2, 10))
    assert pruned.graph.rows[1].op == fc.Conv(4, 3, groups=2)


@pytest.mark.parametrize(
    ("layers", "keep", "message"),
    [
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv2": [0]}, "channel 1 of node 'conv2' .* in the output 'conv2'"),
        (
            (fc.Conv(4, 3), fc.Conv(2, 1)),
            {"x": [0]},
            "channel 1 of node 'x' .* belongs to the input",
        ),
        ((fc.Conv(4, 3), fc.LayerNorm(), fc.Conv(2, 1)), {"conv1": [0]}, "goes into node 'layer_norm1'"),
        ((fc.Conv(4, 3), jax.nn.softmax, fc.Conv(2, 1)), {"conv1": [0]}, "goes into node 'softmax1'"),
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv3": [0]}, "prune: the graph has no node 'conv3'"),
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv1": [0, 4]}, "numbers from 0 to 3 or 4 booleans"),
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv1": [0, 0]}, "each at most once"),
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv1": []}, "at least one"),
        ((fc.Conv(4, 3), fc.Conv(2, 1)), {"conv1": [False] * 4}, "node 'conv1' would have no channels"),
        ((fc.Conv(4, 3), fc.WeightStandardize(fc.Conv(2, 1))), {"conv1": [0]}, "is normalized together with other"),
        ((fc.Conv(4, 3), lambda x: x[..., 1:3], fc.Conv(2, 1)), {"conv1": [1, 2, 3]}, "node 'lambda1' takes other"),
        ((fc.Conv(8, 3), shuffle, fc.Conv(2, 1)), {"conv1": [0, 1, 2, 5]}, "node 'shuffle1' takes other"),
        ((fc.Conv(4, 3), shuffle, fc.Conv(2, 1)), {"conv1": [0, 1, 2]}, "node 'shuffle1': .* failed on inputs"),
        ((fc.Conv(4, 3), fc.repeat(fc.Conv(4, 1), 2), fc.Conv(2, 1)), {"conv1": [0]}, "goes into node 'repeat1'"),
    ],
)
def test_what_cannot_be_removed_is_named(layers, keep, message):
    graph = network(*layers)
    with pytest.raises(fc.FuncconvError, match=message):
        graph.prune(graph.init(jax.random.key(0)), keep)


def test_channels_are_not_chosen_while_tracing():
    graph = NETWORKS["plain"]()
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    with pytest.raises(fc.FuncconvError, match=r"outside of jax.jit"):
        jax.jit(lambda keep: graph.prune(params, {"conv1": keep}, state).params)(jnp.arange(2))
    traced = jax.jit(lambda params: graph.prune(params, {"conv1": [0, 3]}, state).params)(params)
    jax.tree.map(close, traced, graph.prune(params, {"conv1": [0, 3]}, state).params)
    with pytest.raises(fc.FuncconvError, match="keeps a state"):
        graph.prune(params, {"conv1": [0]})


def test_importance_by_norm():
    graph = NETWORKS["plain"]()
    params = graph.init(jax.random.key(0))
    scores = fc.importance(graph, params)
    assert list(scores) == ["conv1", "conv2"]
    close(scores["conv1"], jnp.abs(params["conv1"]["kernel"]).sum((0, 1, 2)))
    squares = fc.importance(graph, params, p=2)
    close(squares["conv2"], jnp.sqrt(jnp.square(params["conv2"]["kernel"]).sum((0, 1, 2))))
    # Both kernels of a sum, and channels that stay.
    both = fc.importance(residual(), residual().init(jax.random.key(0)))
    close(both["conv1"], both["conv2"])
    x = image()
    a, b = fc.Conv(2, 1)(x), fc.Conv(1, 1)(x)
    graph = fc.Graph(x, (fc.Conv(2, 1)(fc.concat(a, b)), b))
    scores = fc.importance(graph, graph.init(jax.random.key(0)))
    assert list(scores) == ["conv1"]
    with pytest.raises(fc.FuncconvError, match="p must be positive"):
        fc.importance(graph, params, p=0)


@pytest.mark.parametrize(
    ("name", "norms"), [("depthwise", ()), ("shared", ()), ("concatenated", ()), ("residual", (1, 2))]
)
def test_importance_by_gradient_is_the_derivative_along_the_removed_parameters(name, norms, rng):
    graph = NETWORKS[name]()
    params, state = graph.init(jax.random.key(0)), random_state(graph, rng)
    xs = [jnp.asarray(rng.normal(size=(3, 8, 8, 2))) for _ in graph.inputs]

    def loss(params):
        return jnp.square(graph.apply(params, state, *xs)[0]).sum()

    scores = fc.importance(graph, params, jax.grad(loss)(params))
    for group in graph.channel_groups(params)[:3]:
        entries = {row.params: group[row.name] for row in graph.rows if row.name in group}
        entries |= {f"batch_norm{i}": group["conv1"] for i in norms}
        tangent = jax.tree.map(jnp.zeros_like, params)
        for entry, channels in entries.items():
            index = (..., np.array(channels))
            own = {part: leaf.at[index].set(params[entry][part][index]) for part, leaf in tangent[entry].items()}
            tangent = {**tangent, entry: own}
        expected = jnp.abs(jax.jvp(loss, (params,), (tangent,))[1])
        for node, channels in group.items():
            close(scores[node][np.array(channels)], jnp.full(len(channels), expected))
