"""Parity with PyTorch on random geometries: values, and the gradients by the input and by the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
F = torch.nn.functional

CONVS = {1: "conv1d", 2: "conv2d", 3: "conv3d"}
TRANSPOSED = {1: "conv_transpose1d", 2: "conv_transpose2d", 3: "conv_transpose3d"}
KINDS = ["conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg", "adaptive_max"]


def draw(rng, kind):
    """Return a random problem: sizes, and options in both languages."""
    n = int(rng.integers(1, 4))

    def each(low, high):
        return tuple(int(i) for i in rng.integers(low, high, size=n))

    if kind in ("conv", "conv_transpose"):
        groups, stride, dilation, window = int(rng.integers(1, 4)), each(1, 5), each(1, 4), each(1, 5)
        per_group, out = int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
        return n, {"groups": groups, "stride": stride, "dilation": dilation}, window, per_group, out, each
    return n, {"window": each(1, 5), "stride": each(1, 5)}, None, None, None, each


def spatial_first(array):
    """Turn a channels-last image with one batch axis into PyTorch's order."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1))).requires_grad_()


def kernel_first(kernel):
    """Turn (*window, in, out) into PyTorch's (out, in, *window)."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1)))).requires_grad_()


def compare(ours, theirs, params, x, tensors, back):
    """Compare a value, and the gradients of its product with random numbers."""
    y = jax.eval_shape(ours, params, x)
    cotangent = np.random.default_rng(0).normal(size=y.shape)

    @jax.jit
    def all_of_ours(params, x):
        y, pullback = jax.vjp(ours, params, x)
        return y, pullback(jnp.asarray(cotangent))

    y, (params_bar, x_bar) = all_of_ours(params, x)
    z = theirs(*tensors)
    close(y, np.moveaxis(z.detach().numpy(), 1, -1), ulps=1024)
    z.backward(torch.tensor(np.moveaxis(cotangent, -1, 1)))
    found = jax.tree.leaves((params_bar, x_bar))
    expected = [convert(tensor.grad.numpy()) for convert, tensor in zip(back, tensors, strict=True)]
    for a, b in zip(found, expected, strict=True):
        close(a, b, ulps=1024)


def last(array):
    return np.moveaxis(array, 1, -1)


def kernel_last(array):
    return np.moveaxis(array, (0, 1), (-1, -2))


def check_conv(rng):
    """A convolution with any padding, negative ones included, which PyTorch is given as a pad of its own."""
    n, options, window, per_group, out, each = draw(rng, "conv")
    extents = [1 + (k - 1) * d for k, d in zip(window, options["dilation"], strict=True)]
    padding = tuple(zip(each(-1, 4), each(-1, 4), strict=True))
    sizes = [max(e - lo - hi, 1 - min(lo, 0) - min(hi, 0)) for e, (lo, hi) in zip(extents, padding, strict=True)]
    sizes = [size + int(rng.integers(0, 7)) for size in sizes]
    params = {"bias": rng.normal(size=out), "kernel": rng.normal(size=(*window, per_group, out))}
    x = rng.normal(size=(int(rng.integers(1, 3)), *sizes, per_group * options["groups"]))
    flat = [side for pair in reversed(padding) for side in pair]

    def theirs(bias, kernel, x):
        return getattr(F, CONVS[n])(F.pad(x, flat), kernel, bias, **options)

    tensors = [torch.tensor(params["bias"]).requires_grad_(), kernel_first(params["kernel"]), spatial_first(x)]
    compare(
        lambda params, x: fc.conv(params, x, padding=padding, **options), theirs, params, x, tensors,
        [np.asarray, kernel_last, last],
    )  # fmt: skip


def check_conv_transpose(rng):
    """PyTorch's weight (in, out // groups, *window) is the kernel of the convolution that is transposed."""
    n, options, window, per_group, channels, each = draw(rng, "conv_transpose")
    extents = [1 + (k - 1) * d for k, d in zip(window, options["dilation"], strict=True)]
    padding = tuple(int(rng.integers(0, e)) for e in extents)
    extra = tuple(int(rng.integers(0, s)) for s in options["stride"])
    sizes = []
    for extent, p, s in zip(extents, padding, options["stride"], strict=True):
        size = 1
        while (size - 1) * s + extent - 2 * p < 1:
            size += 1
        sizes.append(size + int(rng.integers(0, 4)))
    params = {
        "bias": rng.normal(size=per_group * options["groups"]),
        "kernel": rng.normal(size=(*window, per_group, channels)),
    }
    y = rng.normal(size=(2, *sizes, channels))

    def theirs(bias, kernel, y):
        return getattr(F, TRANSPOSED[n])(y, kernel, bias, padding=padding, output_padding=extra, **options)

    tensors = [torch.tensor(params["bias"]).requires_grad_(), kernel_first(params["kernel"]), spatial_first(y)]
    compare(
        lambda params, y: fc.conv_transpose(params, y, padding=padding, output_padding=extra, **options),
        theirs, params, y, tensors, [np.asarray, kernel_last, last],
    )  # fmt: skip
    del each


