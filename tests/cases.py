"""Each op once, or once for each way in which it can be written: the laws run over this table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import funcconv as fc
from funcconv._primitives import whole_windows as _joint

SELECTIONS = ("max", "min", "median")


@dataclass(frozen=True)
class Case:
    """An op as a function of parameters and one array, with what it should give for one example."""

    name: str
    op: Callable[[Any, Any], Any]
    oracle: Callable[[Any, Any], Any]
    x: tuple[int, ...]  # without batch axes
    params: dict[str, Any] = field(default_factory=dict)  # a tree of shapes
    largest: bool = False  # selects by comparison, so integers will do and ties matter
    windows: Callable[[Any, Any], Any] | None = None  # of a pool: the same windows summed
    jacobian: Callable[[Any], Any] | None = None  # of a selection: by the inputs of the own channel

    def draw(self, rng, dtype=np.float64, batch=()):
        """Return parameters and an input; no two numbers are equal."""

        def array(shape):
            size = int(np.prod(shape))
            return jnp.asarray((rng.permutation(size) - size / 2 + 0.25).reshape(shape) / max(size, 1) * 2, dtype)

        return _map(array, self.params), array((*batch, *self.x))


def _map(f, shapes):
    return {name: _map(f, below) if isinstance(below, dict) else f(below) for name, below in shapes.items()}


def conv_case(name, kernel, x, bias=True, **options):
    shapes = {"kernel": kernel} | ({"bias": kernel[-1:]} if bias else {})
    op = partial(fc.conv, **options)
    options.pop("implementation", None)
    return Case(name, op, partial(oracles.conv, **options), x, shapes)


def transpose_case(name, kernel, y, size, bias=True, say_size=False, **options):
    shapes = {"kernel": kernel} | ({"bias": (kernel[-2] * options.get("groups", 1),)} if bias else {})
    op = partial(fc.conv_transpose, **options, **({"size": size} if say_size else {}))
    for ours in ("output_padding", "implementation"):
        options.pop(ours, None)
    return Case(name, op, partial(oracles.conv_transpose, size=size, **options), y, shapes)


def local_case(name, kernel, x, bias, **options):
    op, oracle = partial(fc.local_conv, **options), partial(oracles.local_conv, **options)
    return Case(name, op, oracle, x, {"kernel": kernel, "bias": bias})


def pool_case(name, x, window, **options):
    def op(params, x):
        del params
        return fc.pool(x, window, **options)

    def oracle(params, x):
        del params
        ours = {key: value for key, value in options.items() if key != "ties"}
        return oracles.pool(x, window, **ours)

    def windows(params, x):
        del params
        return fc.pool(x, window, **options | {"reduce": "sum"})

    jacobian = partial(oracles.pool_jacobian, window=window, **options)
    largest = options.get("reduce", "max") in SELECTIONS
    return Case(name, op, oracle, x, largest=largest, windows=windows, jacobian=jacobian if largest else None)


def plain_case(name, op, oracle, x, *, largest=False, windows=None, jacobian=None):
    return Case(
        name,
        lambda _, x: op(x),
        lambda _, x: oracle(x),
        x,
        largest=largest,
        windows=windows and (lambda _, x: windows(x)),
        jacobian=jacobian,
    )


def shape_case(name, op, x, *args, **options):
    """Return a case of `global_pool` or `adaptive_pool`."""
    sizes = (1,) * (len(x) - 1) if op is fc.global_pool else args[0]
    values = {key: value for key, value in options.items() if key != "ties"}
    oracle = partial(oracles.adaptive_pool, output_size=sizes, **values)
    largest = options.get("reduce") in SELECTIONS
    given = {"spatial": len(x) - 1} if op is fc.global_pool else {}

    def ours(x, **changed):
        return op(x, *args, **given | options | changed)

    def jacobian(x):
        shares = oracles.adaptive_jacobian(x, sizes, **options)
        return shares.reshape(shares.shape[-2:]) if given else shares

    return plain_case(
        name,
        ours,
        lambda x: oracle(x).reshape(-1, x.shape[-1])[0] if given else oracle(x),
        x,
        largest=largest,
        windows=partial(ours, reduce="sum"),
        jacobian=jacobian if largest else None,
    )


def unpool_case(name, x, window, **options):
    """Return a case of `max_unpool`, with the indices of a pool of some image."""
    image = np.random.default_rng(0).permutation(int(np.prod(x))).reshape(x)
    indices = oracles.pool(image, window, indices=True, **options).astype(np.int32)

    def op(params, y):
        del params
        whose = jnp.broadcast_to(indices, y.shape)
        return fc.max_unpool(y, whose, window, size=x[:-1], **{k: v for k, v in options.items() if k != "ceil_mode"})

    def oracle(params, y):
        del params
        return oracles.max_unpool(y, indices, x[:-1])

    return Case(name, op, oracle, indices.shape)


def rearranging_case(name, op, x, *args, **options):
    """Return a case of an op without parameters that moves numbers or adds them with fixed weights."""
    own = partial(op, **options) if op is fc.fold else partial(op, spatial=len(x) - 1, **options)
    oracle = partial(getattr(oracles, op.__name__), **options)
    return plain_case(name, lambda x: own(x, *args), lambda x: oracle(x, *args), x)


def warm_pool(params, x):
    return fc.pool(x, (3,), reduce="lse", stride=1, temperature=jnp.exp(params["log_temperature"]))


def warm_oracle(params, x):
    return oracles.pool(x, (3,), reduce="lse", stride=1, temperature=np.exp(params["log_temperature"]))


def sorted_median(params, x, **options):
    """Take the median of more taps than are compared in pairs."""
    del params
    with mock.patch.object(_joint, "_MEDIAN_PAIRWISE_TAPS", 16):
        return fc.pool(x, (17,), **{"reduce": "median", "stride": 5, "padding": 5} | options)


def sorted_oracle(params, x):
    del params
    return oracles.pool(x, (17,), reduce="median", stride=5, padding=5)


def by_example(op, ndim):
    """Return an op for arrays of so many axes, mapped over those in front."""

    def mapped(params, x, **options):
        f = partial(op, params, **options)
        for _ in range(x.ndim - ndim):
            f = jax.vmap(f)
        return f(x)

    return mapped


def norm_case(name, op, over, x, shape, groups=1):
    """Return a case of a normalization over some axes, `groups` of channels by themselves."""

    def oracle(params, x):
        parts = np.split(x, groups, axis=-1)
        y = np.concatenate(
            [(a - a.mean(over, keepdims=True)) / np.sqrt(a.var(over, keepdims=True) + 1e-2) for a in parts], -1
        )
        return y * params.get("scale", 1) + params.get("bias", 0)

    return Case(name, partial(op, epsilon=1e-2), oracle, x, shape)


def batch_norm(params, x, *, train, epsilon, mask=None):
    state = {"mean": jnp.array([0.5, -0.25]), "var": jnp.array([2.0, 0.5])}
    return fc.batch_norm(params, state, x, train=train, epsilon=epsilon, mask=mask)[0]


def batch_norm_oracle(params, x):
    return (x - np.array([0.5, -0.25])) / np.sqrt(np.array([2.0, 0.5]) + 1e-2) * params["scale"] + params["bias"]


def standardized(params, kernel, epsilon):
    del params
    return fc.weight_standardize({"kernel": kernel}, epsilon=epsilon)["kernel"]


def drop(params, x):
    del params
    return fc.dropout(jax.random.key(0), x, 0.25, spatial=1)


def drop_oracle(params, x):
    del params
    drawn = fc.dropout(jax.random.key(0), np.ones(x.shape, np.float32), 0.25, spatial=1)
    return x * (np.asarray(drawn) != 0) / 0.75


def drop_examples(params, x):
    del params
    return fc.drop_path(jax.random.key(1), x, 0.25)


def drop_examples_oracle(params, x):
    del params
    kept = jax.random.bernoulli(jax.random.key(1), 0.75, (len(x), 1, 1))
    return x * np.asarray(kept) / 0.75


def weight_norm_case(name, kernel, scale, **options):
    """Return a case whose input is the direction of a kernel."""
    axis = options.get("axis", -1)

    def op(params, v):
        return fc.weight_norm({"kernel": v, **params}, **options)["kernel"]

    oracle = partial(oracles.weight_norm, axis=axis if isinstance(axis, tuple) else (axis,))
    return Case(name, by_example(op, len(kernel)), oracle, kernel, {"scale": scale})


def masked_case(name, op, oracle, x, real, params=None, windows=None):
    """Return a case of an op with a mask whose real positions are so many of each axis, from the first on."""
    own = tuple(map(slice, real))

    def masked(params, x, op=op):
        mask = np.zeros(x.shape[-len(real) - 1 : -1], bool)
        mask[own] = True
        return op(
            params, x, mask=jnp.zeros_like(x.sum(-1), bool) | mask.reshape((1,) * (x.ndim - 1 - len(real)) + mask.shape)
        )

    def masked_oracle(params, x):
        result = oracle(params, x[own])
        y = np.zeros_like(oracle(params, x))
        y[tuple(map(slice, result.shape))] = result
        return y

    return Case(name, masked, masked_oracle, x, params or {}, windows=windows and partial(masked, op=windows))


def masked_pool_case(name, x, real, window, **options):
    oracle = partial(oracles.pool, window=window, **{key: value for key, value in options.items() if key != "ties"})

    def op(params, x, mask, **changed):
        del params
        return fc.pool(x, window, **options | changed, mask=mask)

    return masked_case(name, op, lambda _, x: oracle(x), x, real, windows=partial(op, reduce="sum"))


def masked_norm_case(name, x, real, params, groups):
    """Return a case of `group_norm`, or of `batch_norm` in training if there are no groups."""
    if groups:
        op = partial(fc.group_norm, groups=groups, spatial=len(real), epsilon=1e-2)
    else:
        op = by_example_with_mask(partial(batch_norm, train=True, epsilon=1e-2), len(x))
    case = norm_case(
        name, op, tuple(range(len(real) + 1)) if groups else tuple(range(len(real))), x, params, groups or 1
    )
    return masked_case(name, op, case.oracle, x, real, params)


def by_example_with_mask(op, ndim):
    """Return an op for arrays of so many axes and their masks, mapped over the axes in front."""

    def mapped(params, x, mask):
        def f(x, mask):
            return op(params, x, mask=mask)

        for _ in range(x.ndim - ndim):
            f = jax.vmap(f)
        return f(x, mask)

    return mapped


def renormalized_oracle(params, x):
    """Compute a partial convolution of an image without holes, whose padding is not real."""
    ones = np.ones((*params["kernel"].shape[:-2], 1, 1))
    real = oracles.conv({"kernel": ones}, np.ones((*x.shape[:-1], 1)), padding=1)
    y = oracles.conv({"kernel": params["kernel"]}, x, padding=1)
    return y * (ones.size / real) + params["bias"]


def std(taps, axis):
    """Compute the deviation by NumPy or by JAX."""
    return (jnp if isinstance(taps, jax.Array) else np).std(taps, axis=axis)


def channels_last(f):
    """Return the oracle for an array of one image whose channels are first."""
    return lambda params, x: np.moveaxis(f(params, np.moveaxis(x, 0, -1)), -1, 0)


def _twin_graph():
    a, b = fc.Input("a", (5, 4, 1)), fc.Input("b", (5, 4, 1))
    trunk = fc.serial(fc.Conv(2, 2), jnp.tanh, fc.Pool(2), fc.Flatten(), fc.Dense(2))
    return fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b))


def _twin(params, x):
    return _twin_graph()(params, x[..., :1], x[..., 1:])


def _twin_oracle(params, x):
    def trunk(x):
        x = oracles.pool(np.tanh(oracles.conv(params["conv1"], x)), 2)
        return x.reshape(-1) @ params["dense1"]["kernel"] + params["dense1"]["bias"]

    return trunk(x[..., :1]) - trunk(x[..., 1:])


_TWIN = {
    "conv1": {"kernel": (2, 2, 1, 2), "bias": (2,)},
    "dense1": {"kernel": (4, 2), "bias": (2,)},
}

TRANSPOSED = {
    "stride": 2,
    "dilation": (2, 1),
    "padding": (1, 0),
    "groups": 2,
    "pad_mode": ("circular", "zeros"),
    "flip": True,
}

REARRANGED = {
    "stride": (2, 1),
    "padding": ((3, 4), (5, -1)),
    "dilation": (2, 1),
    "pad_mode": ("reflect", "circular"),
}

CASES = [
    conv_case("conv", (3, 2, 2, 3), (5, 4, 2)),
    conv_case("conv-1d-no-bias", (3, 2, 2), (6, 2), bias=False),
    conv_case("conv-3d", (2, 2, 3, 1, 2), (3, 3, 4, 1), padding=1),
    conv_case(
        "conv-everything",
        (3, 2, 2, 6),
        (7, 5, 4),
        stride=(2, 1),
        padding=((1, 3), (-1, 4)),
        dilation=(1, 2),
        groups=2,
    ),
    conv_case("conv-depthwise", (3, 3, 1, 6), (5, 5, 3), groups=3, padding=1),
    conv_case("conv-leftover", (2, 1, 1, 2), (8, 6, 1), stride=(3, 4), bias=False),
    conv_case("conv-wide-padding", (2, 2, 1, 2), (4, 3, 1), padding=((5, 0), (0, 4))),
    conv_case("conv-modes", (3, 3, 2, 2), (4, 5, 2), padding=(2, 3), pad_mode=("reflect", "circular"), stride=2),
    conv_case("conv-modes-wide", (3, 2, 1, 2), (3, 2, 1), padding=((5, 4), (3, -1)), pad_mode=("symmetric", "reflect")),
    conv_case("conv-replicate-and-zeros", (2, 3, 1, 2), (4, 4, 1), padding=2, pad_mode=("replicate", "zeros")),
    conv_case("conv-flip", (3, 2, 2, 2), (5, 4, 2), flip=True),
    Case(
        "conv-channels-first",
        partial(fc.conv, layout="NCHW", stride=2),
        channels_last(partial(oracles.conv, stride=2)),
        (3, 6, 5),
        {"kernel": (2, 3, 3, 4), "bias": (4,)},
    ),
    transpose_case("conv_transpose", (3, 2, 2, 3), (3, 2, 3), (5, 3)),
    transpose_case("conv_transpose-1d", (4, 2, 1), (3, 1), 8, stride=2, padding=((1, -1),), bias=False),
    transpose_case(
        "conv_transpose-size", (3, 3, 1, 2), (2, 3, 2), (8, 7), say_size=True, stride=(3, 2), padding=((0, 0), (0, 1))
    ),
    transpose_case("conv_transpose-output-padding", (3, 2, 2), (3, 2), 6, stride=2, padding=1, output_padding=1),
    transpose_case(
        "conv_transpose-output-padding-dilated",
        (2, 3, 2, 2),
        (3, 2, 2),
        (8, 8),
        stride=(2, 1),
        dilation=(4, 3),
        padding=(2, 1),
        output_padding=(3, 2),
    ),
    transpose_case(
        "conv_transpose-everything",
        (2, 3, 2, 4),
        (3, 2, 4),
        (5, 6),
        say_size=True,
        **TRANSPOSED,
    ),
    Case(
        "conv_transpose-channels-first",
        partial(fc.conv_transpose, layout="NCHW", stride=2),
        channels_last(partial(oracles.conv_transpose, size=(6, 5), stride=2)),
        (4, 3, 2),
        {"kernel": (2, 3, 2, 4)},
    ),
    conv_case("conv-fft", (3, 2, 2, 3), (5, 4, 2), padding=1, implementation="fft"),
    conv_case(
        "conv-fft-everything",
        (3, 2, 2, 6),
        (7, 5, 4),
        stride=(2, 1),
        padding=((1, 3), (-1, 4)),
        dilation=(1, 2),
        groups=2,
        implementation="fft",
    ),
    transpose_case(
        "conv_transpose-fft",
        (2, 3, 2, 4),
        (3, 2, 4),
        (5, 6),
        say_size=True,
        **TRANSPOSED,
        implementation="fft",
    ),
    local_case("local_conv", (3, 2, 2, 2, 2, 3), (4, 3, 2), (3, 2, 3)),
    local_case(
        "local_conv-everything",
        (3, 2, 2, 2, 1, 4),
        (5, 4, 2),
        (4,),
        stride=2,
        padding=((2, 0), (1, 0)),
        dilation=(2, 1),
        groups=2,
        pad_mode=("reflect", "zeros"),
        flip=True,
    ),
    pool_case("max_pool", (4, 6, 2), (2, 2)),
    pool_case("max_pool-overlapping", (5, 7, 2), (3, 2), stride=(2, 1), padding=((1, 1), (0, 1))),
    pool_case("max_pool-dilated", (7, 5, 1), (2, 3), stride=1, dilation=(3, 2)),
    pool_case("max_pool-wide", (25, 2), (11,), stride=3, dilation=2),
    pool_case("max_pool-modes", (4, 5, 2), (3, 3), stride=2, padding=2, pad_mode=("circular", None)),
    pool_case("max_pool-split", (5, 6, 2), (3, 2), stride=1, padding=1, ties="split"),
    pool_case("max_pool-split-modes", (5, 4, 1), (2, 3), padding=2, pad_mode=("zeros", None), ties="split"),
    pool_case("max_pool-wide-ceil", (14, 8, 1), (9, 2), stride=(2, 3), padding=((4, 3), (1, 0)), ceil_mode=True),
    pool_case("min_pool-apart", (5, 7, 2), (3, 2), reduce="min", padding=1),
    pool_case("min_pool-crop", (8, 9, 1), (2, 3), reduce="min", stride=2, padding=((-2, 1), (2, -1)), dilation=(2, 1)),
    pool_case(
        "min_pool-split-ceil", (6, 5, 1), (3, 2), reduce="min", stride=2, padding=1, ceil_mode=True, ties="split"
    ),
    pool_case("min_pool-3d", (4, 3, 4, 1), (2, 2, 3), reduce="min", stride=1),
    pool_case("sum_pool", (6, 5, 2), (3, 3), reduce="sum", stride=(1, 2), padding=1),
    pool_case("sum_pool-wide", (40, 1), (17,), reduce="sum", stride=4, padding=3),
    pool_case("avg_pool", (5, 5, 2), (2, 3), reduce="mean", stride=2, padding=1),
    pool_case("avg_pool-include", (5, 4, 2), (3, 2), reduce="mean", stride=2, padding=1, count_include_pad=True),
    pool_case("avg_pool-ceil", (6, 5, 1), (3, 2), reduce="mean", stride=2, padding=1, ceil_mode=True),
    pool_case(
        "avg_pool-ceil-include",
        (6, 5, 1),
        (3, 2),
        reduce="mean",
        stride=2,
        padding=1,
        ceil_mode=True,
        count_include_pad=True,
    ),
    pool_case("prod_pool", (4, 6, 2), (2, 2), reduce="prod"),
    pool_case("prod_pool-overlapping", (5, 4, 2), (3, 2), reduce="prod", stride=(2, 1), padding=1),
    pool_case("prod_pool-dilated", (7, 5, 1), (2, 3), reduce="prod", stride=1, dilation=(3, 2)),
    pool_case("prod_pool-modes", (4, 5, 1), (3, 2), reduce="prod", stride=2, padding=1, pad_mode=("reflect", None)),
    pool_case("prod_pool-wide", (14, 2), (11,), reduce="prod", stride=2, padding=3, ceil_mode=True),
    pool_case("lse_pool", (4, 6, 2), (2, 2), reduce="lse"),
    pool_case("lse_pool-overlapping", (5, 4, 2), (3, 2), reduce="lse", stride=(2, 1), padding=1, temperature=0.2),
    pool_case("lse_pool-dilated", (7, 5, 1), (2, 3), reduce="lse", stride=1, dilation=(3, 2), temperature=2),
    pool_case("lse_pool-modes", (4, 5, 1), (3, 2), reduce="lse", stride=2, padding=1, pad_mode=(None, "zeros")),
    pool_case("lse_pool-wide", (14, 2), (11,), reduce="lse", stride=2, padding=3, ceil_mode=True),
    Case(
        "lse_pool-temperature",
        warm_pool,
        warm_oracle,
        (5, 2),
        {"log_temperature": ()},
        windows=lambda params, x: fc.pool(x, (3,), reduce="sum", stride=1),  # noqa: ARG005
    ),
    pool_case("lp_pool", (4, 6, 2), (2, 2), reduce="lp"),
    pool_case("lp_pool-overlapping", (5, 4, 2), (3, 2), reduce="lp", stride=(2, 1), padding=1, p=3),
    pool_case("lp_pool-dilated", (7, 5, 1), (2, 3), reduce="lp", stride=1, dilation=(3, 2), p=float("inf")),
    pool_case("lp_pool-modes", (4, 5, 1), (3, 2), reduce="lp", stride=2, padding=1, pad_mode=("circular", None), p=1),
    pool_case("lp_pool-wide", (43, 2), (41,), reduce="lp", padding=2, stride=3, p=4),
    pool_case("median_pool", (4, 6, 2), (2, 2), reduce="median"),
    pool_case("median_pool-overlapping", (5, 4, 2), (3, 2), reduce="median", stride=(2, 1), padding=1),
    pool_case("median_pool-dilated", (7, 5, 1), (2, 3), reduce="median", stride=1, dilation=(3, 2)),
    pool_case("median_pool-modes", (5, 6, 1), (5, 4), reduce="median", padding=1, pad_mode=("symmetric", "zeros")),
    pool_case("median_pool-wide", (30, 1), (19,), reduce="median", stride=5, padding=4, ceil_mode=True),
    Case(
        "median_pool-sorted",
        sorted_median,
        sorted_oracle,
        (18, 1),
        largest=True,
        windows=partial(sorted_median, reduce="sum"),
        jacobian=partial(oracles.pool_jacobian, window=17, reduce="median", stride=5, padding=5),
    ),
    pool_case("std_pool", (5, 4, 2), (2, 3), reduce=std, stride=1),
    pool_case("std_pool-modes", (4, 5, 1), (3, 2), reduce=std, stride=2, padding=1, pad_mode="replicate"),
    unpool_case("max_unpool", (4, 6, 2), (2, 2)),
    unpool_case("max_unpool-overlapping", (5, 7, 1), (3, 2), stride=(2, 1), padding=((1, 1), (0, 1)), ceil_mode=True),
    unpool_case("max_unpool-dilated", (9, 7, 1), (3, 2), stride=(1, 3), dilation=(2, 3), padding=((2, 0), (-1, 2))),
    unpool_case("max_unpool-large", (11, 10, 1), (9, 8), stride=1),  # more windows at a place than are unrolled
    shape_case("global_pool-max", fc.global_pool, (11, 2), reduce="max"),
    shape_case("global_pool-split", fc.global_pool, (3, 4, 2), reduce="min", ties="split"),
    shape_case("global_pool-mean", fc.global_pool, (5, 2)),
    shape_case("global_pool-lse", fc.global_pool, (3, 4, 2), reduce="lse", temperature=0.5),
    shape_case("global_pool-lp", fc.global_pool, (3, 4, 2), reduce="lp", p=4),
    shape_case("global_pool-median", fc.global_pool, (3, 4, 2), reduce="median"),
    shape_case("adaptive_pool", fc.adaptive_pool, (5, 6, 2), (3, 4)),
    shape_case("adaptive_pool-max-up", fc.adaptive_pool, (3, 2), (5,), reduce="max"),
    shape_case("adaptive_pool-split", fc.adaptive_pool, (5, 6, 1), (3, 4), reduce="max", ties="split"),
    shape_case("adaptive_pool-prod", fc.adaptive_pool, (5, 6, 1), (3, 4), reduce="prod"),
    shape_case("adaptive_pool-lp", fc.adaptive_pool, (5, 6, 1), (3, 4), reduce="lp", p=3),
    shape_case("adaptive_pool-median", fc.adaptive_pool, (6, 4, 1), (4, 4), reduce="median"),
    shape_case("adaptive_pool-std", fc.adaptive_pool, (6, 8, 1), (2, 3), reduce=std),
    rearranging_case("unfold", fc.unfold, (4, 5, 2), (2, 3)),
    rearranging_case("unfold-everything", fc.unfold, (6, 5, 2), (3, 2), **REARRANGED),
    rearranging_case("unfold-wide", fc.unfold, (70, 1), 66, stride=2, padding=1),
    Case(
        "unfold-channels-first",
        lambda _, x: fc.unfold(x, 2, layout="NCHW"),
        lambda _, x: oracles.unfold(np.moveaxis(x, 0, -1), 2).transpose(4, 2, 3, 0, 1),
        (2, 3, 4),
    ),
    rearranging_case("fold", fc.fold, (3, 3, 2, 3, 2), (4, 5)),
    rearranging_case("fold-everything", fc.fold, (5, 8, 3, 2, 2), (6, 5), **REARRANGED),
    rearranging_case("fold-wide", fc.fold, (4, 66, 1), (70,), stride=2, padding=1),
    Case(
        "fold-channels-first",
        lambda _, p: fc.fold(p, (3, 4), layout="NCHW"),
        lambda _, p: np.moveaxis(oracles.fold(p.transpose(3, 4, 1, 2, 0), (3, 4)), -1, 0),
        (2, 2, 2, 2, 3),
    ),
    rearranging_case("pixel_shuffle", fc.pixel_shuffle, (2, 3, 12), (2, 3)),
    rearranging_case("pixel_shuffle-tensorflow", fc.pixel_shuffle, (1, 2, 2, 16), 2, order="tensorflow"),
    rearranging_case("pixel_unshuffle", fc.pixel_unshuffle, (4, 6, 2), (2, 3)),
    rearranging_case("pixel_unshuffle-tensorflow", fc.pixel_unshuffle, (6, 2), 3, order="tensorflow"),
    rearranging_case("resize", fc.resize, (3, 2, 5, 1), (7, 4, 2)),
    rearranging_case("resize-exact", fc.resize, (5, 4, 1), (3, 7), method="nearest-exact"),
    rearranging_case("resize-linear", fc.resize, (3, 6, 2), (6, 4), method="linear"),
    rearranging_case("resize-corners", fc.resize, (4, 2, 3, 1), (3, 5, 1), method="linear", align_corners=True),
    rearranging_case("resize-scale", fc.resize, (5, 4, 1), scale=(1.7, 0.6), method="linear"),
    rearranging_case("resize-cubic", fc.resize, (3, 5, 2), (7, 4), method="cubic"),
    rearranging_case("resize-antialias", fc.resize, (9, 5, 1), (4, 6), method="cubic", antialias=True),
    rearranging_case("resize-antialias-linear", fc.resize, (11, 2), 4, method="linear", antialias=True),
    rearranging_case("resize-part", fc.resize, (5, 4, 2), (3, 6), method="linear", coordinates=((0.3, 3.1), (4, -1))),
    rearranging_case(
        "resize-outside",
        fc.resize,
        (5, 4, 1),
        (8, 3),
        method="cubic",
        coordinates="asymmetric",
        cubic_coefficient=-0.5,
        exclude_outside=True,
    ),
    rearranging_case("resize-area", fc.resize, (5, 6, 2), (3, 8), method="area"),
    rearranging_case("blur_pool", fc.blur_pool, (5, 4, 2), 3),
    rearranging_case("blur_pool-wide", fc.blur_pool, (9, 2), 6, stride=3, padding=((4, 2),), pad_mode="circular"),
    Case(
        "dense",
        fc.dense,
        lambda params, x: x @ params["kernel"] + params["bias"],
        (4,),
        {"kernel": (4, 3), "bias": (3,)},
    ),
    plain_case("flatten", partial(fc.flatten, spatial=2), np.ravel, (2, 3, 2)),
    plain_case(
        "flatten-channels-first",
        partial(fc.flatten, spatial=2, order="channels_first"),
        lambda x: np.moveaxis(x, -1, 0).ravel(),
        (2, 3, 2),
    ),
    norm_case("layer_norm", fc.layer_norm, -1, (3, 4), {"scale": (4,), "bias": (4,)}),
    norm_case("layer_norm-image", fc.layer_norm, (0, 1, 2), (2, 3, 2), {"scale": (2, 3, 2)}),
    norm_case(
        "group_norm",
        partial(fc.group_norm, groups=2, spatial=1),
        (0, 1),
        (3, 6),
        {"scale": (6,), "bias": (6,)},
        2,
    ),
    norm_case("group_norm-channels", partial(fc.group_norm, groups=3, spatial=2), (0, 1), (3, 2, 3), {"bias": (3,)}),
    Case(
        "instance_norm",
        partial(fc.instance_norm, spatial=2, epsilon=1e-2),
        partial(oracles.instance_norm, epsilon=1e-2),
        (3, 2, 3),
        {"scale": (3,), "bias": (3,)},
    ),
    Case(
        "instance_norm-channels-first",
        partial(fc.instance_norm, layout="NCWHD", epsilon=1e-2),
        channels_last(partial(oracles.instance_norm, epsilon=1e-2)),
        (2, 3, 1, 2),
        {"scale": (2,), "bias": (2,)},
    ),
    Case(
        "rms_norm",
        partial(fc.rms_norm, epsilon=1e-2),
        partial(oracles.rms_norm, axes=1, epsilon=1e-2),
        (3, 4),
        {"scale": (4,)},
    ),
    Case(
        "rms_norm-image",
        partial(fc.rms_norm, axes=3, epsilon=1e-2),
        partial(oracles.rms_norm, axes=3, epsilon=1e-2),
        (2, 3, 2),
    ),
    plain_case(
        "local_response_norm",
        partial(fc.local_response_norm, size=4, alpha=3.0, beta=0.6, k=0.5),
        partial(oracles.local_response_norm, size=4, alpha=3.0, beta=0.6, k=0.5),
        (3, 6),
    ),
    plain_case(
        "local_response_norm-wide",
        partial(fc.local_response_norm, size=25, alpha=2.0, layout="NCHW"),
        lambda x: np.moveaxis(oracles.local_response_norm(np.moveaxis(x, 0, -1), 25, alpha=2.0), -1, 0),
        (13, 2, 1),
    ),
    norm_case(
        "batch_norm-train",
        by_example(partial(batch_norm, train=True), 3),
        (0, 1),
        (3, 4, 2),
        {"scale": (2,), "bias": (2,)},
    ),
    Case(
        "batch_norm",
        partial(batch_norm, train=False, epsilon=1e-2),
        batch_norm_oracle,
        (3, 2),
        {"scale": (2,), "bias": (2,)},
    ),
    norm_case("weight_standardize", by_example(standardized, 4), (0, 1, 2), (2, 3, 2, 3), {}),
    weight_norm_case("weight_norm", (2, 3, 2, 3), (3,)),
    weight_norm_case("weight_norm-axes", (2, 3, 2), (2, 3), axis=(1, 0)),
    Case("dropout", by_example(drop, 3), drop_oracle, (4, 5, 6)),
    Case("drop_path", by_example(drop_examples, 3), drop_examples_oracle, (6, 2, 3)),
    Case("graph-siamese", _twin, _twin_oracle, (5, 4, 2), _TWIN),
    masked_case(
        "conv-masked",
        partial(fc.conv, stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(1, 2), groups=2),
        partial(oracles.conv, stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(1, 2), groups=2),
        (7, 6, 4),
        (5, 4),
        {"kernel": (3, 2, 2, 2), "bias": (2,)},
    ),
    Case(
        "conv-renormalized",
        partial(fc.conv, padding=1, renormalize=True),
        renormalized_oracle,
        (4, 3, 2),
        {"kernel": (3, 2, 2, 3), "bias": (3,)},
    ),
    masked_case(
        "conv_transpose-masked",
        partial(fc.conv_transpose, stride=2, padding=1),
        lambda params, y: oracles.conv_transpose(
            params, y, size=tuple(2 * n - 1 for n in y.shape[:-1]), stride=2, padding=1
        ),
        (4, 3, 2),
        (2, 3),
        {"kernel": (3, 3, 2, 2), "bias": (2,)},
    ),
    masked_pool_case("max_pool-masked", (7, 6, 2), (4, 5), (3, 2), stride=(2, 1), padding=1),
    masked_pool_case("max_pool-masked-split", (8, 2), (5,), (3,), stride=1, padding=1, ties="split"),
    masked_pool_case("avg_pool-masked", (7, 6, 2), (4, 5), (3, 2), reduce="mean", stride=2, padding=1),
    masked_pool_case("median_pool-masked", (8, 2), (5,), (3,), reduce="median", stride=1, padding=1),
    masked_case(
        "global_pool-masked",
        lambda _, x, mask: fc.global_pool(x, "lse", mask=mask, spatial=2),
        lambda _, x: oracles.adaptive_pool(x, (1, 1), reduce="lse")[0, 0],
        (4, 5, 2),
        (3, 3),
        windows=lambda _, x, mask: fc.global_pool(x, "sum", mask=mask, spatial=2),
    ),
    masked_case(
        "adaptive_pool-masked",
        lambda _, x, mask: fc.adaptive_pool(x, (2, 3), mask=mask),
        lambda _, x: oracles.adaptive_pool(x, (2, 3)),
        (6, 5, 2),
        (5, 4),
    ),
    masked_norm_case("group_norm-masked", (4, 3, 6), (3, 2), {"scale": (6,), "bias": (6,)}, 2),
    masked_norm_case("batch_norm-masked", (5, 2), (3,), {"scale": (2,), "bias": (2,)}, None),
]

# Rows that show what others in the table show too: they run with `pytest -m slow`.
SLOW = {
    "prod_pool",
    "prod_pool-dilated",
    "prod_pool-modes",
    "prod_pool-wide",
    "lse_pool",
    "lse_pool-dilated",
    "lse_pool-modes",
    "lse_pool-wide",
    "lp_pool",
    "lp_pool-modes",
    "lp_pool-dilated",
    "lp_pool-wide",
    "median_pool",
    "median_pool-dilated",
    "median_pool-modes",
    "median_pool-wide",
    "std_pool",
    "max_unpool",
    "max_unpool-dilated",
    "global_pool-lse",
    "global_pool-lp",
    "global_pool-median",
    "conv-leftover",
    "conv-modes-wide",
    "conv-replicate-and-zeros",
    "conv_transpose-1d",
    "avg_pool-ceil",
    "adaptive_pool-max-up",
    "adaptive_pool-prod",
    "adaptive_pool-lp",
    "adaptive_pool-std",
    "avg_pool-ceil-include",
    "sum_pool-wide",
    "layer_norm-image",
    "group_norm-channels",
    "instance_norm-channels-first",
    "rms_norm-image",
    "weight_norm-axes",
    "max_pool-split-modes",
    "max_pool-wide-ceil",
    "min_pool-crop",
    "min_pool-split-ceil",
    "global_pool-split",
    "adaptive_pool-split",
    "unfold-wide",
    "unfold-channels-first",
    "fold-wide",
    "fold-channels-first",
    "resize-exact",
    "resize-corners",
    "resize-antialias-linear",
    "resize-part",
    "resize-outside",
    "resize-area",
    "blur_pool-wide",
    "conv-renormalized",
    "max_pool-masked-split",
    "avg_pool-masked",
    "median_pool-masked",
    "adaptive_pool-masked",
    "batch_norm-masked",
}
assert {case.name for case in CASES} >= SLOW


# Rows that stand for their op where a law asks for much compiling, and does not depend on how windows lie.
CHIEF = {
    "conv",
    "conv-everything",
    "conv-modes",
    "conv-fft-everything",
    "conv_transpose-everything",
    "local_conv-everything",
    "max_pool-overlapping",
    "max_pool-wide",
    "max_pool-split",
    "max_pool-masked",
    "min_pool-3d",
    "sum_pool",
    "avg_pool-include",
    "prod_pool-overlapping",
    "lse_pool-overlapping",
    "lse_pool-temperature",
    "lp_pool-overlapping",
    "median_pool-overlapping",
    "median_pool-sorted",
    "std_pool-modes",
    "max_unpool-overlapping",
    "max_unpool-large",
    "global_pool-max",
    "adaptive_pool",
    "unfold-everything",
    "fold-everything",
    "pixel_shuffle",
    "resize-cubic",
    "blur_pool",
    "dense",
    "flatten",
    "graph-siamese",
    "layer_norm",
    "group_norm",
    "group_norm-masked",
    "instance_norm",
    "rms_norm",
    "local_response_norm",
    "local_response_norm-wide",
    "batch_norm-train",
    "dropout",
    "drop_path",
    "weight_standardize",
    "weight_norm",
}
assert {case.name for case in CASES} - SLOW >= CHIEF


# Of those, the ones whose second and third derivatives are not made as those of another row.
ORIGINAL = CHIEF - {
    "conv",
    "group_norm-masked",
    "max_pool-overlapping",
    "sum_pool",
    "lse_pool-overlapping",
    "median_pool-overlapping",
    "min_pool-3d",
    "lp_pool-overlapping",
    "global_pool-max",
    "layer_norm",
    "instance_norm",
    "local_response_norm-wide",
    "drop_path",
    "unfold-everything",
    "pixel_shuffle",
    "blur_pool",
}


# And of those, one for each way in which JAX is asked for derivatives: on a second version of it these are enough.
EVERYWHERE = {
    "conv-everything",
    "conv-fft-everything",
    "conv_transpose-everything",
    "max_pool-split",
    "lse_pool-temperature",
    "std_pool-modes",
    "max_unpool-large",
    "graph-siamese",
    "batch_norm-train",
}
assert EVERYWHERE < ORIGINAL


def each(keep=lambda case: True, rows=None, everywhere=None):  # noqa: ARG005
    """Return the mark that runs a test over the rows that are kept.

    Those not among `rows` are slow, and those not among `everywhere` are left to one version of JAX.
    """
    fast = rows or {case.name for case in CASES} - SLOW

    def marks(name):
        marks = [] if name in fast else [pytest.mark.slow]
        return marks if everywhere is None or name in everywhere else [*marks, pytest.mark.once]

    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name, marks=marks(case.name)) for case in CASES if keep(case)]
    )
