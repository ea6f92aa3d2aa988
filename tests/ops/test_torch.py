"""Parity with PyTorch on random geometries: values, and the gradients by the input and by the parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

torch = needed("torch")
F = torch.nn.functional

CONVS = {1: "conv1d", 2: "conv2d", 3: "conv3d"}
TRANSPOSED = {1: "conv_transpose1d", 2: "conv_transpose2d", 3: "conv_transpose3d"}
KINDS = ["conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg", "adaptive_max"]


def geometry(rng, kind):
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
    gradients = jax.tree.leaves((params_bar, x_bar))
    expected = [convert(tensor.grad.numpy()) for convert, tensor in zip(back, tensors, strict=True)]
    for a, b in zip(gradients, expected, strict=True):
        close(a, b, ulps=1024)


def compare_second(ours, theirs, params, x, tensors, back):
    """Compare the product of the Hessian of the sum of `y³ / 3`, by all that it depends on, with random numbers."""
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=tensor.shape) for tensor in tensors]
    leaves, tree = jax.tree.flatten((params, jnp.asarray(x)))
    along = tree.unflatten([jnp.asarray(convert(v)) for convert, v in zip(back, directions, strict=True)])

    @jax.jit
    def product(point, along):
        return jax.jvp(jax.grad(lambda point: (ours(*point) ** 3).sum() / 3), (point,), (along,))[1]

    products = jax.tree.leaves(product(tree.unflatten([jnp.asarray(leaf) for leaf in leaves]), along))
    gradients = torch.autograd.grad((theirs(*tensors) ** 3).sum() / 3, tensors, create_graph=True)
    inner = sum((g * torch.tensor(v)).sum() for g, v in zip(gradients, directions, strict=True))
    expected = torch.autograd.grad(inner, tensors)
    for ours_is, convert, theirs_is in zip(products, back, expected, strict=True):
        close(ours_is, convert(theirs_is.numpy()), ulps=4096)


def last(array):
    return np.moveaxis(array, 1, -1)


def kernel_last(array):
    return np.moveaxis(array, (0, 1), (-1, -2))


def check_conv(rng, compare):
    """A convolution with any padding, negative ones included, which PyTorch is given as a pad of its own."""
    n, options, window, per_group, out, per_axis = geometry(rng, "conv")
    extents = [1 + (k - 1) * d for k, d in zip(window, options["dilation"], strict=True)]
    padding = tuple(zip(per_axis(-1, 4), per_axis(-1, 4), strict=True))
    sizes = [max(e - lo - hi, 1 - min(lo, 0) - min(hi, 0)) for e, (lo, hi) in zip(extents, padding, strict=True)]
    sizes = [size + int(rng.integers(0, 7)) for size in sizes]
    params = {"bias": rng.normal(size=out), "kernel": rng.normal(size=(*window, per_group, out))}
    x = rng.normal(size=(int(rng.integers(1, 3)), *sizes, per_group * options["groups"]))
    flat = [side for pair in reversed(padding) for side in pair]

    def theirs(bias, kernel, x):
        return getattr(F, CONVS[n])(F.pad(x, flat), kernel, bias, **options)

    tensors = [torch.tensor(params["bias"]).requires_grad_(), kernel_first(params["kernel"]), spatial_first(x)]
    compare(
        lambda params, x: fc.conv(params, x, padding=padding, **options),
        theirs,
        params,
        x,
        tensors,
        [np.asarray, kernel_last, last],
    )


def check_conv_transpose(rng, compare):
    """PyTorch's weight (in, out // groups, *window) is the kernel of the convolution that is transposed."""
    n, options, window, per_group, channels, per_axis = geometry(rng, "conv_transpose")
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
        theirs,
        params,
        y,
        tensors,
        [np.asarray, kernel_last, last],
    )
    del per_axis


def check_pool(rng, compare, reduce):
    n, options, *_, per_axis = geometry(rng, "pool")
    window, stride = options["window"], options["stride"]
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in window)
    ceil_mode = bool(rng.integers(2))
    dilation = per_axis(1, 4) if reduce == "max" else (1,) * n
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
        with pytest.raises(fc.FuncconvError, match="has only padding"):
            pool({}, x)
        return
    compare(pool, lambda x: getattr(F, name)(x, window, **theirs), {}, x, [spatial_first(x)], [last])


def check_adaptive(rng, compare, reduce):
    n, *_, per_axis = geometry(rng, "pool")
    sizes, outputs = per_axis(1, 12), per_axis(1, 12)
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


