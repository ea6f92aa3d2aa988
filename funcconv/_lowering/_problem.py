"""One map of one convolution, and what of it decides in which form it is computed.

The limits are the result of measurements on one processor, in float32 but where a dtype is named, which `benchmarks/`
repeats.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .._typing import Shape
from ._form import Form

_FEW = 6, 16  # channels before and after
_SMALL = 2**8  # positions
_MIDDLE = 16  # channels
_ONE_OR_TWO = 2  # channels
_ODD = 3, 5, 7, 9  # channels
_PRODUCT = 2**7  # numbers in a window
_GATHERED = 2**20  # numbers in all windows together
_SPARE = 3  # times as many numbers as image and result have may be held beside them
_PLANE = 2  # axes
_SOME_TAPS = 5
_MANY_TAPS = 16
_FEW_POSITIONS = 100
_MANY_IMAGES = 64
_HEAP = 2**19  # numbers of so many images and their results that XLA has no cache for them
_AS_MANY = 64  # products take as long as one number is gathered


class Where(NamedTuple):
    """Where a program is to run."""

    platform: str | None  # None: any but the CPU
    devices: int | None = 1
    typed: bool = False  # whether types say how arrays are spread over devices
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

    @classmethod
    def of(cls, form: Form, image: Shape, kernel: Shape, dtype: np.dtype, stack: int, where: Where) -> "Problem":
        """Return the problem for an image and a kernel of these shapes."""
        return cls(form, image[stack], kernel[-2], kernel[-1] // form.groups, dtype, stack, where)

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
    def held(self) -> int:
        """How many numbers the image and the result of one example are."""
        return math.prod(self.form.spatial) * self.inputs + math.prod(self.form.positions) * self.outputs

    @property
    def gathered(self) -> int:
        """How many numbers the windows of one example are."""
        return math.prod(self.form.positions) * self.taps * self.inputs

    @property
    def planes(self) -> bool:
        """Whether there are three axes, and the planes that windows along the first read are not too many."""
        first, *rest = self.form.axes
        numbers = first.outputs * first.window * math.prod(axis.size for axis in rest) * self.inputs
        return len(rest) == _PLANE and self.inputs <= 4 * _MIDDLE and numbers <= _SPARE * self.held

    @property
    def slight(self) -> bool:
        """Whether XLA has too few channels to be fast with, or an odd number that an old one is slow with."""
        few = self.inputs <= _FEW[0] and self.outputs <= _FEW[1] and self.taps * self.inputs <= _PRODUCT
        odd = self.old and self.inputs in _ODD and _MIDDLE < self.outputs <= 2 * _MIDDLE
        return self.planar and (few or odd)

    @property
    def gatherable(self) -> bool:
        """Whether all windows together are few enough numbers to be held, and for the cache."""
        if not isinstance(self.batch, int):
            return False
        return self.batch * self.gathered <= min(max(_SPARE * self.batch * self.held, _GATHERED // 2), 4 * _GATHERED)

    @property
    def narrow(self) -> bool:
        """Whether products of matrices would have little to work on, and XLA has fast loops."""
        few = max(2 * self.inputs, self.outputs) <= _MIDDLE
        return few and math.prod(self.form.positions) <= _SMALL and len(self.form.axes) <= _PLANE

    @property
    def planar(self) -> bool:
        """Whether XLA alone has a fast path for this: two axes, in float32, and no other library turned on."""
        return self.dtype == np.float32 and len(self.form.axes) == 2 and self.form.library is None

    @property
    def old(self) -> bool:
        """Whether that path is of a version that has slow ways for some images."""
        return self.planar and self.where.old and self.where.devices == 1

    @property
    def bare(self) -> bool:
        """Whether an old XLA gives this to a library that gathers all windows: there is no padding."""
        if not self.old or self.form.padded or self.form.overlapping is None or not isinstance(self.batch, int):
            return False
        gathered = self.batch * self.gathered
        if self.inputs > _MIDDLE:
            return gathered >= _GATHERED // 4
        return gathered >= _GATHERED and self.outputs > _MIDDLE and self.inputs > _ONE_OR_TWO

    @property
    def halting(self) -> bool:
        """Whether an old XLA is slow as the result is not larger than the image; a line more is to be little."""
        if not self.old or not self.form.padded or self.form.overlapping is None or not isinstance(self.batch, int):
            return False
        axis = self.form.axes[self.form.overlapping]
        same = axis.stride == 1 and axis.outputs <= axis.size and axis.size + 1 <= 1.2 * axis.outputs
        some = self.inputs > _MIDDLE and _MIDDLE <= self.outputs <= 4 * _MIDDLE
        return same and some and (self.inputs % 4 > 0 or (self.outputs >= 2 * _MIDDLE and self.batch > 1))

    @property
    def offered(self) -> bool:
        """Whether oneDNN is to compute this convolution, and is fast with it."""
        multiplied = self.inputs == 1 and self.form.groups > 1 and self.outputs > 1
        fits = self.dtype == np.float32 and not self.line and not multiplied
        return self.form.library == "onednn" and fits

    @property
    def turnable(self) -> bool:
        """Whether XLA has a convolution of the image with the cotangents that is fast: not if these are the longer."""
        fits = all((axis.outputs - 1) * axis.stride < axis.size for axis in self.form.axes)
        return self.planar and fits and self.form.overlapping is not None

    @property
    def hollow(self) -> bool:
        """Whether the padded image is mostly padding, which products would gather and hold."""
        return self.form.extended >= 4 * math.prod(self.form.spatial)

    @property
    def direct(self) -> bool:
        """Whether that convolution is not slower than products of what is gathered, with a stride of one.

        With many taps it gathers less, and with few channels products have little to work on.
        """
        if not self.turnable or self.form.strided or self.taps < _SOME_TAPS:
            return False
        if self.batch == 1:
            return self.outputs >= max(2 * self.inputs, _MIDDLE + 1)
        if self.small:
            return True
        heaped = self.batch >= _MANY_IMAGES and self.batch * self.held >= _HEAP
        if self.inputs <= _FEW[0]:
            return not heaped
        if self.inputs >= _MIDDLE and self.outputs <= _MIDDLE // 2:  # windows of the cotangents are little
            return False
        if self.taps >= _MANY_TAPS and not self.old:
            return self.outputs > _MIDDLE
        if self.taps >= _MANY_TAPS:
            return self.outputs > (_MIDDLE if self.form.padded else max(self.inputs, _MIDDLE)) and not heaped
        if self.inputs < _MIDDLE:
            return True
        if not self.old:
            return self.outputs > 2 * self.inputs
        few = self.form.padded and max(self.inputs, self.outputs) <= 2 * _MIDDLE
        return few or (self.outputs >= 2 * self.inputs and not heaped)

    @property
    def direct_strided(self) -> bool:
        """The same with a stride."""
        if not self.turnable or not self.form.strided:
            return False
        if self.batch == 1:
            return self.inputs <= 4 * _MIDDLE and self.outputs > _MIDDLE
        if self.old and not self.form.padded:
            return self.small
        if self.taps >= _MANY_TAPS:
            return self.outputs > _MIDDLE
        return self.small or self.inputs <= _FEW[0] or max(self.inputs, self.outputs) <= 2 * _MIDDLE

    @property
    def small(self) -> bool:
        """Whether there are few positions, and not many channels or taps."""
        few = math.prod(self.form.positions) < _FEW_POSITIONS and self.taps < _MANY_TAPS
        return few and max(self.inputs, self.outputs) <= 4 * _MIDDLE

    @property
    def gathering(self) -> str:
        """The form whose products gather the fewest numbers for a position, by what a number costs, as measured."""
        first = self.form.axes[0]
        read = first.size / first.outputs
        places = math.prod(self.form.spatial) / math.prod(self.form.positions)
        products = self.taps * self.inputs * self.outputs / _AS_MANY
        numbers = {"blocks": 1.5 * self.taps * self.inputs + products}
        short = len(self.form.axes) == _PLANE and self.inputs <= _FEW[0]
        if first.stride == 1 and not short and not (self.old and min(self.inputs, self.outputs) >= 8 * _MIDDLE):
            gathered = self.taps // first.window * self.inputs + first.window * self.outputs
            numbers["mixed"] = read * (gathered + products)
        if not self.form.strided:
            numbers["exchanged"] = places * (2 * self.taps * self.outputs + products)
        return min(numbers, key=lambda form: numbers[form])
