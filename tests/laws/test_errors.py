"""Every way of misusing an op, a layer or a graph that a user meets, and what the message says of it."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcconv as fc

KEY = jax.random.key(0)
KERNEL = jnp.ones((3, 3, 2, 4))
PARAMS = {"kernel": KERNEL, "bias": jnp.zeros(4)}
X = jnp.ones((1, 8, 8, 2))
Y = jnp.ones((1, 8, 8, 4))
LOCAL = {"kernel": jnp.ones((6, 6, 3, 3, 2, 4))}


def conv(**options):
    return lambda: fc.conv(PARAMS, X, **options)


def back(**options):
    return lambda: fc.conv_transpose(PARAMS | {"bias": None}, Y, **options)


def pool(*args, **options):
    return lambda: fc.pool(X, *args, **options)


def conv_of(params, x=X, **options):
    return lambda: fc.conv(params, x, **options)


# name: (what is done, parts of the message in order)
OPS = {
    # parameters and input
    "not a dict": (conv_of(KERNEL), ["conv: params must be", "kernel", "an array of shape (3, 3, 2, 4)"]),
    "no kernel": (conv_of({"bias": PARAMS["bias"]}), ["params have no kernel", "['bias']"]),
    "kernel of none": (conv_of({"kernel": None}), ["params have no kernel"]),
    "unknown entry": (conv_of(PARAMS | {"weight": 1}), ["unknown entry 'weight'", "'kernel', 'bias'"]),
    "misspelt entry": (conv_of({"kernal": KERNEL}), ["unknown entry 'kernal'", "did you mean 'kernel'?"]),
    "kernel rank": (conv_of({"kernel": jnp.ones((3, 3))}), ["(*window, in // groups, out)", "got shape (3, 3)"]),
    "empty kernel": (conv_of({"kernel": jnp.ones((3, 3, 2, 0))}), ["none empty", "(3, 3, 2, 0)"]),
    "not an array": (conv_of(PARAMS, object()), ["the input must be an array", "object"]),
    "too few axes": (conv_of(PARAMS, jnp.ones((8, 2))), ["must have 2 spatial axes", "got shape (8, 2)"]),
    "kernel of PyTorch": (
        conv_of({"kernel": jnp.ones((4, 2, 3, 3))}),
        ["(4, 2, 3, 3)", "PyTorch", "(kernel, (0, 1), (-1, -2))"],
    ),
    "kernel of PyTorch, as many channels as taps": (
        conv_of({"kernel": jnp.ones((16, 2, 2, 2))}),
        ["window of 16 does not fit", "PyTorch", "moveaxis"],
    ),
    "kernel of PyTorch, grouped": (
        conv_of({"kernel": jnp.ones((4, 1, 3, 4))}, groups=2),
        ["takes 6 channels", "the order of PyTorch"],
    ),
    "kernel of PyTorch, groups": (
        conv_of({"kernel": jnp.ones((4, 1, 5, 5))}, groups=2),
        ["the kernel's 5 outputs", "(4, 1, 5, 5)", "PyTorch"],
    ),
    "depthwise kernel of TensorFlow": (
        conv_of({"kernel": jnp.ones((3, 3, 2, 1))}, groups=2),
        ["1 outputs", "TensorFlow", "reshape((3, 3, 1, 2))"],
    ),
    "kernel without groups": (
        conv_of({"kernel": jnp.ones((3, 3, 2, 4))}, groups=2),
        ["takes 4 channels", "with groups=2", "2 // 2"],
    ),
    "out before in": (conv_of({"kernel": jnp.ones((3, 3, 4, 2))}), ["(*window, out, in // groups)", "swapaxes"]),
    "out first": (conv_of({"kernel": jnp.ones((4, 3, 3, 2))}), ["(out, *window, in // groups)", "(kernel, 0, -1)"]),
    "integer kernel": (conv_of({"kernel": jnp.ones((3, 3, 2, 4), int)}), ["kernel is int64", "kernel.astype(x.dtype)"]),
    "bool kernel": (conv_of({"kernel": jnp.ones((3, 3, 2, 4), bool)}), ["kernel is bool", "kernel.astype(x.dtype)"]),
    "transposed kernel of PyTorch": (
        lambda: fc.conv_transpose({"kernel": jnp.ones((4, 2, 3, 3))}, Y),
        ["gives 3 channels", "PyTorch", "moveaxis"],
    ),
    "transposed kernel of Flax": (
        lambda: fc.conv_transpose({"kernel": jnp.ones((3, 3, 4, 2))}, Y),
        ["gives 2 channels", "Flax", "(0, 1))"],
    ),
    "dense kernel of PyTorch": (
        lambda: fc.dense({"kernel": jnp.ones((3, 4))}, jnp.ones((2, 4))),
        ["takes 3 features", "(out, in)", "kernel.T"],
    ),
    "group_norm without spatial axes": (
        lambda: fc.group_norm({}, jnp.ones((4, 6)), 2),
        ["(4, 6)", "spatial=0 if", "(*batch, channels)", "spatial=1"],
    ),
    "pool without spatial axes": (
        lambda: fc.pool(jnp.ones((4, 6))),
        ["(4, 6)", "spatial=1 if its axes are (spatial, channels)"],
    ),
    "pool of a vector": (lambda: fc.pool(jnp.ones(6)), ["make three axes, but the input has shape (6,)"]),
    "wrong channels": (conv_of(PARAMS, jnp.ones((1, 8, 8, 3))), ["takes 2 channels", "input has 3", "(1, 8, 8, 3)"]),
    "channels first": (conv_of(PARAMS, jnp.ones((1, 2, 8, 8))), ["takes 2", "channels-first", "layout='NCHW'"]),
    "channels first, 1-d": (
        conv_of({"kernel": jnp.ones((3, 2, 1))}, jnp.ones((1, 2, 8))),
        ["channels-first", "layout='NCW'"],
    ),
    "channels last": (conv_of(PARAMS, X, layout="NCHW"), ["takes 2 channels", "has 8", "leave layout out"]),
    "grouped channels": (conv_of(PARAMS, X, groups=2), ["takes 4 channels", "the input has 2"]),
    "bias shape": (conv_of({"kernel": KERNEL, "bias": jnp.zeros(3)}), ["the bias must have shape (4,)", "got (3,)"]),
    "mixed dtypes": (conv_of(PARAMS, X.astype(jnp.bfloat16)), ["the input is bfloat16", "kernel is float64", "cast"]),
    "mixed bias": (
        conv_of({"kernel": KERNEL, "bias": jnp.zeros(4, jnp.float32)}),
        ["input is float64", "bias is float32"],
    ),
    "complex and real": (conv_of(PARAMS, jax.lax.complex(X, X)), ["the input is complex128", "kernel is float64"]),
    "integers": (conv_of(PARAMS, X.astype(jnp.uint8)), ["uint8", "cast it first: x.astype(jnp.float32)"]),
    "empty image": (conv_of(PARAMS, jnp.ones((1, 0, 8, 2)), padding=3), ["spatial axis 0 is empty", "(0, 8)"]),
    # options of windows
    "stride zero": (conv(stride=0), ["stride must be at least 1", "got 0"]),
    "stride negative": (conv(stride=(1, -2)), ["stride must be at least 1", "(1, -2)"]),
    "stride of a number": (conv(stride=1.5), ["stride must be an integer or 2 of them", "1.5"]),
    "stride of True": (conv(stride=True), ["stride must be an integer", "True"]),
    "too many strides": (conv(stride=(1, 1, 1)), ["stride must be an integer or 2 of them", "(1, 1, 1)"]),
    "dilation zero": (conv(dilation=(0, 1)), ["dilation must be at least 1", "(0, 1)"]),
    "unknown padding": (conv(padding="same"), ["unknown padding 'same'", "did you mean 'SAME'?"]),
    "unlike any padding": (conv(padding="bottom"), ["unknown padding 'bottom'", "'VALID', 'SAME'"]),
    "padding rank": (conv(padding=(1, 2, 3)), ["2 integers, 2 pairs (before, after)", "(1, 2, 3)"]),
    "padding pair": (conv(padding=((1, 2, 3), 1)), ["2 pairs (before, after)", "((1, 2, 3), 1)"]),
    "padding number": (conv(padding=0.5), ["padding must be an integer", "0.5"]),
    "crops all": (conv(padding=((-4, -4), (0, 0))), ["padding (-4, -4) crops away all 8 positions of spatial axis 0"]),
    "unknown pad mode": (conv(pad_mode="reflection"), ["unknown pad_mode 'reflection'", "did you mean 'reflect'?"]),
    "pad mode of none": (conv(pad_mode=None), ["unknown pad_mode None"]),
    "pad mode rank": (conv(pad_mode=("zeros",)), ["one name or 2 of them", "('zeros',)"]),
    "does not fit": (conv(dilation=4), ["3 with dilation 4", "(3 - 1) * 4 = 9", "does not fit", "8 + 0 + 0 = 8"]),
    "groups of zero": (conv(groups=0), ["groups must be a positive integer", "got 0"]),
    "groups do not divide": (conv(groups=3), ["divides the kernel's 4 outputs", "got 3"]),
    "implementation": (conv(implementation="cudnn"), ["unknown implementation 'cudnn'", "'fft', 'lax'"]),
    "accumulate": (conv(accumulate_dtype=jnp.float32), ["accumulate_dtype=float32 cannot hold sums of float64"]),
    "accumulate in what is no dtype": (conv(accumulate_dtype="f23"), ["must be a dtype", "got 'f23'"]),
    "layout rank": (conv(layout="NCW"), ["layout 'NCW' has 1 spatial axes", "kernel of shape (3, 3, 2, 4) says 2"]),
    "no layout": (conv(layout="NHW"), ["a layout is a word such as 'NCHW'", "'NHW'"]),
    "layout letters": (conv(layout="NCHH"), ["a letter for each spatial axis", "'NCHH'"]),
    "layout without batch": (conv(layout="CHW"), ["layout 'CHW' cannot have 4 axes"]),
    # the others
    "size and output padding": (back(size=10, output_padding=0), ["say the same thing"]),
    "impossible size": (back(stride=2, size=30), ["can have 17 to 18 positions", "to the 8 given", "got 30"]),
    "output padding": (
        back(stride=2, output_padding=2),
        ["output_padding on spatial axis 0 can be 0 to 1", "stride and dilation", "got 2"],
    ),
    "output padding of nothing": (
        lambda: fc.conv_transpose(PARAMS | {"bias": None}, Y[:, :1, :1], padding=2, dilation=4, output_padding=4),
        ["output_padding on spatial axis 0 can be 0 to 3", "got 4"],
    ),
    "nothing to transpose": (
        lambda: fc.conv_transpose(PARAMS | {"bias": None}, Y[:, :0], padding=1),
        ["conv_transpose: spatial axis 0 of the input is empty", "(0, 8)"],
    ),
    "nothing to unpool": (
        lambda: fc.max_unpool(X[:, :, :0], np.zeros((1, 8, 0, 2), int)),
        ["max_unpool: spatial axis 1 of the input is empty"],
    ),
    "nothing to pool": (lambda: fc.global_pool(X[:, :0]), ["global_pool: spatial axis 0 is empty", "(0, 8)"]),
    "transposed channels": (lambda: fc.conv_transpose(PARAMS, X), ["the kernel gives 4 channels", "has 2"]),
    "transposed bias": (lambda: fc.conv_transpose(PARAMS, Y), ["the bias must have shape (2,)", "got (4,)"]),
    "crops all of the result": (back(padding=9), ["no image has 8 windows", "padding 9"]),
    "local kernel": (
        lambda: fc.local_conv({"kernel": KERNEL[0]}, X),
        ["(*positions, *window, in // groups, out)", "(3, 2, 4)"],
    ),
    "local positions": (lambda: fc.local_conv(LOCAL, X, stride=2), ["positions (3, 3)", "the kernel is for (6, 6)"]),
    "local bias": (lambda: fc.local_conv(LOCAL | {"bias": jnp.zeros(6)}, X), ["(4,) or (6, 6, 4)", "got (6,)"]),
    "unknown reduce": (pool(reduce="avg"), ["unknown reduce 'avg'", "'max', 'min', 'sum', 'mean'"]),
    "unknown ties": (pool(ties="spilt"), ["unknown ties 'spilt'", "did you mean 'split'?"]),
    "no window": (pool(0), ["window must be at least 1", "got 0"]),
    "window too large": (pool(9), ["pool: a window of 9 does not fit on spatial axis 0", "8 + 0 + 0 = 8 positions"]),
    "in the padding": (pool(2, padding=2), ["window 0 on spatial axis 0 has only padding"]),
    "straddles the image": (
        lambda: fc.pool(jnp.ones((1, 1, 1)), 2, padding=1, dilation=2),
        ["window 0", "has only padding"],
    ),
    "window and spatial": (pool((2, 2), spatial=1), ["the window (2, 2) is for 2 spatial axes", "spatial= says 1"]),
    "window and layout": (pool((2, 2), layout="NCW"), ["'NCW' has 1 spatial axes", "the window (2, 2) says 2"]),
    "no batch axis": (lambda: fc.pool(jnp.ones((8, 2))), ["one batch axis", "(8, 2)", "spatial=n"]),
    "no batch axis to flatten": (lambda: fc.flatten(jnp.ones((8, 2))), ["flatten", "(8, 2)", "spatial=n"]),
    "no spatial axis": (lambda: fc.pool(X, 2, spatial=0), ["at least one spatial axis"]),
    "mean of integers": (lambda: fc.avg_pool(X.astype(int)), ["a mean of int64", "x.astype(jnp.float32)"]),
    "sum of booleans": (lambda: fc.sum_pool(X > 0), ["a sum of bool", "cast first"]),
    "largest complex": (lambda: fc.max_pool(jax.lax.complex(X, X)), ["complex numbers have no max", "complex128"]),
    "global reduce": (lambda: fc.global_pool(X, "mode"), ["global_pool: unknown reduce 'mode'"]),
    "reduce of a number": (pool(reduce=2), ["unknown reduce 2", "'lp', 'median'"]),
    "p below one": (pool(reduce="lp", p=0.5), ["p must be a number from 1 to math.inf", "got 0.5"]),
    "p of none": (lambda: fc.global_pool(X, "lp", p=None), ["global_pool: p must be a number", "None"]),
    "p not a number": (pool(reduce="lp", p=float("nan")), ["p must be a number", "nan"]),
    "temperature zero": (pool(reduce="lse", temperature=0), ["temperature must be one positive number", "got 0"]),
    "temperature negative": (pool(reduce="lse", temperature=jnp.float32(-1)), ["one positive number", "-1"]),
    "temperature infinite": (pool(reduce="lse", temperature=float("inf")), ["one positive number", "got inf"]),
    "temperature of none": (pool(reduce="lse", temperature=None), ["one positive number", "got None"]),
    "temperatures": (
        lambda: fc.adaptive_pool(X, 2, "lse", temperature=jnp.ones(2)),
        ["adaptive_pool: temperature must be one positive number", "got float64 of shape (2,)"],
    ),
    "indices of a mean": (
        lambda: fc.avg_pool(X, return_indices=True),
        ["return_indices=True needs reduce='max' or 'min'", "'mean'"],
    ),
    "indices of ties": (pool(return_indices=True, ties="split"), ["return_indices=True needs", "ties='split'"]),
    "global indices": (lambda: fc.global_pool(X, return_indices=True), ["global_pool: return_indices=True needs"]),
    "function of padding": (
        pool(3, reduce=jnp.std, padding=1),
        ["window 0 on spatial axis 0 has only 2 of 3", "reads the positions -1 to 1, ", "are at 0 to 7", "pad_mode="],
    ),
    "function of an overhang": (
        pool(3, reduce=jnp.std, ceil_mode=True, pad_mode="reflect"),
        ["window 2", "only 2 of 3", "the positions 6 to 8"],
    ),
    "function that keeps the axis": (
        pool(reduce=jnp.cumsum),
        ["cumsum received an array of shape (1, 4, 4, 2, 4)", "returned shape (1, 4, 4, 2, 4)"],
    ),
    "function that counts": (
        pool(reduce=jnp.argmax),
        ["must keep the dtype; argmax received float64 and returned int"],
    ),
    "norm of integers": (
        lambda: fc.pool(X.astype(int), reduce="lp"),
        ["an lp of int64 would have to be rounded", "cast first"],
    ),
    "product of booleans": (lambda: fc.pool(X > 0, reduce="prod"), ["a prod of bool", "cast first"]),
    "median complex": (lambda: fc.pool(jax.lax.complex(X, X), reduce="median"), ["complex numbers have no median"]),
    "unpool shape": (
        lambda: fc.max_unpool(X, jnp.zeros((1, 8, 8, 1), int)),
        ["integers of the shape of y, (1, 8, 8, 2)", "got int64 of shape (1, 8, 8, 1)"],
    ),
    "unpool floats": (lambda: fc.max_unpool(X, X), ["max_unpool: the indices must be integers", "got float64"]),
    "unpool nothing": (lambda: fc.max_unpool(X, None), ["max_unpool: indices must be an array", "NoneType"]),
    "unpool outside": (
        lambda: fc.max_unpool(X[:, :2, :2], np.full((1, 2, 2, 2), 3)),
        ["the index 3 is not a place of its window, number (0, 0)", "[0, 1] x [0, 1] of an image of (4, 4)"],
    ),
    "unpool negative": (lambda: fc.max_unpool(X[:, :2, :2], np.full((1, 2, 2, 2), -2)), ["the index -2"]),
    "unpool between taps": (
        lambda: fc.max_unpool(X[0, 0, :1], np.array([[1, 1]]), (2,), dilation=2),
        ["the index 1", "which reads [0, 2]"],
    ),
    "unpool size": (
        lambda: fc.max_unpool(X, jnp.zeros(X.shape, int), size=20),
        ["a size of 20 on spatial axis 0 has 10 windows, but y has 8"],
    ),
    "adaptive size": (lambda: fc.adaptive_pool(X, 0), ["output_size must be at least 1", "got"]),
    "adaptive sizes": (lambda: fc.adaptive_pool(X, (2, 2), spatial=1), ["output_size (2, 2) is for 2 spatial axes"]),
    "unfold window": (lambda: fc.unfold(X, 9), ["unfold: a window of 9 does not fit", "8 + 0 + 0 = 8 positions"]),
    "unfold mode": (lambda: fc.unfold(X, 2, pad_mode="wrap"), ["unfold: unknown pad_mode 'wrap'", "'circular'"]),
    "unfold rank": (lambda: fc.unfold(X[0, 0], 2), ["unfold: one batch axis", "(8, 2)", "spatial=1"]),
    "fold rank": (
        lambda: fc.fold(X[0], 8),
        ["fold: patches must be (batch, *positions, *window, channels)", "got shape (8, 8, 2)", "one batch axis"],
    ),
    "fold axes": (
        lambda: fc.fold(X, (8, 8)),
        ["fold: with 2 spatial axes, patches must have 2 axes of positions", "got shape (1, 8, 8, 2)"],
    ),
    "fold layout": (lambda: fc.fold(X, (8,), layout="NCHW"), ["layout 'NCHW' has 2 spatial axes", "(8,) says 1"]),
    "fold batch": (
        lambda: fc.fold(jnp.ones((1, 2, 3, 4)), (5,), layout="CW"),
        ["fold: with 1 spatial axes", "(*positions, *window, channels)", "(1, 2, 3, 4)"],
    ),
    "fold size": (
        lambda: fc.fold(jnp.ones((1, 3, 2, 1)), 5),
        ["an image of (5,) has (4,) windows of (2,)", "there are (3,) patches", "options of unfold"],
    ),
    "fold sizes": (lambda: fc.fold(jnp.ones((1, 3, 2, 1)), 0), ["fold: size must be at least 1", "got 0"]),
    "fold booleans": (lambda: fc.fold(jnp.ones((1, 3, 2, 1), bool), 4), ["fold: a sum of booleans", "astype"]),
    "shuffle channels": (
        lambda: fc.pixel_shuffle(X, 2),
        ["pixel_shuffle: the number of channels must be a multiple of 2 * 2 = 4", "got 2 channels"],
    ),
    "shuffle one axis": (
        lambda: fc.pixel_shuffle(X[0], (3,)),
        ["pixel_shuffle: the number of channels must be a multiple of 3, the product", "got 2 channels"],
    ),
    "shuffle factor": (lambda: fc.pixel_shuffle(X, 0), ["pixel_shuffle: factor must be at least 1", "got 0"]),
    "shuffle order": (lambda: fc.pixel_shuffle(X, 1, order="torch"), ["unknown order 'torch'", "'pytorch'"]),
    "shuffle rank": (lambda: fc.pixel_shuffle(X[0, 0], 2), ["pixel_shuffle: one batch axis", "spatial=1"]),
    "unshuffle size": (
        lambda: fc.pixel_unshuffle(X, (2, 3)),
        [
            "pixel_unshuffle: the size of spatial axis 1 must be a multiple of its factor 3",
            "got 8 positions",
            "Pad or crop",
        ],
    ),
    "resize without a size": (
        lambda: fc.resize(X),
        ["resize: pass either size= or scale=", "size=None and scale=None"],
    ),
    "resize with both": (lambda: fc.resize(X, 4, scale=2.0), ["pass either size= or scale=", "size=4 and scale=2.0"]),
    "resize size": (lambda: fc.resize(X, (4, 0)), ["resize: size must be at least 1", "(4, 0)"]),
    "resize sizes": (lambda: fc.resize(X, (4, 4, 4), spatial=2), ["size (4, 4, 4) is for 3 spatial axes", "says 2"]),
    "resize scale": (lambda: fc.resize(X, scale=-1), ["resize: scale must be a number above 0 or 2 of them", "got -1"]),
    "resize scales": (lambda: fc.resize(X, scale=(2, True)), ["scale must be a number above 0", "(2, True)"]),
    "resize to nothing": (
        lambda: fc.resize(X, scale=0.1),
        ["a scale of 0.1 leaves none of the 8 positions of spatial axis 0", "at least 1/8"],
    ),
    "resize method": (lambda: fc.resize(X, 4, method="bilinear"), ["resize: unknown method 'bilinear'", "'linear'"]),
    "resize corners": (
        lambda: fc.resize(X, 4, align_corners=True),
        ["align_corners applies to the methods 'linear' and 'cubic'", "align_corners=True with 'nearest'"],
    ),
    "resize antialias": (lambda: fc.resize(X, 4, method="area", antialias=True), ["antialias applies", "with 'area'"]),
    "resize coordinates": (
        lambda: fc.resize(X, 4, coordinates="half-pixel"),
        ["resize: unknown coordinates 'half-pixel'", "'half_pixel'"],
    ),
    "resize one pair": (
        lambda: fc.resize(X, 4, method="linear", coordinates=((0, 3),)),
        ["coordinates must be 'half_pixel' or 'asymmetric', the centres (first, last), or 2 of them", "((0, 3),)"],
    ),
    "resize endless coordinates": (
        lambda: fc.resize(X, 4, coordinates=(0, np.inf)),
        ["the centres (first, last)", "(0, inf)"],
    ),
    "resize a single coordinate": (lambda: fc.resize(X, 4, coordinates=3), ["the centres (first, last)", "got 3"]),
    "resize corners and coordinates": (
        lambda: fc.resize(X, 4, method="linear", align_corners=True, coordinates="asymmetric"),
        ["align_corners=True sets the coordinates", "coordinates='asymmetric'"],
    ),
    "resize coordinates of areas": (
        lambda: fc.resize(X, 4, method="area", coordinates="asymmetric"),
        ["coordinates applies to the methods 'nearest', 'nearest-exact', 'linear' and 'cubic'", "with 'area'"],
    ),
    "resize coefficient": (
        lambda: fc.resize(X, 4, method="linear", cubic_coefficient=-0.5),
        ["cubic_coefficient applies to the method 'cubic'; got cubic_coefficient=-0.5 with 'linear'"],
    ),
    "resize coefficient that is no number": (
        lambda: fc.resize(X, 4, method="cubic", cubic_coefficient="keys"),
        ["resize: cubic_coefficient must be a finite number; got 'keys'"],
    ),
    "resize outside": (
        lambda: fc.resize(X, 4, method="cubic", coordinates=(-1, 7), exclude_outside=True),
        ["the centres on spatial axis 0 must be from -0.5 to 7.5; got (-1, 7)", "exclude_outside=False"],
    ),
    "resize integers": (
        lambda: fc.resize(jnp.ones((1, 8, 1), int), 4, method="linear"),
        ["resize: the method 'linear' gives fractions, which int64 would round", "x.astype(jnp.float32)"],
    ),
    "blur integers": (lambda: fc.blur_pool(jnp.ones((1, 8, 1), int)), ["blur_pool: a blur gives fractions", "int64"]),
    "blur window": (
        lambda: fc.blur_pool(X, 9, padding=0),
        ["blur_pool: a window of 9 does not fit on spatial axis 0", "8 + 0 + 0 = 8"],
    ),
    "blur mode": (lambda: fc.blur_pool(X, pad_mode="wrap"), ["blur_pool: unknown pad_mode 'wrap'"]),
    "dense features": (lambda: fc.dense({"kernel": jnp.ones((3, 2))}, X), ["takes 3 features", "(1, 8, 8, 2)"]),
    "dense image": (lambda: fc.dense({"kernel": jnp.ones((128, 2))}, X), ["128 features", "flatten the image first"]),
    "dense kernel": (lambda: fc.dense(PARAMS, X), ["dense: the kernel must be (in, out)", "(3, 3, 2, 4)"]),
    "dense integers": (lambda: fc.dense({"kernel": jnp.ones((2, 2))}, jnp.ones(2, int)), ["int64", "cast"]),
    "flatten order": (lambda: fc.flatten(X, order="first"), ["unknown order 'first'", "'channels_first'"]),
    "init name": (partial(fc.init_conv, KEY, 1, 1, (3,), init="he_norm"), ["unknown init 'he_norm'", "'he_normal'"]),
    "init is no name": (partial(fc.init_conv, KEY, 1, 1, (3,), init=None), ["unknown init None", "'he_normal'"]),
    "init window": (partial(fc.init_conv, KEY, 1, 1, 3), ["number of spatial axes", "(3, 3)", "spatial="]),
    "init groups": (partial(fc.init_conv, KEY, 6, 4, (3,), groups=3), ["3 groups must divide the 6", "the 4 output"]),
    "init channels": (partial(fc.init_conv, KEY, 0, 4, (3,)), ["at least 1", "(0, 4, 1)"]),
    "init features": (partial(fc.init_dense, KEY, 4, -1), ["init_dense: features must be at least 1", "(4, -1)"]),
    "matrix shape": (partial(fc.conv_matrix, PARAMS, (8,)), ["spatial_shape must be an integer or 2", "(8,)"]),
    "matrix window": (partial(fc.conv_matrix, PARAMS, 2), ["conv_matrix: a window of 3 does not fit"]),
    "matrix kernel": (partial(fc.conv_matrix, {"kernel": jnp.ones(3)}, 2), ["(*window, in // groups, out)", "(3,)"]),
    "dense to conv": (
        partial(fc.dense_to_conv, {"kernel": jnp.ones((10, 2))}, (3, 3)),
        ["(10, 2)", "multiple of (3, 3)"],
    ),
    "dense to conv, int": (partial(fc.dense_to_conv, {"kernel": jnp.ones((9, 2))}, 3), ["must be a tuple", "got 3"]),
    "conv to dense": (partial(fc.conv_to_dense, PARAMS, order="C"), ["conv_to_dense: unknown order 'C'"]),
    "concat": (lambda: fc.concat(X, X[:, 1:]), ["same axes but for the channels", "[1, 8, 8, 2]", "[1, 7, 8, 2]"]),
    "concat dtypes": (lambda: fc.concat(X, X > 0), ["one dtype", "float64[1, 8, 8, 2], bool[1, 8, 8, 2]"]),
    "axis name": (
        partial(fc.batch_norm, {}, fc.init_batch_stats(2), X, train=True, axis_name="devices"),
        ["batch_norm: 'devices' is not an axis that is mapped over", "jax.vmap"],
    ),
    "layer dtype": (lambda: fc.Conv(4, 3, dtype="floaty"), ["Conv: dtype must be a dtype", "'floaty'"]),
    "add": (lambda: fc.add(X, Y), ["one shape and dtype", "float64[1, 8, 8, 2] and float64[1, 8, 8, 4]"]),
}


def says(do, parts):
    with pytest.raises(fc.FuncconvError) as caught:
        do()
    text = str(caught.value)
    at = 0
    for part in parts:
        assert part in text[at:], text
        at = text.index(part, at)
    return text


@pytest.mark.parametrize("name", OPS)
def test_ops(name):
    says(*OPS[name])


@pytest.mark.parametrize("name", OPS)
def test_ops_say_the_same_under_jit_and_in_a_graph(name):
    do, parts = OPS[name]
    text = says(do, parts)
    assert says(lambda: jax.jit(do)(), parts) == text
    x = fc.Input("x", (1,))
    graph = fc.Graph(x, fc.node(lambda x: (do(), x), x, name="here"))
    assert says(lambda: graph.init(KEY), ["node 'here': "]) == f"node 'here': {text}"
    assert says(lambda: graph({}, jnp.ones(1)), ["node 'here': "]) == f"node 'here': {text}"


# graphs ----------------------------------------------------------------------------------------------------


def image(name="x", shape=(8, 8, 2)):
    return fc.Input(name, shape)


def built(*layers, shape=(8, 8, 2)):
    x = image(shape=shape)
    return fc.Graph(x, fc.serial(*layers)(x))


def test_layers_name_their_node():
    says(
        lambda: built(fc.Conv(4, 3), fc.Conv(4, 7)).init(KEY),
        ["node 'conv2': conv: a window of 7 does not fit", "6 + 0"],
    )
    says(lambda: built(fc.Pool(3, reduce="mode")).init(KEY), ["node 'pool1': pool: unknown reduce 'mode'"])
    says(lambda: fc.Pool(3, reduce="lse", temperature=jnp.ones(())), ["options of a layer must be hashable", "numbers"])
    says(lambda: built(fc.Conv(4, 3, groups=3)).init(KEY), ["node 'conv1': init_conv: 3 groups", "the 2 input"])
    says(lambda: built(fc.Conv(4, 3, init="no")).init(KEY), ["node 'conv1': init_conv: unknown init 'no'"])
    says(lambda: built(fc.Flatten(), fc.Conv(4, 3)).init(KEY), ["node 'conv1'", "1 spatial axes", "(128,)"])
    says(lambda: built(fc.Flatten(), fc.Pool()).init(KEY), ["node 'pool1'", "at least one spatial axis"])
    says(lambda: built(fc.Conv(4, (3, 3, 3))).init(KEY), ["node 'conv1'", "3 spatial axes", "(8, 8, 2)"])
    says(
        lambda: built(fc.global_pool, fc.node(jnp.sum, batched=False), fc.Dense(2)).init(KEY),
        ["node 'dense1'", "one number"],
    )
    graph = built(fc.Conv(4, 3), fc.Conv(4, 3, name="second"))
    params = graph.init(KEY)
    broken = params | {"second": {"kernel": params["second"]["kernel"][..., :3, :]}}
    says(lambda: graph(broken, X), ["node 'second': conv: the kernel takes 3 channels", "has 4"])
    says(lambda: graph(params, X.astype(jnp.bfloat16)), ["node 'conv1': conv: the input is bfloat16"])


def test_an_op_that_fails_is_reported_with_a_hint():
    graph = built(lambda x: x.mean((1, 2, 3)))
    parts = [
        "node 'lambda1'",
        "failed on inputs of shape (8, 8, 2)",
        "without batch axes",
        "x.mean((-3, -2))",
        "batched=True",
    ]
    says(lambda: graph.init(KEY), parts)
    with pytest.raises((IndexError, ValueError)) as caught:
        graph({}, X)
    assert "in node 'lambda1' of the graph" in caught.value.__notes__[-1]
    says(lambda: fc.Graph(x := image(), fc.node(jnp.mean, x, batched=True)).init(KEY), ["keep the batch axis of 1"])


def test_a_cycle():
    x = image()
    a = fc.node(jnp.tanh, x, name="a")
    b = fc.node(jnp.sin, a, name="b")
    a.inputs = (b,)
    says(lambda: fc.Graph(x, b), ["cycle", "<node b: sin> needs <node a: tanh> needs <node b: sin>"])


def test_parameters_that_are_missing_or_too_many():
    graph = built(fc.Conv(4, 3), fc.Conv(4, 3), fc.Flatten(), fc.Dense(2))
    params = graph.init(KEY)
    missing = {name: entry for name, entry in params.items() if name != "conv2"}
    says(lambda: graph(missing, X), ["the entry 'conv2' is missing", "did you mean 'conv1'?"])
    says(lambda: graph({}, X), ["the entry 'conv1' is missing", "they are empty"])
    says(lambda: graph(params | {"conv9": 0}, X), ["entry 'conv9' that the graph does not use", "graph.select leaves"])
    says(lambda: graph(X, X), ["the parameters must be a dict with the entries ['conv1', 'conv2', 'dense1']"])
    says(lambda: graph.select(missing), ["no entry 'conv2'"])
    x = image()
    nested = fc.Graph(x, fc.Graph(x, fc.Conv(2, 3)(x), name="trunk")(x))
    says(lambda: nested({"trunk": {}}, X), ["the entry 'trunk/conv1' is missing"])
    says(lambda: nested({"trunk": 0}, X), ["the entry 'trunk' must be a dict with the entries ['conv1']", "got int"])


def test_parameters_that_are_given():
    x = image(shape=(2,))
    graph = fc.Graph(x, fc.serial(fc.Dense(2))(fc.node(jnp.matmul, x, params="w1", name="first")))
    says(lambda: graph.init(KEY), ["node 'first': nothing draws its parameters 'w1'", "graph.init(key, w1=...)"])
    says(lambda: graph.init(KEY, w2=0), ["entry 'w2' that the graph does not use", "did you mean 'w1'?"])
    says(lambda: graph.init(KEY, w1=jnp.eye(3)), ["node 'first'", "matmul failed on inputs of shape (2,)"])
    wrong = {"kernel": jnp.ones((3, 2))}
    says(
        lambda: graph.init(KEY, w1=jnp.eye(2), dense1=wrong),
        ["node 'dense1'", "must have shapes", "(2, 2)", "as given, they have", "(3, 2)", "graph.init"],
    )


def test_a_shared_name_with_two_shapes():
    graph = built(fc.Conv(2, 3, params="w"), fc.Conv(2, 5, params="w"))
    parts = [
        "node 'conv2': the parameters 'w' must have",
        "(5, 5, 2, 2)",
        "as node 'conv1' has them",
        "(3, 3, 2, 2)",
        "params=",
    ]
    says(lambda: graph.init(KEY), parts)
    c = fc.Conv(4, 3)
    says(lambda: built(c, c).init(KEY), ["node 'conv1@2'", "(3, 3, 4, 4)", "as node 'conv1' has them", "(3, 3, 2, 4)"])


def test_wrong_inputs():
    a, b = image("a"), image("b")
    graph = fc.Graph((a, b), a + b)
    says(lambda: graph({}, X), ["graph: expected 2 inputs (a, b) after the parameters; got 1"])
    says(lambda: graph(), ["expected the parameters and", "Call graph(params, *xs)"])
    says(lambda: graph({}, X, X[:, 1:]), ["input 'b' must have shape (*batch, 8, 8, 2)", "got (1, 7, 8, 2)"])
    says(
        lambda: graph({}, X, jnp.ones((1, 2, 8, 8))),
        ["input 'b'", "(1, 2, 8, 8)", "the channels look first", "pass jnp.moveaxis(x, -3, -1)"],
    )
    first = fc.Input("x", (2, 9, 8))
    turned = fc.Graph(first, fc.node(jnp.tanh, first))
    says(lambda: turned({}, jnp.ones((1, 9, 8, 2))), ["the channels look last", "jnp.moveaxis(x, -1, -3)"])
    with pytest.raises(fc.FuncconvError) as error:
        turned({}, jnp.ones((1, 2, 8, 9)))  # other axes are exchanged
    assert "look" not in str(error.value)
    says(lambda: graph({}, X, X[0]), ["the same batch axes", "'a': (1,), 'b': ()"])
    says(lambda: graph({}, X, "x"), ["input 'b' must be an array", "str"])
    says(lambda: graph(a), ["graph: expected 2 inputs (a, b)", "called on 1 nodes"])
    says(lambda: graph(a, X), ["called on nodes while a graph is declared", "ArrayImpl"])


def test_unknown_nodes():
    graph = built(fc.Conv(4, 3), jnp.tanh)
    says(lambda: graph.subgraph("conv_1"), ["no node 'conv_1'", "did you mean 'conv1'?"])
    says(lambda: graph.subgraph("conv1", "nothing"), ["no node 'nothing'", "'x', 'conv1', 'tanh1'"])


def test_declarations():
    x, y = image("x"), image("y")
    says(lambda: fc.Graph(x, x + y), ["depend on the input 'y'", "not among the graph's inputs: 'x'"])
    says(lambda: fc.Graph((x, x), x), ["inputs must have different names", "called 'x'", "Rename one"])
    says(lambda: fc.Graph((x, image("x")), x), ["inputs must have different names", "called 'x'", "Rename one"])
    says(lambda: fc.Graph(X, x), ["graph: the inputs must be an fc.Input", "fc.Input(name, shape)"])
    says(lambda: fc.Graph(x + x, x), ["graph: the inputs must be an fc.Input", "fc.Input(name, shape)"])
    says(lambda: fc.Graph(x, X), ["graph: the outputs must be a node", "what layers return"])
    says(lambda: fc.Graph(x, ()), ["graph: the outputs must be a node", "what layers return"])
    says(
        lambda: fc.Graph(x, (fc.node(jnp.sin, x, name="a"), fc.node(jnp.sin, x, name="a"))),
        ["all nodes must have different names; two are called 'a'"],
    )
    says(
        lambda: fc.Graph(x, fc.node(jnp.sin, x, name="x")),
        ["all nodes must have different names; two are called 'x'", "Rename one"],
    )
    says(
        lambda: fc.Graph(x, fc.Pool(2, name="a")(fc.Pool(3, name="a")(x))),
        ["two are called 'a'", "Pool(2", "Pool(3"][:1],
    )
    trunk = [fc.Graph(x, fc.Conv(2, k, padding="SAME")(x), name="trunk") for k in (1, 3)]
    says(lambda: fc.Graph(x, fc.serial(*trunk)(x)), ["graphs must have different names; two are called 'trunk'"])
    says(lambda: fc.Graph(x, fc.Conv(2, 1, name="trunk")(trunk[0](x))), ["'trunk'"])
    says(lambda: fc.Input("a/b", (1,)), ["a word without '/' and '@'", "'a/b'"])
    says(lambda: fc.Input("", (1,)), ["a word"])
    says(lambda: fc.Conv(2, 3, name="a@2"), ["a word without '/' and '@'"])
    says(lambda: fc.Input("a", 3), ["input 'a': the shape must be a tuple of integers", "got 3"])
    says(lambda: fc.Input("a", (None, 3)), ["a tuple of integers", "None"])
    says(lambda: fc.Input("a", (-1, 3)), ["at least 0", "(-1, 3)", "Leave batch axes out"])


def test_layers_are_called_on_nodes():
    x = image()
    says(lambda: fc.Conv(4, 3)(X), ["Conv(4, 3) is called on nodes", "fc.conv(params, x)"])
    says(lambda: fc.Conv(4, 3)(x, x), ["Conv(4, 3) takes 1 input", "2 nodes"])
    says(lambda: fc.serial(fc.Conv(4, 3))(X), ["serial(Conv(4, 3)) is called on nodes"])
    says(
        lambda: fc.node(fc.Conv(4, 3), x),
        ["op must be a function of arrays", "Conv(4, 3)", "Call the layer on the nodes"],
    )
    says(lambda: fc.node(3, x), ["op must be a function of arrays; got 3"])
    says(lambda: fc.node(jnp.sin, X), ["called on nodes"])
    says(lambda: x + X, ["called on nodes"])
    says(lambda: np.ones(2) + x, ["called on nodes"])
    says(lambda: fc.serial(fc.Flatten), ["expected a layer", "Flatten"])
    says(lambda: fc.serial(None), ["expected a layer", "None"])
    says(
        lambda: fc.residual(fc.Conv(4, 3))(x, x),
        ["residual: without a shortcut it takes one input", "2 nodes", "Pass shortcut="],
    )
    says(lambda: built(fc.residual(fc.Conv(4, 1))).init(KEY), ["node 'add1': add", "[8, 8, 4] and float64[8, 8, 2]"])
    says(
        lambda: built(fc.parallel(fc.Conv(1, 1), fc.Conv(1, 3), merge=fc.concat)).init(KEY), ["node 'concat1': concat"]
    )
    says(lambda: list(x), ["cannot be iterated"])
    says(lambda: x[..., 0], ["does not name an entry", "slice with fc.node"])
    says(lambda: fc.node(partial(operator.add, [1]), x), ["must be hashable"])


def test_bad_values_never_pass_in_silence():
    """What looks like an option of another library is refused by Python itself."""
    with pytest.raises(TypeError, match="strides"):
        fc.conv(PARAMS, X, strides=2)
    with pytest.raises(TypeError, match="kernel_size"):
        fc.Conv(4, kernel_size=3)
    with pytest.raises(TypeError, match="positional"):
        fc.conv(PARAMS, X, 2)