def check_reduce(rng, compare, reduce):
    """Products, medians, log-sum-exps and norms, against PyTorch's on its own windows."""
    options = geometry(rng, "pool")[1]
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


def check_lp(rng, compare):
    """PyTorch's own lp_pool has no absolute value, so it is compared where that does not matter."""
    n, options, *_ = geometry(rng, "pool")
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


def check_indices(rng, compare):
    """Indices with overlap, padding and dilation, and back where PyTorch's way back is the transpose too."""
    n, options, *_, per_axis = geometry(rng, "pool")
    window, dilation = options["window"], per_axis(1, 3)
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

    stride = per_axis(4, 7)  # beyond the window, so that no input is taken twice
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
    "max_pool": partial(check_pool, reduce="max"),
    "avg_pool": partial(check_pool, reduce="mean"),
    "adaptive_max": partial(check_adaptive, reduce="max"),
    "adaptive_avg": partial(check_adaptive, reduce="mean"),
    "prod": partial(check_reduce, reduce="prod"),
    "median": partial(check_reduce, reduce="median"),
    "lse": partial(check_reduce, reduce="lse"),
    "norm": partial(check_reduce, reduce="lp"),
    "lp": check_lp,
    "indices": check_indices,
}
SHARE = {
    "conv": 82,
    "conv_transpose": 66,
    "max_pool": 32,
    "avg_pool": 32,
    "adaptive_max": 16,
    "adaptive_avg": 16,
    "prod": 6,
    "median": 6,
    "lse": 6,
    "norm": 6,
    "lp": 12,
    "indices": 20,
}


SHARE_OF_SECOND = {
    "conv": 32,
    "conv_transpose": 24,
    "max_pool": 12,
    "avg_pool": 10,
    "adaptive_max": 6,
    "adaptive_avg": 6,
    "prod": 2,
    "median": 2,
    "lse": 2,
    "norm": 2,
    "lp": 2,
}


def draws(share, *, every=1):
    """Return the mark that runs a test over random cases, of each kind its share, or a part of it."""
    cases = [(kind, i) for kind, count in share.items() for i in range(0, count, every)]
    return pytest.mark.parametrize(("kind", "draw"), cases)


def check(kind, seed, comparison):
    CHECKS[kind](np.random.default_rng([seed, *kind.encode()]), comparison)


@draws(SHARE, every=3)  # all of them in the slow run
def test_parity(kind, draw):
    check(kind, draw, compare)


@draws(SHARE_OF_SECOND, every=3)
def test_parity_of_second_derivatives(kind, draw):
    check(kind, 500 + draw, compare_second)


@pytest.mark.slow
@draws(SHARE)
def test_parity_on_many(kind, draw):
    for seed in range(1000 + 10 * draw, 1010 + 10 * draw):
        check(kind, seed, compare)
        if seed % 5 == 4:
            jax.clear_caches()


@pytest.mark.slow
@draws(SHARE_OF_SECOND)
def test_parity_of_second_derivatives_on_many(kind, draw):
    for seed in range(9000 + 20 * draw, 9020 + 20 * draw):
        check(kind, seed, compare_second)
        if seed % 5 == 4:
            jax.clear_caches()


def counted(network, x):
    """Return PyTorch's count of the operations of a network, forwards and backwards."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as forward:
        y = network(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("seed", range(20))
def test_summaries_count_operations_alike(seed):
    rng = np.random.default_rng(seed)
    groups, stride, dilation, window = (int(rng.integers(1, 4)) for _ in range(4))
    padding, inputs, outputs = (
        int(rng.integers(0, 3)),
        groups * int(rng.integers(1, 4)),
        groups * int(rng.integers(1, 4)),
    )
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    image = fc.Input("image", (17, 14, inputs))
    middle = 6 * groups
    layers = [
        fc.Conv(middle, window, groups=groups, **options),
        jnp.tanh,
        fc.ConvTranspose(outputs, 3, stride=2),
        fc.flatten,
        fc.Dense(7),
    ]
    ours = fc.Graph(image, fc.serial(*layers)(image))
    features = ours.shapes()["flatten1"].shape[0]
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(inputs, middle, window, groups=groups, **options),
        torch.nn.Tanh(),
        torch.nn.ConvTranspose2d(middle, outputs, 3, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(features, 7),
    )
    summary = fc.summary(ours, batch=3)
    surplus = (groups - 1) * next(row.flops for row in summary.rows if row.name == "conv1")
    expected = (
        summary.flops,
        summary.gradient_flops + surplus,
    )  # PyTorch takes a grouped kernel's gradient for a dense one
    assert counted(theirs, torch.ones(3, inputs, 17, 14)) == expected