def check_pool(rng, reduce):
    n, options, *_, each = draw(rng, "pool")
    window, stride = options["window"], options["stride"]
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in window)
    ceil_mode = bool(rng.integers(2))
    dilation = each(1, 4) if reduce == "max" else (1,) * n
    extents = [1 + (k - 1) * d for k, d in zip(window, dilation, strict=True)]
    spare = [0 if reduce == "mean" and n == 3 else p for p in padding]  # where PyTorch wants the window inside
    sizes = [max(e - 2 * p, 1) + int(rng.integers(0, 8)) for e, p in zip(extents, spare, strict=True)]
    x = rng.integers(-4, 5, size=(2, *sizes, 2)).astype(float)  # with ties
    ours = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode, "dilation": dilation}
    theirs = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    if reduce == "max":
        theirs |= {"dilation": dilation}
    else:
        ours["count_include_pad"] = theirs["count_include_pad"] = bool(rng.integers(2))
    name = f"{'max' if reduce == 'max' else 'avg'}_pool{n}d"

    def pool(params, x):
        del params
        return fc.pool(x, window, reduce=reduce, **ours)

    if reduce == "max" and np.isinf(getattr(F, name)(spatial_first(x), window, **theirs).detach().numpy()).any():
        # A dilated window that has a tap on either side of the image and none on it.
        with pytest.raises(fc.FuncconvError, match="wholly in the padding"):
            pool({}, x)
        return
    compare(pool, lambda x: getattr(F, name)(x, window, **theirs), {}, x, [spatial_first(x)], [last])


def check_adaptive(rng, reduce):
    n, *_, each = draw(rng, "pool")
    sizes, outputs = each(1, 12), each(1, 12)
    x = rng.normal(size=(2, *sizes, 2))
    name = f"adaptive_{'max' if reduce == 'max' else 'avg'}_pool{n}d"

    def pool(params, x):
        del params
        return fc.adaptive_pool(x, outputs, reduce)

    compare(pool, lambda x: getattr(F, name)(x, outputs), {}, x, [spatial_first(x)], [last])


CHECKS = {
    "conv": check_conv,
    "conv_transpose": check_conv_transpose,
    "max_pool": lambda rng: check_pool(rng, "max"),
    "avg_pool": lambda rng: check_pool(rng, "mean"),
    "adaptive_max": lambda rng: check_adaptive(rng, "max"),
    "adaptive_avg": lambda rng: check_adaptive(rng, "mean"),
}
SHARE = {"conv": 100, "conv_transpose": 80, "max_pool": 40, "avg_pool": 40, "adaptive_max": 20, "adaptive_avg": 20}


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, count in SHARE.items() for seed in range(count)])
def test_parity(kind, seed):
    CHECKS[kind](np.random.default_rng([seed, *kind.encode()]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block"), [(kind, block) for kind, count in SHARE.items() for block in range(count)])
def test_parity_on_many(kind, block):
    for seed in range(1000 + 10 * block, 1010 + 10 * block):
        CHECKS[kind](np.random.default_rng([seed, *kind.encode()]))
        if seed % 5 == 4:
            jax.clear_caches()
