"""The properties of a convolution that decide in which form it is computed.

The limits come from measurements on one processor, of some hundred random shapes drawn by `benchmarks/forms.py`, with
two versions of JAX, with and without AVX-512. They may not be optimal on another processor. They affect the time, never
the result.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.types import Shape
from .form import Form

_XLA_AXES = 2  # XLA's CPU backend has a fast path for up to this number of spatial axes
_VECTOR = 4  # numbers that this path computes at once: it is fast if the number of channels is a multiple
_VERY_FEW, _FEW, _SEVERAL = 2, 8, 16  # numbers of channels, windows or taps
_FEW_POSITIONS = 12  # of the result
_SHORT_WINDOW = 80  # taps times input channels of a window
_MANY_WINDOWS = 2**18  # numbers in all windows of the batch, gathered side by side
_SMALL_ARRAYS = 2**18  # numbers in all images and results of the batch
_MANY_PRODUCTS = 2**25  # products of two numbers
_MOST_REPEATED = 8  # positions of an image for each position of the result
_MOSTLY_FILLED = 0.7  # fraction of the taps of all windows that are on the image
_PRODUCTS_PER_GATHER = 18  # products that take as long as gathering one number


PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # the names in XLA, and those in JAX


class Where(NamedTuple):
    """Where a program will run."""

    platform: str | None  # "cpu", "gpu" or "tpu"; None: any but the CPU
    devices: int | None = 1  # the devices that run the program; None inside jax.shard_map
    parts: int | None = 1  # the devices over which XLA may partition an array; None: not known, as in exported programs
    typed: bool = False  # whether types say what differs from device to device, as inside jax.shard_map
    # XLA of jax 0.10 has slow paths for some convolutions that 0.11 does not have.
    old: bool = jax.__version_info__ < (0, 11)

    @property
    def alone(self) -> bool:
        """Whether one device runs the whole program."""
        return self.devices == 1 and self.parts == 1 and not self.typed


class Problem(NamedTuple):
    """One of the three maps of a convolution, with all that the choice of a form depends on."""

    form: Form
    batch: Any  # an integer, or a symbolic dimension
    inputs: int  # channels of a group
    outputs: int  # channels of a group
    dtype: np.dtype
    stack: int  # number of leading axes along which each entry has a separate kernel
    where: Where
    phases: int = 1  # number of convolutions like this one that use parts of one kernel, as the stride phases do

    @classmethod
    def of(cls, form: Form, image: Shape, kernel: Shape, dtype: np.dtype, stack: int, where: Where) -> "Problem":
        """Return the problem for an image and a kernel of these shapes."""
        return cls(form.trimmed, image[stack], kernel[-2], kernel[-1] // form.groups, dtype, stack, where)

    @property
    def products(self) -> int:
        """The number of products of two numbers that are summed; for one image if the batch size is symbolic."""
        batch = self.batch if isinstance(self.batch, int) else 1
        form = self.form
        return batch * self.taps * math.prod(form.positions) * self.inputs * self.outputs * form.groups

    @property
    def alone_on_gpu(self) -> bool:
        """Whether one GPU computes the whole program, and this is a convolution of floats that is worth a choice."""
        has_floats = jnp.issubdtype(self.dtype, jnp.inexact) and self.form.accumulate_dtype is None
        return self.where.platform == "gpu" and self.where.alone and has_floats and isinstance(self.batch, int)

    @property
    def dilated(self) -> bool:
        """Whether some axis has a dilation above 1."""
        return any(axis.dilation > 1 for axis in self.form.axes)

    @property
    def can_cut_batch(self) -> bool:
        """Whether a loop may compute the batch in blocks: its size is known, and it is not sharded over devices."""
        return isinstance(self.batch, int) and self.where.devices == 1

    @property
    def partitioned_wrongly(self) -> bool:
        """Whether XLA's own convolution would be wrong on several devices: it has groups.

        If channels or images are sharded, XLA's partitioner (jax 0.10.2 and 0.12.0.1) returns wrong kernel gradients
        and sometimes wrong convolutions of grouped kernels, or aborts the process.
        """
        return self.form.groups > 1 and self.where.parts != 1

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input channel."""
        return self.inputs == 1 and self.form.groups > 1

    @property
    def taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.form.window)

    @property
    def has_one_axis(self) -> bool:
        """Whether there is one spatial axis."""
        return len(self.form.axes) == 1

    @property
    def has_many_axes(self) -> bool:
        """Whether there are more spatial axes than XLA's fast path supports."""
        return len(self.form.axes) > _XLA_AXES

    @property
    def has_many_planes(self) -> bool:
        """Whether there are more than two windows along the first axis."""
        return self.form.axes[0].outputs > _VERY_FEW

    @property
    def numbers_per_example(self) -> int:
        """The numbers of channels times positions in the image and the result of one example."""
        return math.prod(self.form.spatial) * self.inputs + math.prod(self.form.positions) * self.outputs

    @property
    def has_xla_path(self) -> bool:
        """Whether XLA's CPU backend has a fast path: floats, up to two axes, and no library turned on instead."""
        return self.dtype in (np.float32, np.float64) and not self.has_many_axes and self.form.library != "onednn"

    @property
    def xla_path_is_old(self) -> bool:
        """Whether that path, in float32, is of an XLA version that is slow for some images."""
        return self.is_float32_plane and self.where.old and self.where.devices == 1

    @property
    def is_float32_plane(self) -> bool:
        """Whether XLA's path is the one for two axes in float32."""
        return self.has_xla_path and not self.has_one_axis and self.dtype == np.float32

    @property
    def is_for_onednn(self) -> bool:
        """Whether oneDNN is turned on and computes this convolution fast."""
        # Depthwise kernels with several outputs per channel are slow there.
        has_multiplier = self.depthwise and self.outputs > 1
        fits = self.dtype == np.float32 and not self.has_one_axis and not has_multiplier
        return self.form.library == "onednn" and fits

    @property
    def has_fast_groups(self) -> bool:
        """Whether XLA is fast for a convolution with groups.

        Measured: it is faster than block-diagonal groups for many input channels and a single tap, and for few
        positions; and faster than a sum of shifted slices for depthwise kernels with many outputs of each channel, if
        there is a stride or there are many taps.
        """
        if self.form.groups == 1 or not self.has_xla_path:
            return False
        if self.depthwise:
            many_taps = self.taps >= _SEVERAL and self.outputs >= 2 * _SEVERAL
            return self.outputs >= _SEVERAL and (self.form.strided or many_taps)
        return math.prod(self.form.positions) <= _FEW_POSITIONS or (self.taps == 1 and self.inputs > _SEVERAL)

    @property
    def mostly_pads_cotangents(self) -> bool:
        """Whether an input gradient without a stride would be a convolution of little but padding.

        Its image, the cotangents, then has far fewer positions than its result. With three axes XLA's own form was four
        times as fast (one shape, 27 positions for each cotangent).
        """
        positions = math.prod(self.form.positions)
        repeated = math.prod(self.form.spatial) >= _MOST_REPEATED * positions
        return self.has_many_axes and self.form.groups == 1 and not self.form.strided and repeated

    @property
    def filled(self) -> float:
        """The fraction of the taps of all windows that are on the image, not on padding."""
        return math.prod(axis.inside / (axis.outputs * axis.window) for axis in self.form.axes)

    @property
    def prefers_blocks(self) -> bool:
        """Whether a convolution is faster as matrix products of gathered windows than with XLA's own form.

        XLA is slow if a window is larger than the image, if there are few positions, or if there are few channels.
        """
        form, window = self.form, self.taps * self.inputs
        if not self.can_cut_batch or self.dtype not in (np.float32, np.float64):
            return False
        few_positions = math.prod(form.positions) <= _FEW_POSITIONS and all(axis.dilation == 1 for axis in form.axes)
        if not self.has_xla_path:
            return few_positions and self.outputs > _SEVERAL
        # For a window larger than the image, XLA multiplies number by number. It skips the taps on padding, which a
        # product of gathered windows includes: so this is faster only if enough taps are on the image.
        if any(axis.window > axis.size for axis in form.axes):
            return self.filled * self.outputs > _VERY_FEW
        if few_positions and self.outputs > _SEVERAL and not form.padded:
            return True
        if self.has_one_axis and window <= 2 * _SEVERAL and self.outputs > 4 * _SEVERAL:
            return True
        return window <= _SHORT_WINDOW and self.inputs * self.outputs <= _SEVERAL

    @property
    def is_slow_unpadded(self) -> bool:
        """Whether XLA 0.10 is slow for this image without padding.

        It then calls a library that gathers all windows first, so it is slow if the windows hold many numbers. With few
        input channels, it is only slow for several output channels and long windows.
        """
        if not self.xla_path_is_old or self.form.padded or self.form.overlapping is None or not self.can_cut_batch:
            return False
        window_numbers = self.products // self.outputs
        if self.inputs > _SEVERAL:
            return window_numbers >= _MANY_WINDOWS
        is_long = self.taps * self.inputs > 4 * _SEVERAL
        return window_numbers >= 4 * _MANY_WINDOWS and self.outputs > _SEVERAL and is_long

    @property
    def is_slow_padded(self) -> bool:
        """Whether XLA is slow for this padded image.

        It is if the result is not larger than the image and the input channels are not a multiple of its vectors. XLA
        0.10 is slow for other numbers of channels too if there is much to compute.
        """
        form, i = self.form, self.form.overlapping
        if not self.is_float32_plane or not self.can_cut_batch or not form.padded or form.strided or i is None:
            return False
        if form.axes[i].outputs > form.axes[i].size or self.inputs <= _SEVERAL or self.outputs <= _FEW:
            return False
        is_large = self.batch > 1 and self.products >= _MANY_PRODUCTS and self.filled > _MOSTLY_FILLED
        is_uneven = self.inputs % _VECTOR > 0 and (self.batch > 1 or self.xla_path_is_old)
        return is_uneven or (self.xla_path_is_old and is_large)

    @property
    def can_exchange_axes(self) -> bool:
        """Whether the kernel gradient is fast as XLA's convolution of the image with the cotangents.

        That convolution is slow if the cotangents, dilated by the stride, are longer than the image.
        """
        fits = all((axis.outputs - 1) * axis.stride < axis.size for axis in self.form.axes)
        return self.has_xla_path and fits and self.form.overlapping is not None

    @property
    def prefers_exchanged_axes(self) -> bool:
        """Whether the kernel gradient is faster as that convolution than as matrix products of gathered windows.

        The batch takes the place of the channels in that convolution. So it is fast if the batch size is a multiple of
        XLA's vectors and there are many taps, or if the arrays are small. It skips the taps on padding, which is an
        advantage for a stride and much padding. XLA 0.10 is slow without padding.
        """
        gathering = self.cheapest_gathering
        if not self.can_exchange_axes or gathering == "blocked_im2col_of_cotangents":
            return False
        fills_vectors = self.batch % _VECTOR == 0
        if fills_vectors and self.taps > _SHORT_WINDOW and min(self.inputs, self.outputs) > _FEW:
            return not self.has_one_axis  # one shape, 11x11 taps: gathering them took twice as long
        if self.has_one_axis:
            # Measured: with few taps oneDNN takes three times as long as XLA for a stride, which dilation becomes here.
            is_dilated = self.form.axes[0].dilation > 1 and self.form.library is None
            many_channels = self.inputs >= _FEW and self.outputs >= 2 * _SEVERAL
            return fills_vectors and (self.taps > _VECTOR or is_dilated) and many_channels
        is_regular = fills_vectors and self.taps >= _SEVERAL and self.outputs % _VECTOR == 0
        is_fast = is_regular and (self.form.padded or not self.xla_path_is_old)
        if gathering == "blocked_im2col_of_both":
            return self.xla_path_is_old and is_fast and self.outputs > self.inputs
        if is_fast or (self.form.strided and self.filled < _MOSTLY_FILLED):
            return True
        is_small = self.batch * self.numbers_per_example <= _SMALL_ARRAYS
        return is_small and (fills_vectors or self.xla_path_is_old)

    @property
    def cheapest_gathering(self) -> str:
        """The form of a kernel gradient by matrix products that costs least.

        The cost per position is that of the gathered numbers and the products, in units of one gathered number. The
        factor 2 is measured: `blocked_im2col_of_both` gathers longer contiguous rows than the other two.
        """
        first = self.form.axes[0]
        products = self.taps * self.inputs * self.outputs / _PRODUCTS_PER_GATHER
        costs = {"blocked_im2col": 2 * self.taps * self.inputs + products}
        is_wide = self.xla_path_is_old and min(self.inputs, self.outputs) >= 8 * _SEVERAL
        gains_nothing = self.has_one_axis and (self.where.old or first.dilation == 1)
        if first.stride == 1 and not gains_nothing and not is_wide:
            gathered = self.taps // first.window * self.inputs + first.window * self.outputs
            costs["blocked_im2col_of_both"] = first.size / first.outputs * (gathered + products + _SEVERAL)
        if not self.form.strided:
            # One window of cotangents for each position of the image, which can have more positions than the result.
            size_ratio = math.prod(self.form.spatial) / math.prod(self.form.positions)
            costs["blocked_im2col_of_cotangents"] = size_ratio * (2 * (self.taps * self.outputs + _SEVERAL) + products)
        return min(costs, key=lambda form: costs[form])
