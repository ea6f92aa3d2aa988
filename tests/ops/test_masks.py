"""Masks: each example of a padded batch has the values and derivatives that it has on its own."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._ops.pooling.reducers import REDUCES
from funcconv._windows.geometry import resolve

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


def some_sizes(rng, spatial, count=5):
    """Return sizes of images: one of all positions, one of a single position, one of none, and others."""
    others = [tuple(int(rng.integers(1, size + 1)) for size in spatial) for _ in range(count - 3)]
    return [spatial, (1,) * len(spatial), (0,) * len(spatial), *others]


def alone(op, params, x):
    """Return the op on one image, None if no window fits on it."""
    try:
        return op(params, x[None])[0] if x.size else None
    except fc.FuncconvError:
        return None


# Rows that show what others show too.
SLOW = {
    *("conv-lax", "conv-fft", "conv-same", "sum_pool", "min_pool", "prod_pool", "lp_pool", "sum_pool-crop"),
    *(f"global-{reduce}" for reduce in REDUCES if reduce not in ("max", "lse")),
    *(f"adaptive-{reduce}" for reduce in REDUCES if reduce not in ("max", "mean", "median")),
    *("global-split", "layer_norm", "rms_norm", "local_response_norm", "max_pool-zeros"),
}
assert {*LAWS} > SLOW


@pytest.mark.once
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LAWS]
)
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


PADDINGS = (0, 1, "VALID", "SAME", "SAME_LOWER", "HALF", "FULL", "CAUSAL", [(2, 0)], [(-1, 3)], [(1, -2)], [(-2, -1)])


def masks_of_all_sizes(size):
    return jnp.arange(size)[None] < jnp.arange(size + 1)[:, None]


@pytest.mark.once
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_conv_mask_is_the_positions_that_each_size_has_on_its_own(padding):
    compared = 0
    for size, window, stride, dilation, ceil_mode in itertools.product((7,), (1, 3), (1, 3), (1, 2), (False, True)):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        try:
            outputs = resolve("conv", (size,), window, **options)[0].outputs
            real = np.asarray(fc.conv_mask(masks_of_all_sizes(size), (window,), **options))
        except fc.FuncconvError:  # no window fits, or "SAME" would move the windows
            continue
        for own in range(1, size + 1):
            try:
                count = resolve("conv", (own,), window, **options)[0].outputs
            except fc.FuncconvError:
                count = 0
            assert np.array_equal(real[own], np.arange(outputs) < count), (size, own, window, options)
            compared += 1
    assert compared > 10


@pytest.mark.once
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_the_mask_of_a_transposed_convolution_too(padding):
    compared = 0
    for size, window, stride, extra in itertools.product((1, 5), (2, 3), (1, 4), (None, 1)):
        options = {"stride": stride, "padding": padding, "dilation": 1, "output_padding": extra}
        sizes = [_transposed_size(own, window, options) for own in range(1, size + 1)]
        if sizes[-1] is None:
            continue
        real = np.asarray(fc.conv_mask(masks_of_all_sizes(size), (window,), transpose=True, **options))
        for own, expected in enumerate(sizes, start=1):
            # Where nothing of an image is left, a single position takes its place on its own.
            if expected is not None and expected > 1:
                assert np.array_equal(real[own], np.arange(sizes[-1]) < expected), (size, own, window, options)
                compared += 1
    assert compared > 10


def _transposed_size(own, window, options):
    try:
        kernel = jax.ShapeDtypeStruct((window, 1, 1), jnp.float64)
        y = jax.ShapeDtypeStruct((own, 1), jnp.float64)
        op = partial(fc.conv_transpose, **options)
        return jax.eval_shape(lambda kernel, y: op({"kernel": kernel}, y), kernel, y).shape[0]
    except fc.FuncconvError:
        return None


def test_gaps_that_are_wider_than_the_padding_stay_masked():
    mask = jnp.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], bool)
    assert np.array_equal(fc.conv_mask(mask, (3,), padding=1), mask)
    assert np.array_equal(fc.conv_mask(mask, (3,), padding="SAME"), mask)
    assert fc.conv_mask(mask, (3,)).astype(int).tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    later = jnp.array([0, 0, 1, 1, 1, 1, 0, 0], bool)  # an image that begins at position 2
    assert fc.conv_mask(later, (3,)).astype(int).tolist() == [0, 0, 1, 1, 0, 0]
    assert fc.conv_mask(later, (3,), padding=((1, 0),)).astype(int).tolist() == [0, 0, 1, 1, 1, 0, 0]


def partial_convolution(kernel, bias, x, mask):
    """Compute formula (1) of Liu and others (2018) for one channel, one window after the other, without padding."""
    rows, columns = kernel.shape
    y = np.zeros([size - k + 1 for size, k in zip(x.shape, kernel.shape, strict=True)])
    for i, j in np.ndindex(y.shape):
        window = np.s_[i : i + rows, j : j + columns]
        if mask[window].any():
            y[i, j] = (kernel * np.where(mask, x, 0)[window]).sum() * (kernel.size / mask[window].sum()) + bias
    return y


@pytest.mark.parametrize("padding", [0, 1])
def test_renormalize_is_partial_convolution(rng, padding):
    kernel, bias, x = rng.normal(size=(3, 2)), rng.normal(), rng.normal(size=(7, 6))
    mask = rng.uniform(size=x.shape) < 0.3
    params = {"kernel": jnp.asarray(kernel[..., None, None]), "bias": jnp.asarray([bias])}
    image, shown = jnp.asarray(np.where(mask, x, np.nan)[..., None]), jnp.asarray(mask)
    padded = [np.pad(array, padding) for array in (x, mask)]
    expected = partial_convolution(kernel, bias, *padded)
    close(fc.conv(params, image, padding=padding, mask=shown, renormalize=True)[..., 0], expected)
    real = fc.conv_mask(shown, (3, 2), padding=padding, renormalize=True)
    assert np.array_equal(real, expected != 0)
    # Without a mask only padding is not real.
    padded[1] = np.pad(np.ones_like(mask), padding)
    close(
        fc.conv(params, jnp.asarray(x[..., None]), padding=padding, renormalize=True)[..., 0],
        partial_convolution(kernel, bias, *padded),
    )


def test_the_mask_has_the_order_of_the_layout(rng):
    x, mask = padded_batch(rng, (5, 4, 2), [(5, 4), (3, 2)])
    params = draw(rng, conv_params(2, 2, 2, 3))
    first = jnp.moveaxis(x, -1, 1)
    close(
        jnp.moveaxis(fc.conv(params, first, mask=mask, layout="NCHW"), 1, -1),
        fc.conv(params, x, mask=mask),
    )
    turned, turned_mask = x.transpose(2, 1, 3, 0), mask.transpose(2, 1, 0)
    close(
        fc.pool(turned, 2, mask=turned_mask, layout="WHCN").transpose(3, 1, 0, 2),
        fc.pool(x, 2, mask=mask),
    )
    y, index = fc.pool(first, 2, mask=mask, layout="NCHW", return_indices=True)
    assert (np.asarray(index)[1] == -1).sum() == (np.asarray(y)[1] == 0).sum() == 2 * 3


def test_wrong_masks_are_refused():
    x, params = jnp.ones((2, 6, 1)), {"kernel": jnp.ones((3, 1, 1))}
    mask = jnp.ones((2, 6), bool)
    for call, match in (
        (lambda: fc.conv(params, x, mask=mask.astype(int)), "must be boolean, True at real positions; got int64"),
        (lambda: fc.conv(params, x, mask=mask[..., None]), r"but the channels, \(2, 6\); got \(2, 6, 1\)"),
        (lambda: fc.pool(x, 2, mask=mask[:1]), r"got \(1, 6\)"),
        (lambda: fc.pool(x, 2, reduce=jnp.std, mask=mask), "needs all taps of a window"),
        (lambda: fc.conv(params, x, mask=mask, padding=1, pad_mode="reflect"), "pad_mode='reflect'"),
        (lambda: fc.conv(params, x, renormalize=True, padding=1, pad_mode="reflect"), "pad_mode='reflect'"),
        (lambda: fc.pool(x, 3, mask=mask, padding="SAME", stride=2), "adds 0 or 1"),
        (lambda: fc.conv_mask(mask, 3, padding="SAME", stride=2), "adds 0 or 1"),
        (lambda: fc.conv_mask(mask, 9), "does not fit"),
        (lambda: fc.conv_mask(mask, 3, size=4), "pass transpose=True"),
        (lambda: fc.conv_mask(mask, 3, transpose=True, ceil_mode=True), "neither ceil_mode nor renormalize"),
        (lambda: fc.conv_mask(x, 3), "must be boolean"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            call()
