"""No form of a convolution holds much more than its operands and its result."""

import jax
import numpy as np
import pytest

import funcconv as fc

# The image, the window, the outputs and options: sizes at which gathering all windows at once would show.
LARGE = {
    "dense": ((4, 96, 96, 32), 5, 32, {"padding": 2}),
    "one large image": ((1, 400, 400, 16), 5, 16, {"padding": 2}),
    "stem": ((2, 224, 224, 3), 7, 64, {"padding": 3, "stride": 2}),
    "a large kernel": ((2, 96, 96, 8), 21, 8, {"padding": 10}),
    "a kernel larger than the image": ((1024, 4, 4, 16), 21, 8, {"padding": 10}),
    "depthwise": ((4, 96, 96, 32), 7, 32, {"padding": 3, "groups": 32}),
    "depthwise, kernels larger than the image": ((1024, 4, 4, 16), 21, 16, {"padding": 10, "groups": 16}),
    "depthwise, cubes smaller than the kernel": ((1024, 3, 3, 3, 8), 7, 8, {"padding": 3, "groups": 8}),
    "depthwise, many outputs, a stride": ((64, 64, 64, 8), 7, 64, {"padding": 3, "stride": 4, "groups": 8}),
    "depthwise, one axis": ((1024, 16, 32), 129, 32, {"padding": 64, "groups": 32}),
    "depthwise, one tap on the image": ((1, 64, 64, 64), 3, 64, {"padding": 99, "dilation": 99, "groups": 64}),
    "groups": ((4, 64, 64, 64), 3, 64, {"padding": 1, "groups": 16}),
    "one tap": ((8, 64, 64, 64), 1, 128, {"stride": 2}),
    "one axis": ((8, 8192, 16), 25, 16, {"padding": 12}),
    "one axis, kernels larger than the image": ((4096, 16, 16), 129, 16, {"padding": 64}),
    "few channels": ((8, 128, 128, 3), 5, 16, {"padding": 2}),
    "three axes": ((2, 32, 32, 32, 16), 3, 16, {"padding": 1}),
    "three axes, few channels": ((4, 40, 40, 40, 1), 3, 16, {"padding": 1}),
    "three axes, to few channels": ((4, 32, 32, 32, 8), 5, 1, {"padding": 2}),
    "three axes, cubes smaller than the kernel": ((4096, 4, 4, 4, 2), 9, 2, {"padding": 4}),
    "a plane and a kernel of its size": ((1, 600, 600, 1), 300, 1, {"padding": 150}),
    "a long signal": ((4, 2**18, 1), 4096, 1, {}),
    "a cube and a kernel of its size": ((1, 64, 64, 64, 1), 64, 1, {"padding": 31}),
    "FFT of many channels": ((4, 64, 64, 64), 5, 64, {"padding": 2, "implementation": "fft"}),
    "FFT of many groups": ((4, 64, 64, 128), 5, 128, {"stride": 2, "groups": 128, "implementation": "fft"}),
    "three axes, a large kernel": ((1, 24, 24, 24, 32), 11, 32, {"padding": 5}),
}
BLOCK = 2**20  # numbers that one block may take, whatever the shape


def maps(image, window, outputs, options, dtype):
    shape = (*(window,) * (len(image) - 2), image[-1] // options.get("groups", 1), outputs)
    kernel, x = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(image, dtype)

    def conv(kernel, x):
        return fc.conv({"kernel": kernel}, x, **options)

    g = jax.eval_shape(conv, kernel, x)
    return (kernel, x, g), {
        "conv": lambda kernel, x, g: conv(kernel, x),  # noqa: ARG005
        "input_grad": lambda kernel, x, g: jax.linear_transpose(lambda x: conv(kernel, x), x)(g),
        "kernel_grad": lambda kernel, x, g: jax.linear_transpose(lambda kernel: conv(kernel, x), kernel)(g),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", ["conv", "input_grad", "kernel_grad"])
@pytest.mark.parametrize("name", LARGE)
def test_temporaries_are_bounded(name, which, dtype):
    arrays, programs = maps(*LARGE[name], dtype)
    held = jax.jit(programs[which]).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    size = np.dtype(dtype).itemsize
    known = sum(size * int(np.prod(array.shape)) for array in arrays)
    assert held <= 4 * known + size * BLOCK, f"{held / known:.1f} times the operands and the result"
