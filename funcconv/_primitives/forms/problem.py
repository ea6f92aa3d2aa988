"""One map of one convolution, and what of it decides in which form it is computed.

The limits are the result of measurements on one processor, of some hundred shapes as `benchmarks/forms.py` draws them.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ..._common.types import Shape
from .form import Form

_PLANE = 2  # axes
_VECTOR = 4  # numbers that XLA's path takes at once
_LEAST, _FEW, _MIDDLE = 2, 8, 16  # channels, windows or taps
_DOZEN = 12  # positions
_SHORT = 80  # numbers in a window
_GATHERED = 2**18  # numbers in all windows together
_LIGHT = 2**18  # numbers of images and results
_HEAVY = 2**25  # products of two numbers
_FILLED = 0.7  # of the taps of all windows are on the image
_AS_MANY = 18  # products take as long as one number is gathered


class Where(NamedTuple):
    """Where a program is to run."""

    platform: str | None  # None: any but the CPU
    devices: int | None = 1  # None inside of jax.shard_map
    parts: int | None = 1  # over so many devices XLA may spread an array; None: not known, as in exported programs
    typed: bool = False  # whether types say what differs from device to device, as inside of jax.shard_map
    old: bool = jax.__version_info__ < (0, 11)  # whether XLA has slow ways for some convolutions


class Problem(NamedTuple):
    """One map of one convolution: what the choice knows of it."""

    form: Form
    batch: Any  # an integer, or a symbolic dimension
    inputs: int  # of a group
    outputs: int  # of a group
    dtype: np.dtype
    stack: int  # axes of which each entry has a kernel of its own
    where: Where
    phases: int = 1  # convolutions like this one that are computed side by side, of the taps of one kernel

    @classmethod
    def of(cls, form: Form, image: Shape, kernel: Shape, dtype: np.dtype, stack: int, where: Where) -> "Problem":
        """Return the problem for an image and a kernel of these shapes."""
        return cls(form.trimmed, image[stack], kernel[-2], kernel[-1] // form.groups, dtype, stack, where)

    @property
    def products(self) -> int:
        """How many products of two numbers are summed, for one image where their number is symbolic."""
        batch = self.batch if isinstance(self.batch, int) else 1
        form = self.form
        return batch * self.taps * math.prod(form.positions) * self.inputs * self.outputs * form.groups

    @property
    def countable(self) -> bool:
        """Whether the batch may be cut into blocks: its size is known, and it is not spread over devices."""
        return isinstance(self.batch, int) and self.where.devices == 1

    @property
    def wrongly_spread(self) -> bool:
        """Whether XLA may spread arrays over devices, and would do so wrongly with its own form: there are groups.

        Where channels or images are spread, its partitioner returns wrong kernel gradients and sometimes wrong
        convolutions of grouped kernels, or aborts the process.
        """
        return self.form.groups > 1 and self.where.parts != 1

    @property
    def depthwise(self) -> bool:
        """Whether groups have one input channel."""
        return self.inputs == 1 and self.form.groups > 1

    @property
    def taps(self) -> int:
        """The taps of the kernel."""
        return math.prod(self.form.window)

    @property
    def line(self) -> bool:
        """Whether there is one spatial axis."""
        return len(self.form.axes) == 1

    @property
    def deep(self) -> bool:
        """Whether there are more spatial axes than XLA has a path for."""
        return len(self.form.axes) > _PLANE

    @property
    def tall(self) -> bool:
        """Whether there are more than a few windows along the first axis."""
        return self.form.axes[0].outputs > _LEAST

    @property
    def held(self) -> int:
        """How many numbers the image and the result of one example are."""
        return math.prod(self.form.spatial) * self.inputs + math.prod(self.form.positions) * self.outputs

    @property
    def planar(self) -> bool:
        """Whether XLA has a path of its own for this, which can be fast: up to two axes, and no library turned on."""
        return self.dtype in (np.float32, np.float64) and not self.deep and self.form.library is None

    @property
    def old(self) -> bool:
        """Whether that path is of a version that has slow ways for some images, in float32."""
        return self.single and self.where.old and self.where.devices == 1

    @property
    def single(self) -> bool:
        """Whether it is the one for two axes in float32."""
        return self.planar and not self.line and self.dtype == np.float32

    @property
    def offered(self) -> bool:
        """Whether oneDNN is to compute this convolution, and is fast with it."""
        multiplied = self.inputs == 1 and self.form.groups > 1 and self.outputs > 1
        fits = self.dtype == np.float32 and not self.line and not multiplied
        return self.form.library == "onednn" and fits

    @property
    def filled(self) -> float:
        """What part of the taps of all windows is on the image, rather than on padding."""
        return math.prod(axis.inside / (axis.outputs * axis.window) for axis in self.form.axes)

    @property
    def short(self) -> bool:
        """Whether products of gathered windows are faster than what XLA has.

        It multiplies number by number where a window is larger than the image, though none on the padding. And it is
        slow where there are few positions, or few channels before.
        """
        form, window = self.form, self.taps * self.inputs
        if not self.countable or self.dtype not in (np.float32, np.float64):
            return False
        few = math.prod(form.positions) <= _DOZEN and all(axis.dilation == 1 for axis in form.axes)
        if not self.planar:
            return few and self.outputs > _MIDDLE
        if any(axis.window > axis.size for axis in form.axes):
            return self.filled * self.outputs > _LEAST
        if few and self.outputs > _MIDDLE:
            return True
        if self.line and window <= 2 * _MIDDLE and self.outputs > 4 * _MIDDLE:
            return True
        return window <= _SHORT and self.inputs * self.outputs <= _MIDDLE

    @property
    def bare(self) -> bool:
        """Whether an old XLA gives this to a library that gathers all windows, and these are many: there is no padding.

        Of few channels, only to some, and only long windows.
        """
        if not self.old or self.form.padded or self.form.overlapping is None or not self.countable:
            return False
        gathered = self.products // self.outputs
        if self.inputs > _MIDDLE:
            return gathered >= _GATHERED
        return gathered >= 4 * _GATHERED and self.outputs > _MIDDLE and self.taps * self.inputs > 4 * _MIDDLE

    @property
    def halting(self) -> bool:
        """Whether XLA is slow as there is padding, and a result that is not larger than the image.

        It is with a number of channels that its vectors do not hold, and an old one where there is much to compute.
        """
        form, i = self.form, self.form.overlapping
        if not self.single or not self.countable or not form.padded or form.strided or i is None:
            return False
        if form.axes[i].outputs > form.axes[i].size or self.inputs <= _MIDDLE or self.outputs <= _FEW:
            return False
        return self.inputs % _VECTOR > 0 or (self.old and self.batch > 1 and self.products >= _HEAVY)

    @property
    def turnable(self) -> bool:
        """Whether XLA has a convolution of the image with the cotangents that is fast: not if these are the longer."""
        fits = all((axis.outputs - 1) * axis.stride < axis.size for axis in self.form.axes)
        return self.planar and fits and self.form.overlapping is not None

    @property
    def direct(self) -> bool:
        """Whether that convolution is faster than the products of what is gathered, which mostly are whole windows.

        The images are its channels: it is fast with a number of them that vectors hold, if there are many taps, or
        little in all. It leaves out what is padding between strides. And an old XLA is slow without padding.
        """
        gathering = self.gathering
        if not self.turnable or gathering == "exchanged":
            return False
        vectors, many = self.batch % _VECTOR == 0, self.taps >= _MIDDLE
        if self.line:
            many = self.taps > _VECTOR or self.form.axes[0].dilation > 1
            return gathering == "blocks" and vectors and many and self.inputs >= _FEW and self.outputs >= 2 * _MIDDLE
        even = vectors and many and self.outputs % _VECTOR == 0 and (self.form.padded or not self.old)
        if gathering == "mixed":
            return self.old and even and self.outputs > self.inputs
        hollow = self.form.strided and self.filled < _FILLED
        return hollow or even or (self.batch * self.held <= _LIGHT and (vectors or self.old))

    @property
    def gathering(self) -> str:
        """The form whose products gather the fewest numbers for a position, by what a number costs, as measured.

        Where the taps along the first axis are read from the cotangents, what is gathered lies in longer rows.
        """
        first = self.form.axes[0]
        places = math.prod(self.form.spatial) / math.prod(self.form.positions)
        products = self.taps * self.inputs * self.outputs / _AS_MANY
        numbers = {"blocks": 2 * self.taps * self.inputs + products}
        wide = self.old and min(self.inputs, self.outputs) >= 8 * _MIDDLE
        if first.stride == 1 and not self.line and not wide:
            gathered = self.taps // first.window * self.inputs + first.window * self.outputs
            numbers["mixed"] = first.size / first.outputs * (gathered + products + _MIDDLE)
        if not self.form.strided:
            numbers["exchanged"] = places * (2 * self.taps * self.outputs + products)
        return min(numbers, key=lambda form: numbers[form])
