"""ONNX's operators of convolutional networks as compositions of funcconv's ops, one function for each operator.

Each function takes the inputs of a node and its attributes, and returns or yields its outputs. Arrays have the axes
`(batch, channels, *spatial)`, as in ONNX. The first input may be traced.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

AUTO_PADS = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}


class CannotExpress(Exception):
    """Says why a node has no counterpart."""


def layout(x):
    return "NC" + "DHW"[5 - x.ndim :]


def shared(x, *, auto_pad="NOTSET", pads=None, strides=None, dilations=None):
    """Return the options that all operators with windows have in common."""
    n = x.ndim - 2
    begin, end = np.reshape(pads or [0] * (2 * n), (2, n)).tolist()
    return {
        "padding": AUTO_PADS.get(auto_pad, tuple(zip(begin, end, strict=True))),
        "stride": tuple(strides or [1] * n),
        "dilation": tuple(dilations or [1] * n),
        "layout": layout(x),
    }


# convolutions --------------------------------------------------------------------------------------------------


def conv(x, kernel, bias=None, *, group=1, kernel_shape=None, **windows):
    del kernel_shape
    params = {"kernel": np.moveaxis(kernel, (1, 0), (-2, -1)), "bias": bias}
    return fc.conv(params, x, groups=group, **shared(x, **windows))


def conv_transpose(
    x, kernel, bias=None, *, group=1, kernel_shape=None, output_padding=None, output_shape=None, **windows
):
    del kernel_shape
    # funcconv has the kernel of the convolution that is transposed, whose outputs are the inputs here.
    params = {"kernel": np.moveaxis(kernel, (1, 0), (-2, -1)), "bias": bias}
    options = shared(x, **windows)
    if output_shape is not None:
        options["size"] = tuple(output_shape)
    elif output_padding is not None:
        options["output_padding"] = tuple(output_padding)
    return fc.conv_transpose(params, x, groups=group, **options)


def causal_conv_with_state(x, kernel, bias=None, past_state=None, *, activation="none"):
    channels, kept = kernel.shape[0], kernel.shape[-1] - 1
    if past_state is None:
        past_state = np.zeros((*x.shape[:2], kept), x.dtype)
    seen = jnp.concatenate([past_state, x], -1)
    y = conv(seen, kernel, bias, group=channels)
    return (y if activation == "none" else jax.nn.silu(y)), seen[..., seen.shape[-1] - kept :]


# pools ---------------------------------------------------------------------------------------------------------


def pooled(x, *, kernel_shape, ceil_mode=0, **options):
    """Return a function of the options of `fc.pool`."""
    return partial(fc.pool, x, tuple(kernel_shape), ceil_mode=bool(ceil_mode), **shared(x, **options))


def max_pool(x, *, storage_order=0, **options):
    yield pooled(x, **options)()
    _, indices = pooled(x, **options)(return_indices=True)
    spatial = x.shape[2:]
    if storage_order:  # the first spatial axis varies fastest
        indices = jnp.asarray(np.arange(math.prod(spatial)).reshape(spatial[::-1]).T.ravel())[indices]
    image = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(spatial))
    yield indices.astype(int) + image * math.prod(spatial)  # ONNX goes on counting in the next image


def average_pool(x, *, count_include_pad=0, **options):
    return pooled(x, **options)(reduce="mean", count_include_pad=bool(count_include_pad))


def lp_pool(x, *, p=2, **options):
    return pooled(x, **options)(reduce="lp", p=p)


def global_pool(x, *, reduce):
    return jnp.expand_dims(fc.global_pool(x, reduce, layout=layout(x)), tuple(range(2, x.ndim)))


def max_unpool(x, indices, output_shape=None, *, kernel_shape, pads=None, strides=None):
    options = shared(x, pads=pads, strides=strides)
    unpool = partial(fc.max_unpool, window=tuple(kernel_shape), **options)
    positions = math.prod(jax.eval_shape(unpool, x, indices).shape[2:])
    y = unpool(x, indices % positions)
    larger = y.shape if output_shape is None else output_shape.tolist()
    return jnp.pad(y, [(0, new - old) for old, new in zip(y.shape, larger, strict=True)])


# normalizations ------------------------------------------------------------------------------------------------


def batch_normalization(x, scale, bias, mean, var, *, training_mode=0, **options):
    y, state = fc.batch_norm(
        {"scale": scale, "bias": bias},
        {"mean": mean, "var": var},
        x,
        train=bool(training_mode),
        unbiased=False,
        layout=layout(x),
        **options,
    )
    return (y, state["mean"], state["var"]) if training_mode else y


def instance_normalization(x, scale, bias, **options):
    return fc.instance_norm({"scale": scale, "bias": bias}, x, layout=layout(x), **options)


def group_normalization(x, scale, bias, *, num_groups, **options):
    return fc.group_norm({"scale": scale, "bias": bias}, x, num_groups, layout=layout(x), **options)


def layer_normalization(x, scale, bias=None, *, axis=-1, **options):
    """Without the mean and the standard deviation, which ONNX returns too and funcconv does not."""
    return fc.layer_norm({"scale": scale, "bias": bias}, x, axes=x.ndim - axis % x.ndim, **options)


def rms_normalization(x, scale, *, axis=-1, **options):
    return fc.rms_norm({"scale": scale}, x, axes=x.ndim - axis % x.ndim, **options)


def local_response_normalization(x, *, size, bias=1.0, **options):
    # If the size is even, ONNX has the additional channel after the middle and funcconv before it.
    return jnp.flip(fc.local_response_norm(jnp.flip(x, 1), size, k=bias, layout=layout(x), **options), 1)


def lp_normalization(x, *, axis=-1, p=2):
    rows = jnp.moveaxis(x, axis, -1)
    norms = fc.global_pool(rows.reshape(-1, rows.shape[-1], 1), "lp", p=p).reshape(*rows.shape[:-1], 1)
    return jnp.moveaxis(rows / jnp.where(norms == 0, 1, norms), -1, axis)


def mean_variance_normalization(x, *, axes=(0, 2, 3)):
    rows = jnp.moveaxis(x, axes, range(len(axes))).reshape(math.prod(x.shape[axis] for axis in axes), -1)
    y, _ = fc.batch_norm({}, fc.init_batch_stats(rows.shape[1], dtype=x.dtype), rows, train=True, epsilon=1e-18)
    moved = [x.shape[axis] for axis in axes] + [size for axis, size in enumerate(x.shape) if axis not in axes]
    return jnp.moveaxis(y.reshape(moved), range(len(axes)), axes)


def dropout(x, ratio=0.5, training_mode=False, **options):
    del options
    if training_mode and ratio:
        msg = "the random numbers are those of NumPy's generator for a seed"
        raise CannotExpress(msg)
    y = fc.dropout(jax.random.key(0), x, 0.0)
    return y, np.ones(x.shape, bool)


# resampling ----------------------------------------------------------------------------------------------------


def centre(i, mode, size, outputs, scale, region):
    """Return the centre of a position by the formula of ONNX."""
    length = scale * size
    match mode:
        case "half_pixel" | "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if mode == "half_pixel" or outputs > 1 else -0.5
        case "asymmetric":
            return i / scale
        case "align_corners":
            return 0.0 if length == 1 else i * (size - 1) / (length - 1)
        case "half_pixel_symmetric":
            return size / 2 * (1 - outputs / length) + (i + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            first, last = (end * (size - 1) for end in region)
            return (first + last) / 2 if outputs == 1 else first + i * (last - first) / (outputs - 1)


def resize(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    axes=None,
    antialias=0,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    axes = list(range(x.ndim)) if axes is None else axes
    old = [x.shape[axis] for axis in axes]
    if sizes is None:
        scales = [float(scale) for scale in scales]
        new = [math.floor(size * scale) for size, scale in zip(old, scales, strict=True)]
    else:
        new = sizes.tolist()
        scales = [after / before for before, after in zip(old, new, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            scale = {"not_larger": min, "not_smaller": max}[keep_aspect_ratio_policy](scales)
            scales, new = [scale] * len(old), [math.floor(scale * size + 0.5) for size in old]
    regions = [None] * len(old) if roi is None else np.reshape(roi, (2, -1)).T.tolist()
    # Both of these round up at a half or at any fraction, so they are the other two from the other end.
    mirrored = mode == "nearest" and nearest_mode in ("ceil", "round_prefer_floor")
    coordinates, inside = [], np.ones((), bool)
    for axis, size, outputs, scale, region in zip(axes, old, new, scales, regions, strict=True):
        centres = [centre(i, coordinate_transformation_mode, size, outputs, scale, region) for i in range(outputs)]
        where = centres[0], centres[-1]
        if mirrored:
            where = size - 1 - where[1], size - 1 - where[0]
        if coordinate_transformation_mode == "half_pixel" and outputs == size * scale:
            where = "half_pixel"
        coordinates.append(where)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        inside = inside & np.reshape([0 <= place <= size - 1 for place in centres], shape)
    weighted = {"exclude_outside": bool(exclude_outside), "antialias": bool(antialias)}
    method = mode
    if mode == "nearest":
        weighted, method = {}, "nearest" if nearest_mode in ("floor", "ceil") else "nearest-exact"
    if mode == "cubic":
        weighted["cubic_coefficient"] = cubic_coeff_a
    images = jnp.moveaxis(x, axes, range(len(axes)))  # the other axes are channels
    image = (jnp.flip(images, range(len(axes))) if mirrored else images).reshape(*old, -1)
    y = fc.resize(image, tuple(new), method=method, coordinates=tuple(coordinates), **weighted)
    y = jnp.moveaxis(y.reshape(*new, *images.shape[len(axes) :]), range(len(axes)), axes)
    y = jnp.flip(y, axes) if mirrored else y
    return jnp.where(inside, y, extrapolation_value) if coordinate_transformation_mode == "tf_crop_and_resize" else y


def upsample(x, scales, *, mode="nearest"):
    return resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


ORDERS = {"CRD": "pytorch", "DCR": "tensorflow"}


def depth_to_space(x, *, blocksize, mode="DCR"):
    return fc.pixel_shuffle(x, blocksize, order=ORDERS[mode], layout=layout(x))


def space_to_depth(x, *, blocksize, mode="DCR"):
    return fc.pixel_unshuffle(x, blocksize, order=ORDERS[mode], layout=layout(x))


def col2im(columns, image_shape, block_shape, *, dilations=None, pads=None, strides=None):
    size, window = image_shape.tolist(), block_shape.tolist()
    channels = columns.shape[1] // math.prod(window)
    image = jax.ShapeDtypeStruct((columns.shape[0], channels, *size), columns.dtype)
    options = shared(image, dilations=dilations, pads=pads, strides=strides)
    patches = jax.eval_shape(partial(fc.unfold, window=tuple(window), **options), image)
    return fc.fold(columns.reshape(patches.shape), tuple(size), **options)


# dense layers --------------------------------------------------------------------------------------------------


def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    kernel = alpha * (b.T if transB else b)
    y = fc.dense({"kernel": kernel}, a.T if transA else a)
    return y if c is None else y + beta * np.broadcast_to(c, y.shape)


def flatten(x, *, axis=1):
    axis %= x.ndim
    rows = x.reshape(math.prod(x.shape[:axis]), *x.shape[axis:])
    return fc.flatten(rows) if rows.ndim > 2 else rows


def matmul(a, b):
    if b.ndim == 1:
        return matmul(a, b[:, None])[..., 0]
    if a.ndim == 1:
        return matmul(a[None], b)[..., 0, :]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])

    def product(a, b):
        return fc.dense({"kernel": b}, a)

    for _ in batch:
        product = jax.vmap(product)
    return product(*(jnp.broadcast_to(factor, (*batch, *factor.shape[-2:])) for factor in (a, b)))


OPERATORS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "CausalConvWithState": causal_conv_with_state,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalMaxPool": partial(global_pool, reduce="max"),
    "GlobalAveragePool": partial(global_pool, reduce="mean"),
    "MaxUnpool": max_unpool,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "LRN": local_response_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "Dropout": dropout,
    "Resize": resize,
    "Upsample": upsample,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": col2im,
    "Gemm": gemm,
    "Flatten": flatten,
    "MatMul": matmul,
}
