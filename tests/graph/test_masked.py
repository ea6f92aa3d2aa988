"""Graphs on masked inputs: each example of a padded batch has the values and derivatives that it has on its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc


def attention(x, *, mask=None):
    """Average positions with weights that depend on their values."""
    scores = jnp.exp(x.sum(-1, keepdims=True))
    if mask is not None:
        scores = jnp.where(mask[..., None], scores, 0)
    return (scores * x).sum((-3, -2)) / scores.sum((-3, -2))


def unet(x):
    """Return a small U-Net, whose halves are joined."""
    first = fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh)(x)
    down = fc.serial(fc.Pool(2, reduce="mean"), fc.Conv(4, 3, padding="HALF"), jnp.tanh)(first)
    up = fc.ConvTranspose(4, 2, stride=2)(down)
    return fc.serial(fc.Conv(2, 1), fc.global_pool)(fc.concat(up, first))


def pipeline(*layers):
    return lambda x: fc.serial(*layers)(x)


MAX, SUM = functools.partial(fc.global_pool, reduce="max"), functools.partial(fc.global_pool, reduce="sum")


def gated(x):
    """Return squeeze and excitation: a gate for each channel from the mean over all positions."""
    y = fc.Conv(4, 3)(x)
    gate = fc.serial(fc.global_pool, fc.Dense(4), jax.nn.sigmoid)(y)
    return fc.serial(MAX, fc.Dense(3))(y * gate)


def shared(x):
    """Return a network that uses one convolution twice, and its input once more."""
    conv = fc.Conv(3, 3, padding=1)
    return fc.node(SUM, conv(conv(x)) - 0.5 * x)


NETWORKS = {
    "norms": pipeline(
        fc.Conv(4, 3, padding=1),
        fc.GroupNorm(2),
        jax.nn.gelu,
        fc.InstanceNorm(),
        fc.LayerNorm(),
        fc.RMSNorm(),
        functools.partial(fc.local_response_norm, size=3),
        fc.global_pool,
    ),
    "pools": pipeline(
        fc.max_pool,
        fc.Pool(3, reduce="lse", stride=1, padding=1),
        functools.partial(fc.adaptive_pool, output_size=2),
        fc.Flatten(),
        fc.Dense(2),
    ),
    "wrapped": pipeline(fc.WeightNorm(fc.Conv(4, 3)), fc.WeightStandardize(fc.Conv(4, 2, stride=2)), MAX),
    "by position": pipeline(lambda x: jax.nn.softmax(2 * x), fc.Dense(4), lambda x: x * x[..., ::-1], SUM),
    "evaluation": pipeline(fc.Conv(4, 3), fc.Dropout(0.5), fc.DropPath(0.5), fc.global_pool),
    "enlarged": pipeline(
        fc.Conv(8, 2),
        functools.partial(fc.pixel_shuffle, factor=2),
        functools.partial(fc.resize, scale=2),
        fc.Conv(2, 3),
        SUM,
    ),
    "own function": pipeline(fc.Conv(4, 3, padding="SAME"), fc.node(attention, batched=False)),
    "residual": pipeline(fc.Conv(3, 1), fc.residual(fc.serial(fc.Conv(3, 3, padding=1), jnp.tanh)), SUM),
    "unet": unet,
    "gated": gated,
    "shared": shared,
}


SIZES = [(8, 6), (4, 4), (6, 4)]


def masked_batch(rng, shape=(8, 6, 3), sizes=SIZES):
    mask = np.zeros((len(sizes), *shape[:-1]), bool)
    for example, own in zip(mask, sizes, strict=True):
        example[tuple(map(slice, own))] = True
    return fc.Masked(
        jnp.asarray(np.where(mask[..., None], rng.normal(size=(len(sizes), *shape)), np.nan)), jnp.asarray(mask)
    )


def graph_of(network, *shape):
    x = fc.Input("x", shape)
    return fc.Graph(x, network(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_example_is_as_on_its_own(name, rng):
    graph, inputs = graph_of(NETWORKS[name], 8, 6, 3), masked_batch(rng)
    params = graph.init(jax.random.key(0))
    alone = [graph_of(NETWORKS[name], *size, 3) for size in SIZES]
    examples = [x[: size[0], : size[1]] for x, size in zip(inputs.x, SIZES, strict=True)]

    def of_batch(params, x):
        return jnp.sum(graph(params, inputs._replace(x=x)) ** 2)

    def of_examples(params, examples):
        return sum(jnp.sum(own(params, x) ** 2) for own, x in zip(alone, examples, strict=True))

    clean = jnp.where(inputs.mask[..., None], inputs.x, 0)

    @jax.jit
    def values(x, clean):
        hvp = fc.hvp(lambda params: of_batch(params, clean), params, params)
        own_hvp = fc.hvp(lambda params: of_examples(params, examples), params, params)
        ours = jax.value_and_grad(of_batch, (0, 1))(params, x)
        return (ours, hvp), (jax.value_and_grad(of_examples, (0, 1))(params, examples), own_hvp)

    (ours, hvp), (theirs, own_hvp) = values(inputs.x, clean)
    close(ours[0], theirs[0], terms=512)
    jax.tree.map(functools.partial(close, terms=512), (ours[1][0], hvp), (theirs[1][0], own_hvp))
    for by_x, own, size in zip(ours[1][1], theirs[1][1], SIZES, strict=True):
        close(by_x[: size[0], : size[1]], own, terms=512)
        assert not by_x[size[0] :].any()
        assert not by_x[:, size[1] :].any()


def test_the_mask_is_returned_with_the_values_if_asked_for(rng):
    graph = graph_of(pipeline(fc.Conv(4, 3, name="conv"), fc.Pool(2, name="pool")), 8, 6, 3)
    params, inputs = graph.init(jax.random.key(0)), masked_batch(rng)
    y = graph(params, inputs, masked=True)
    assert isinstance(y, fc.Masked)
    assert np.array_equal(y.mask.sum((1, 2)), [3 * 2, 1, 2])
    assert np.array_equal(graph(params, inputs), y.x)
    assert np.array_equal(graph.apply(params, {}, x=inputs, masked=True)[0].mask, y.mask)
    values = graph.values(params, inputs, masked=True)
    assert np.array_equal(values["conv"].mask.sum((1, 2)), [6 * 4, 2 * 2, 4 * 2])
    assert all(not np.isnan(value).any() for value in graph.values(params, inputs).values())
    inside = graph(params, jax.tree.map(lambda leaf: leaf[None], inputs), masked=True)  # two batch axes
    assert np.array_equal(inside.x[0], y.x)
    mapped = jax.vmap(lambda inputs: graph(params, inputs, masked=True))(inputs)
    close(mapped.x, y.x)
    assert np.array_equal(mapped.mask, y.mask)


def test_derivatives_at_nodes_are_those_of_the_arrays(rng):
    graph = graph_of(pipeline(fc.Conv(4, 3, name="conv"), jnp.tanh, SUM, fc.Dense(1), lambda x: x[..., 0]), 8, 6, 3)
    params, inputs = graph.init(jax.random.key(0)), masked_batch(rng)
    by_nodes, by_params = graph.backward(params, inputs)
    jax.tree.map(close, by_params, jax.grad(lambda params: graph(params, inputs).sum())(params))
    assert by_nodes["conv"].shape == (3, 6, 4, 4)
    jacobian = graph.jacobian(params, inputs, of="dense1", wrt="conv")
    close(jacobian[:, 0], by_nodes["conv"])
    value, rest = graph.continuation(params, inputs, at="conv")
    close(rest(value), graph(params, inputs))
    with pytest.raises(fc.FuncconvError, match="local=True"):
        graph.jacobian(params, inputs, of="conv", wrt="x", local=True)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_batch_statistics_are_those_of_the_real_positions(rng, momentum):
    graph = graph_of(pipeline(fc.BatchNorm(momentum=momentum, count=momentum is None, name="bn")), 8, 6, 3)
    params, inputs = graph.init(jax.random.key(0)), masked_batch(rng)
    y, state = graph.apply(params, graph.init_state(), inputs, train=True)
    alone = graph_of(pipeline(fc.BatchNorm(momentum=momentum, count=momentum is None, name="bn")), 3)
    own, own_state = alone.apply(params, alone.init_state(), inputs.x[inputs.mask], train=True)
    close(y[inputs.mask], own)
    assert not y[~inputs.mask].any()
    jax.tree.map(close, state, own_state)
    for count in (0, 1):  # one position has no variance
        few = inputs._replace(mask=jnp.zeros_like(inputs.mask).at[0, 0, :count].set(True))
        for before in (state, graph.init_state()):
            _, unchanged = graph.apply(params, before, few, train=True)
            jax.tree.map(close, unchanged, before)


MIXES = {
    "flatten1": fc.Flatten(),
    "local_conv1": fc.LocalConv(2, 3),
    "lambda1": lambda x: x - x.mean((-3, -2), keepdims=True),
    "flip1": functools.partial(jnp.flip, axis=-2),
    "cumsum1": functools.partial(jnp.cumsum, axis=-3),
    "swapaxes1": functools.partial(jnp.swapaxes, axis1=-3, axis2=-2),
    "softmax1": functools.partial(jax.nn.softmax, axis=-2),
    "unfold1": functools.partial(fc.unfold, window=2),
    "resize1": functools.partial(fc.resize, size=4, method="linear"),
    "batched1": fc.node(lambda x: x, name="batched1", batched=True),
}


@pytest.mark.parametrize("name", MIXES)
def test_ops_that_would_mix_real_and_masked_positions_are_refused_by_name(rng, name):
    graph = graph_of(pipeline(fc.Conv(2, 1), MIXES[name]), 8, 6, 3)
    params = graph.init(jax.random.key(0))
    with pytest.raises(fc.FuncconvError, match=f"node '{name}': .* would mix real and masked positions"):
        graph(params, masked_batch(rng))


def test_wrong_masks_are_refused(rng):
    graph = graph_of(pipeline(fc.Conv(2, 3, name="conv")), 8, 6, 3)
    params, (x, mask) = graph.init(jax.random.key(0)), masked_batch(rng)
    for wrong, match in (
        (mask[..., None] | jnp.zeros_like(x, bool), r"'conv'.*must be \(\*batch, \*spatial\) with 2 axes"),
        (mask[:, :-1], "graph: the mask of input 'x' must be boolean"),
        (mask.astype(int), "must be boolean, .*got int64"),
        (mask[:, :, 0], r"'conv'.*with 2 axes"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            graph(params, fc.Masked(x, wrong))
    same = graph_of(pipeline(fc.Conv(2, 3, padding="SAME", stride=2, name="conv")), 8, 6, 3)
    with pytest.raises(fc.FuncconvError, match=r"'conv'.*the padding before spatial axis 0 must be the same"):
        same(params, fc.Masked(x, mask))
    wraps = graph_of(pipeline(fc.Conv(2, 3, padding=1, pad_mode="circular", name="conv")), 8, 6, 3)
    with pytest.raises(fc.FuncconvError, match=r"'conv'.*padding can only contain zeros"):
        wraps(params, fc.Masked(x, mask))


@pytest.mark.parametrize(
    "layer", [fc.Conv(4, 3, layout="NCHW"), fc.Pool(2, layout="NCHW"), functools.partial(fc.global_pool, layout="NCHW")]
)
def test_channels_must_be_last(layer):
    """If all sizes are equal, the shape of a mask does not tell which axis is the channels."""
    graph = graph_of(pipeline(layer), 4, 4, 4)
    with pytest.raises(fc.FuncconvError, match="must have their channels last"):
        graph(graph.init(jax.random.key(0)), fc.Masked(jnp.ones((2, 4, 4, 4)), jnp.ones((2, 4, 4), bool)))


def test_two_masks_leave_what_is_real_in_both(rng):
    x, y = fc.Input("x", (8, 6, 3)), fc.Input("y", (8, 6, 3))
    graph = fc.Graph((x, y), x * y)
    one, two = masked_batch(rng), masked_batch(rng, sizes=[(4, 4), (8, 6), (5, 5)])
    result = graph({}, one, two, masked=True)
    assert np.array_equal(result.mask, one.mask & two.mask)
    both = result.mask
    close(result.x[both], (one.x * two.x)[both])
    assert not result.x[~both].any()
    with pytest.raises(fc.FuncconvError, match="mul1"):
        graph({}, one, jnp.ones((3, 8, 6, 3)))


def test_training_on_masked_batches(rng):
    graph = graph_of(
        pipeline(fc.SpectralNorm(fc.Conv(4, 3)), fc.BatchNorm(), jax.nn.relu, fc.Dropout(0.1), fc.global_pool), 8, 6, 3
    )
    inputs = masked_batch(rng)

    def loss(params, state, batch, key):
        y, state = graph.apply(params, state, batch, key=key, train=True)
        return jnp.mean(y**2), state

    params, state = graph.init(jax.random.key(0)), graph.init_state()
    (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, state, inputs, jax.random.key(1))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
