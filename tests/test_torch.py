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


def compare_curvature(ours, theirs, x):
    """Compare the Hessian-vector product of a sum of cubes by the input."""
    v = np.random.default_rng(1).normal(size=x.shape)

    @jax.jit
    def hvp(x, v):
        return jax.jvp(jax.grad(lambda x: (ours({}, x) ** 3).sum()), (x,), (v,))[1]

    tensor = spatial_first(x)
    (gradient,) = torch.autograd.grad((theirs(tensor) ** 3).sum(), tensor, create_graph=True)
    (expected,) = torch.autograd.grad((gradient * spatial_first(v).detach()).sum(), tensor)
    close(hvp(jnp.asarray(x), jnp.asarray(v)), last(expected.numpy()), ulps=4096)


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


def windows_of(tensor, window, stride):
    """Return PyTorch's windows, (batch, channels, *positions, taps)."""
    for axis, (k, s) in enumerate(zip(window, stride, strict=True)):
        tensor = tensor.unfold(2 + axis, k, s)
    return tensor.flatten(-len(window))


def check_reduce(rng, reduce):
    """Products, medians, log-sum-exps and norms, against PyTorch's on its own windows."""
    options = draw(rng, "pool")[1]
    window, stride = options["window"], options["stride"]
    x = rng.normal(size=(2, *(k + int(rng.integers(0, 5)) for k in window), 2))
    p, temperature = int(rng.integers(2, 6)), float(rng.uniform(0.5, 2))
    theirs = {
        "prod": lambda taps: taps.prod(-1),
        "median": lambda taps: taps.median(-1).values,
        "lse": lambda taps: temperature * torch.logsumexp(taps / temperature, -1),
        "lp": lambda taps: torch.linalg.vector_norm(taps, p, -1),
    }[reduce]

    def pool(params, x):
        del params
        return fc.pool(x, window, reduce=reduce, stride=stride, p=p, temperature=temperature)

    def their_pool(x):
        return theirs(windows_of(x, window, stride))

    compare(pool, their_pool, {}, x, [spatial_first(x)], [last])
    compare_curvature(pool, their_pool, x)


def check_lp(rng):
    """PyTorch's own lp_pool has no absolute value, so it is compared where that does not matter."""
    n, options, *_ = draw(rng, "pool")
    window, stride = options["window"], options["stride"]
    p = int(rng.integers(1, 6))
    x = rng.normal(size=(2, *(k + int(rng.integers(0, 5)) for k in window), 2))
    x = x if p % 2 == 0 else abs(x)

    def pool(params, x):
        del params
        return fc.pool(x, window, reduce="lp", stride=stride, p=p)

    def theirs(x):
        sizes = (window, stride) if n > 1 else (*window, *stride)
        return getattr(F, f"lp_pool{n}d")(x, p, *sizes)

    compare(pool, theirs, {}, x, [spatial_first(x)], [last])
    compare_curvature(pool, theirs, x)


def check_indices(rng):
    """Indices with overlap, padding and dilation, and back where PyTorch's way back is the transpose too."""
    n, options, *_, each = draw(rng, "pool")
    window, dilation = options["window"], each(1, 3)
    extents = [1 + (k - 1) * d for k, d in zip(window, dilation, strict=True)]
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in window)
    options |= {"padding": padding, "dilation": dilation, "ceil_mode": bool(rng.integers(2))}
    sizes = [e + int(rng.integers(0, 8)) for e in extents]
    x = rng.integers(-4, 5, size=(2, *sizes, 2)).astype(float)  # with ties
    theirs = {{"window": "kernel_size"}.get(key, key): value for key, value in options.items()}
    z, where = getattr(F, f"max_pool{n}d_with_indices")(spatial_first(x), **theirs)
    y, indices = jax.jit(lambda x: fc.max_pool(x, return_indices=True, **options))(x)
    np.testing.assert_array_equal(y, last(z.detach().numpy()))
    np.testing.assert_array_equal(indices, last(where.numpy()))

    stride = each(4, 7)  # beyond the window, so that no input is taken twice
    sizes = [k + s * int(rng.integers(0, 3)) for k, s in zip(window, stride, strict=True)]
    x = rng.normal(size=(2, *sizes, 2))
    y, indices = jax.jit(lambda x: fc.max_pool(x, window, stride=stride, return_indices=True))(x)
    pulled = torch.tensor(np.moveaxis(np.asarray(indices), -1, 1)).long()

    def unpool(params, y):
        del params
        return fc.max_unpool(y, indices, window, stride=stride)

    def their_unpool(y):
        return getattr(F, f"max_unpool{n}d")(y, pulled, window, stride)

    compare(unpool, their_unpool, {}, np.asarray(y), [spatial_first(y)], [last])


CHECKS = {
    "conv": check_conv,
    "conv_transpose": check_conv_transpose,
    "max_pool": lambda rng: check_pool(rng, "max"),
    "avg_pool": lambda rng: check_pool(rng, "mean"),
    "adaptive_max": lambda rng: check_adaptive(rng, "max"),
    "adaptive_avg": lambda rng: check_adaptive(rng, "mean"),
    "prod": lambda rng: check_reduce(rng, "prod"),
    "median": lambda rng: check_reduce(rng, "median"),
    "lse": lambda rng: check_reduce(rng, "lse"),
    "norm": lambda rng: check_reduce(rng, "lp"),
    "lp": check_lp,
    "indices": check_indices,
}
SHARE = {
    "conv": 100, "conv_transpose": 80, "max_pool": 40, "avg_pool": 40, "adaptive_max": 20, "adaptive_avg": 20,
    "prod": 6, "median": 6, "lse": 6, "norm": 6, "lp": 12, "indices": 20,
}  # fmt: skip


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
