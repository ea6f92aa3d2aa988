"""Singular values of a convolution as a linear map on images of a given size."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.dtypes import scale_of, wide
from .._common.errors import FuncconvError
from .._common.types import Array, Padding, PadMode, Params, Shape, Sizes
from .._windows.geometry import pad_modes, per_axis, resolve
from .conv import conv
from .conv_transpose import conv_transpose
from .matrix import conv_matrix
from .parameters import check_groups, check_inexact, check_kernel, entry

_DEFAULT_COUNT = 6
_MOST_DENSE = 256  # a map with at most so many inputs or outputs is written as a matrix
_PER_VECTOR = 5  # LOBPCG needs at least so many numbers for each vector
_MORE_VECTORS = 4  # that it follows: convergence depends on the distance to the first value that it leaves out

LinearMap = Callable[[Array], Array]


def singular_values(
    params: Params,
    spatial_shape: Sizes,
    *,
    k: int | None = None,
    stride: Sizes = 1,
    padding: Padding = "circular",
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    iterations: int = 200,
) -> Array:
    r"""Return the singular values of a convolution, as a linear map on images of a given size.

    With circular padding and stride 1, the discrete Fourier transform turns the convolution into one small matrix for
    each frequency `f`,

    $$W_f = \sum_t w_t \, e^{2 \pi i \, f \cdot t \cdot dilation / size}$$

    and its singular values are those of all `W_f`. They are exact up to rounding. With other options the largest `k`
    are computed by iterations with `conv` and `conv_transpose` (LOBPCG), or from the matrix of a small map.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`. The bias is ignored, since it is not linear.
        spatial_shape: sizes of the spatial axes of the image. One integer for all of them, or one per axis.
        k: number of singular values. Default: None, all of them with circular padding and stride 1, otherwise the
            largest 6, or all if there are fewer.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: `"circular"`: the image is periodic, and the result has as many positions as the image, divided by the
            stride and rounded up. Otherwise as in `conv`: positions added before and after each spatial axis, as one
            integer, one integer per axis, one pair `(before, after)` per axis, or one of the names `"VALID"`, `"SAME"`,
            `"SAME_LOWER"`, `"HALF"`, `"FULL"` and `"CAUSAL"`. Default: `"circular"`.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"`, `"symmetric"`, `"replicate"` or `"circular"`. One mode
            for all spatial axes, or one per axis. Leave it out with `padding="circular"`. Default: `"zeros"`.
        iterations: largest number of iterations for the largest `k`. They stop earlier if the result no longer
            improves. After too few iterations the result is too small. Default: 200.

    Returns:
        `(count,)`, from the largest to the smallest, with the dtype of the kernel, or the real one of a complex kernel.
        Half-precision kernels are computed in float32. The result is differentiable; where two singular values are
        equal, they have only a first derivative, which belongs to one choice of their singular vectors. A kernel with a
        NaN or an infinity gives NaN.

    Raises:
        FuncconvError: if the groups do not match the kernel, if a window does not fit, if `k` is not from 1 to the
            number of singular values, or if a large map with a complex kernel is not circular.

    Source: Sedghi, Gupta and Long, "The singular values of convolutional layers", 2019, arXiv:1805.10408. LOBPCG:
        Knyazev, 2001.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> difference = {"kernel": jnp.array([-1.0, 1.0]).reshape(2, 1, 1)}
        >>> values = fc.singular_values(difference, 4)  # of x[i + 1] - x[i] on a ring of four
        >>> [round(float(value), 3) for value in values]
        [2.0, 1.414, 1.414, 0.0]
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    options |= {"groups": groups, "pad_mode": pad_mode}
    return _values("singular_values", params, spatial_shape, options, k, iterations)


def _values(
    op: str, params: Params, spatial_shape: Sizes, options: dict[str, Any], k: int | None, iterations: int
) -> Array:
    """Return the largest `k` singular values. For None it decides how many, as `singular_values` says."""
    kernel, sizes, options, circular = _read(op, params, spatial_shape, options)
    groups = options["groups"]
    axes = resolve(op, sizes, kernel.shape[:-2], **{name: options[name] for name in ("stride", "padding", "dilation")})
    inputs = math.prod(sizes) * kernel.shape[-2] * groups
    outputs = math.prod(axis.outputs for axis in axes) * kernel.shape[-1]
    count = min(inputs, outputs)
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= count):
        msg = f"{op}: k must be an integer from 1 to {count}, the number of singular values; got {k!r}"
        raise FuncconvError(msg)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        msg = f"{op}: iterations must be an integer of at least 1; got {iterations!r}"
        raise FuncconvError(msg)
    scale = scale_of(jnp.abs(kernel))  # so that no square of a number overflows
    kernel = kernel / scale.astype(kernel.dtype)
    if circular:
        values = _of_frequencies(kernel, sizes, options["dilation"], groups)[:k]
    elif count <= max(_MOST_DENSE, _PER_VECTOR * ((k or _DEFAULT_COUNT) + _MORE_VECTORS)):
        matrix = conv_matrix({"kernel": kernel}, sizes, **options)
        values = jnp.linalg.svd(matrix, compute_uv=False)[: k or _DEFAULT_COUNT]
    else:
        if jnp.issubdtype(kernel.dtype, jnp.complexfloating):
            msg = (
                f"{op}: the kernel is {kernel.dtype}, and the map has {inputs} inputs and {outputs} outputs; for "
                f'complex kernels pass padding="circular" and stride 1, or at most {_MOST_DENSE} inputs or outputs'
            )
            raise FuncconvError(msg)
        values = _largest(kernel, sizes, options, k or _DEFAULT_COUNT, iterations)
    return (values * scale).astype(_real(entry(op, params)[0].dtype))


