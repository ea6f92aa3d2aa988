"""Masks: each example of a padded batch has the values and derivatives that it has on its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._ops.pooling.reducers import REDUCES

NORM = {"scale": (4,), "bias": (4,)}


def conv_params(*kernel):
    return {"kernel": kernel, "bias": kernel[-1:]}


def batch_norm(params, x, *, train=False, mask=None):
    """Normalize by running statistics that are no parameters."""
    state = {"mean": jnp.array([0.5, -0.25, 0.0, 1.0]), "var": jnp.array([2.0, 0.5, 1.0, 0.1])}
    return fc.batch_norm(params, state, x, train=train, mask=mask)[0]


def windowed(op, params, shape, window, **options):
    """Return an op with windows as `(op, shapes of parameters, shape of an example, mask of the result)`."""
    given = {} if op is fc.conv or op is fc.conv_transpose else {"window": window}
    names = ("stride", "padding", "dilation", "ceil_mode", "output_padding")
    geometry = {name: value for name, value in options.items() if name in names}
    if op is fc.pool:
        geometry = {"stride": window} | geometry
    if op is fc.conv_transpose:
        geometry["transpose"] = True
    apply = partial(op, **options) if not given else lambda _, x, **mask: op(x, window, **options, **mask)
    return apply, params, shape, partial(fc.conv_mask, window=window, **geometry)


def pointwise(op, params, shape, **options):
    apply = partial(op, **options) if params or op in (fc.layer_norm, fc.group_norm) else None
    return apply or (lambda _, x, **mask: op(x, **options, **mask)), params, shape, lambda mask: mask


def reduced(op, shape, *args, **options):
    """Return a global or adaptive pool, whose result is real if anything is."""
    outputs = args[0] if args else ()

    def mask_of(mask):
        some = mask.any(tuple(range(1, mask.ndim)))
        return jnp.broadcast_to(some.reshape(-1, *(1,) * len(outputs)), (len(mask), *outputs))

    return lambda _, x, **mask: op(x, *args, **options, **mask), {}, shape, mask_of


LAWS = {
    "conv": windowed(fc.conv, conv_params(3, 2, 3), (9, 2), (3,)),
    "conv-same": windowed(fc.conv, conv_params(3, 2, 3), (9, 2), (3,), padding="SAME"),
    "conv-causal": windowed(fc.conv, conv_params(3, 2, 3), (11, 2), (3,), padding="CAUSAL", dilation=2, stride=2),
    "conv-shortcut": windowed(fc.conv, conv_params(1, 1, 2, 3), (7, 6, 2), (1, 1), padding="SAME", stride=2),
    "conv-everything": windowed(
        fc.conv, conv_params(3, 2, 1, 4), (8, 7, 2), (3, 2), padding=((1, 2), (2, -1)), stride=(2, 1), groups=2
    ),
    "conv-lax": windowed(fc.conv, conv_params(3, 2, 3), (9, 2), (3,), padding=1, implementation="lax"),
    "conv-fft": windowed(fc.conv, conv_params(3, 2, 3), (9, 2), (3,), padding=1, implementation="fft"),
    "conv_transpose": windowed(fc.conv_transpose, {"kernel": (3, 2, 3), "bias": (2,)}, (5, 3), (3,)),
    "conv_transpose-apart": windowed(fc.conv_transpose, {"kernel": (2, 2, 3)}, (4, 3), (2,), stride=4, padding="SAME"),
    "conv_transpose-everything": windowed(
        fc.conv_transpose,
        {"kernel": (3, 2, 2, 4)},
        (4, 3, 4),
        (3, 2),
        stride=2,
        padding=((1, 0), (0, -1)),
        output_padding=1,
    ),
    **{
        f"{reduce}_pool": windowed(fc.pool, {}, (8, 2), (3,), reduce=reduce, stride=2, padding=1, ceil_mode=True)
        for reduce in REDUCES
    },
    "max_pool-2d": windowed(fc.pool, {}, (7, 6, 2), (2, 3), stride=(2, 1), padding="VALID"),
    "max_pool-split": windowed(fc.pool, {}, (8, 2), (3,), stride=1, padding=1, ties="split"),
    "max_pool-zeros": windowed(fc.pool, {}, (8, 2), (3,), stride=2, padding=((2, 1),), pad_mode="zeros"),
    "avg_pool-include": windowed(
        fc.pool, {}, (8, 7, 2), (3, 2), reduce="mean", stride=2, padding=1, count_include_pad=True, ceil_mode=True
    ),
    "sum_pool-crop": windowed(fc.pool, {}, (9, 2), (2,), reduce="sum", stride=1, padding=((2, -1),), dilation=2),
    **{f"global-{reduce}": reduced(fc.global_pool, (5, 4, 2), reduce=reduce) for reduce in REDUCES},
    "global-split": reduced(fc.global_pool, (5, 2), reduce="max", ties="split"),
    **{f"adaptive-{reduce}": reduced(fc.adaptive_pool, (7, 5, 2), (3, 2), reduce=reduce) for reduce in REDUCES},
    "adaptive-more": reduced(fc.adaptive_pool, (4, 2), (6,)),
    "layer_norm": pointwise(fc.layer_norm, {"scale": (4,), "bias": (4,)}, (5, 4)),
    "layer_norm-image": pointwise(fc.layer_norm, {}, (5, 3, 4), axes=3),
    "rms_norm": pointwise(fc.rms_norm, {"scale": (4,)}, (5, 4)),
    "group_norm": pointwise(fc.group_norm, NORM, (5, 3, 4), groups=2),
    "instance_norm": pointwise(fc.instance_norm, NORM, (5, 3, 4)),
    "local_response_norm": pointwise(fc.local_response_norm, {}, (5, 4), size=3),
    "batch_norm": pointwise(batch_norm, NORM, (5, 3, 4)),
}


def draw(rng, shapes):
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def padded_batch(rng, shape, sizes):
    """Return a batch of images of these sizes with NaN beside them, and its mask."""
    mask = np.zeros((len(sizes), *shape[:-1]), bool)
    for example, own in zip(mask, sizes, strict=True):
        example[tuple(map(slice, own))] = True
    x = np.where(mask[..., None], rng.normal(size=(len(sizes), *shape)), np.nan)
    return jnp.asarray(x), jnp.asarray(mask)


def some_sizes(rng, spatial, count=4):
    """Return sizes of images: one of all positions, one of a single position, and others."""
    others = [tuple(int(rng.integers(1, size + 1)) for size in spatial) for _ in range(count - 2)]
    return [spatial, (1,) * len(spatial), *others]


def alone(op, params, x):
    """Return the op on one image, None if no window fits on it."""
    try:
        return op(params, x[None])[0]
    except fc.FuncconvError:
        return None


@pytest.mark.parametrize("name", LAWS)
def test_each_example_is_as_on_its_own(name):
    op, shapes, shape, mask_of = LAWS[name]
    rng = np.random.default_rng(0)
    params, sizes = draw(rng, shapes), some_sizes(rng, shape[:-1])
    if name == "instance_norm":
        sizes[1] = (1, 2)  # one position cannot be normalized on its own
    x, mask = padded_batch(rng, shape, sizes)
    y, real = op(params, x, mask=mask), np.asarray(mask_of(mask))
    weights = jnp.asarray(rng.normal(size=y.shape))
    own = [tuple(map(slice, size)) for size in sizes]

    def of_batch(params, x):
        return jnp.sum(weights * op(params, x, mask=mask))

    def of_examples(params, x):
        total = 0.0
        for i, part in enumerate(own):
            result = alone(op, params, x[i][part])
            if result is not None:
                total = total + jnp.sum(weights[i][tuple(map(slice, result.shape))] * result)
        return total

    for i, part in enumerate(own):
        expected = alone(op, params, x[i][part])
        box = np.zeros(y.shape[1:-1], bool)
        if expected is not None:
            box[tuple(map(slice, expected.shape[:-1]))] = True
            close(y[i][tuple(map(slice, expected.shape))], expected)
        assert np.array_equal(real[i], box), (name, sizes[i])
        assert not np.asarray(y[i])[~box].any()

    tangents = draw(rng, shapes), jnp.asarray(rng.normal(size=x.shape))
    clean = jnp.where(mask[..., None], x, 0.0)  # the second derivative of a product with a NaN is one

    @jax.jit
    def derivatives(x, clean):
        gradients = [jax.grad(f, (0, 1)) for f in (of_batch, of_examples)]
        return [[g(params, x) for g in gradients], [jax.jvp(g, (params, clean), tangents)[1] for g in gradients]]

    for ours, theirs in derivatives(x, clean):
        assert not np.asarray(ours[1])[~np.asarray(mask)].any()
        jax.tree.map(partial(close, terms=512), ours, theirs)