def operator_norm(
    params: Params,
    spatial_shape: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = "circular",
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    iterations: int = 200,
) -> Array:
    """Return the operator norm of a convolution: its largest singular value, as a linear map on images of a given size.

    It is the smallest number `L` with `|conv(x) - conv(z)| <= L |x - z|` for all images `x` and `z`.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`. The bias is ignored.
        spatial_shape: sizes of the spatial axes of the image. One integer for all of them, or one per axis.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: `"circular"`: the image is periodic, and the result has as many positions as the image, divided by the
            stride and rounded up. Otherwise as in `conv`: positions added before and after each spatial axis, as one
            integer, one integer per axis, one pair `(before, after)` per axis, or one of the names `"VALID"`, `"SAME"`,
            `"SAME_LOWER"`, `"HALF"`, `"FULL"` and `"CAUSAL"`. Default: `"circular"`.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"`, `"symmetric"`, `"replicate"` or `"circular"`. One mode
            for all spatial axes, or one per axis. Leave it out with `padding="circular"`. Default: `"zeros"`.
        iterations: largest number of iterations if the padding is not circular or a stride is above 1. After too few
            iterations the result is too small. Default: 200.

    Returns:
        A scalar with the dtype of the kernel, or the real one of a complex kernel. Its derivative with respect to the
        kernel is that of the singular value; where several are the largest, it is a subgradient.

    Raises:
        FuncconvError: as `singular_values`: if the groups do not match the kernel, if a window does not fit, or if a
            large map with a complex kernel is not circular.

    Source: Sedghi, Gupta and Long, "The singular values of convolutional layers", 2019, arXiv:1805.10408.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> blur = {"kernel": jnp.array([0.25, 0.5, 0.25]).reshape(3, 1, 1)}
        >>> round(float(fc.operator_norm(blur, 16)), 4), round(float(fc.operator_norm(blur, 16, padding="SAME")), 4)
        (1.0, 0.9915)
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"pad_mode": pad_mode}
    return _values("operator_norm", params, spatial_shape, options, 1, iterations)[0]


def _read(
    op: str, params: Params, spatial_shape: Sizes, options: dict[str, Any]
) -> tuple[Array, Shape, dict[str, Any], bool]:
    """Return the kernel, the sizes, the options of `conv`, and whether a Fourier transform diagonalizes the map."""
    kernel, _ = entry(op, params)
    check_kernel(op, kernel)
    check_inexact(op, kernel)
    check_groups(op, options["groups"], kernel.shape)
    n = kernel.ndim - 2
    sizes = per_axis(op, "spatial_shape", spatial_shape, n, least=1)
    strides = per_axis(op, "stride", options["stride"], n, least=1)
    circular = isinstance(options["padding"], str) and options["padding"] == "circular"
    if circular:
        if set(pad_modes(op, options["pad_mode"], n)) - {"zeros", "circular"}:
            msg = f'{op}: padding="circular" has no other pad_mode; got pad_mode={options["pad_mode"]!r}; leave it out'
            raise FuncconvError(msg)
        options = options | {"padding": "SAME", "pad_mode": "circular"}
    return kernel.astype(wide(kernel.dtype)), sizes, options, circular and set(strides) == {1}


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype  # type: ignore[no-untyped-call]


def _of_frequencies(kernel: Array, sizes: Shape, dilation: Sizes, groups: int) -> Array:
    """Return all singular values of a circular convolution with stride 1, in descending order."""
    n = len(sizes)
    *window, inputs, outputs = kernel.shape
    is_real = not jnp.issubdtype(kernel.dtype, jnp.complexfloating)
    dtype = np.result_type(kernel.dtype, np.complex64)
    matrices = kernel.reshape(*window, inputs, groups, outputs // groups).astype(dtype)
    frequencies = []
    for axis, (size, taps, step) in enumerate(
        zip(sizes, window, per_axis("singular_values", "dilation", dilation, n, least=1), strict=True)
    ):
        # The matrices of opposite frequencies of a real kernel are conjugates, with the same singular values.
        frequencies.append(size // 2 + 1 if is_real and axis == n - 1 else size)
        turns = np.outer(np.arange(frequencies[-1]), step * np.arange(taps)) % size / size
        phases = jnp.asarray(np.exp(2j * np.pi * turns), dtype)
        matrices = jnp.moveaxis(jnp.tensordot(phases, matrices, (1, axis), precision="highest"), 0, axis)
    values = jnp.linalg.svd(jnp.moveaxis(matrices, -2, n), compute_uv=False)
    if is_real:
        twice = values[(slice(None),) * (n - 1) + (slice(1, (sizes[-1] + 1) // 2),)]
        values = jnp.concatenate([values.ravel(), twice.ravel()])
    return jnp.sort(values.ravel(), descending=True)


def _largest(kernel: Array, sizes: Shape, options: dict[str, Any], k: int, iterations: int) -> Array:
    """Return the largest `k` singular values, from the eigenvectors of the Gram operator of the convolution."""
    from jax.experimental.sparse.linalg import lobpcg_standard  # loads scipy.sparse

    shape = (*sizes, kernel.shape[-2] * options["groups"])

    def output(kernel: Array, vectors: Array) -> Array:  # vectors: (inputs, any number)
        return conv({"kernel": kernel}, vectors.T.reshape(-1, *shape), **options)

    def gram(kernel: Array, vectors: Array) -> Array:
        images = conv_transpose({"kernel": kernel}, output(kernel, vectors), size=sizes, **options)
        return images.reshape(vectors.shape[1], -1).T

    start = np.random.default_rng(0).normal(size=(math.prod(shape), k + _MORE_VECTORS))
    constant = lax.stop_gradient(kernel)
    shift = jnp.where(constant.any(), 0, 1).astype(kernel.dtype)  # without it LOBPCG gives NaN for a kernel of zeros
    eigenvalues, vectors, _ = lobpcg_standard(
        lambda vectors: gram(constant, vectors) + shift * vectors,
        jnp.asarray(start, kernel.dtype),
        m=iterations,
    )
    vectors, _ = jnp.linalg.qr(vectors[:, :k])  # those of LOBPCG are not orthonormal up to rounding
    vectors = _differentiable(partial(gram, kernel), vectors, eigenvalues[:k])
    squares = jnp.square(output(kernel, vectors).reshape(k, -1)).sum(1)
    is_zero = squares == 0  # where the root has no derivative
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def _differentiable(gram: LinearMap, vectors: Array, eigenvalues: Array) -> Array:
    """Return eigenvectors as the root of an equation, so that they have derivatives of every order.

    The columns `v` with `gram(v) = <v, gram(v)> v` are the eigenvectors of length 1. The derivative of this equation by
    `v` is the symmetric map `gram - eigenvalue - 2 eigenvalue v v^T`. Among the computed eigenvectors it is diagonal,
    and on their complement it is negative definite, so that conjugate gradients solve it there.
    """
    from jax.scipy.sparse.linalg import cg

    eps = float(np.finfo(vectors.dtype).eps) * len(vectors)
    gaps = eigenvalues[:, None] - eigenvalues[None]  # of a computed eigenvector (row) to the one to be derived (column)
    diagonal = jnp.where(jnp.eye(len(eigenvalues), dtype=bool), -2 * eigenvalues, gaps)
    is_equal = jnp.abs(diagonal) <= eps * eigenvalues[0]

    def complement(x: Array) -> Array:
        return x - vectors @ (vectors.T @ x)

    def solve(matvec: LinearMap, right: Array) -> Array:
        inside = vectors.T @ right
        # Equal eigenvalues leave the direction of their vectors open: their part is set to 0.
        solution = vectors @ jnp.where(is_equal, 0, inside / jnp.where(is_equal, 1, diagonal))
        outside = complement(right)
        is_rounding = jnp.linalg.norm(outside, axis=0) <= eps * jnp.linalg.norm(right, axis=0)
        outside = jnp.where(is_rounding[None], 0, outside)

        def negative(x: Array) -> Array:
            x_outside = complement(x)
            return eigenvalues[0] * (x - x_outside) - complement(matvec(x_outside))

        found, _ = cg(negative, outside, tol=eps, maxiter=len(vectors))  # type: ignore[no-untyped-call]
        return solution - complement(found)

    def equation(columns: Array) -> Array:
        images = gram(columns)
        return images - columns * (columns * images).sum(0, keepdims=True)

    def tangent_solve(matvec: LinearMap, right: Array) -> Array:
        solution: Array = lax.custom_linear_solve(matvec, right, solve, symmetric=True)
        return solution

    root: Array = lax.custom_root(equation, vectors, lambda _, start: start, tangent_solve)
    return root
