"""Every form of the three maps of a convolution, on random shapes: how far the chosen form is from the fastest one.

The limits of the choice were fitted to other shapes that were drawn so.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from funcconv._primitives import conv as _conv
from funcconv._primitives import measure as _measure
from funcconv._primitives.forms import CHOICES, Form, MeasuredForms, Problem, Where, choose
from funcconv._primitives.forms import lax_conv as _lax
from funcconv._windows.geometry import resolve

from .tables import Table, with_mean
from .timing import quartiles

SHAPES = 150
SEED = 4  # neither a rule nor a limit of the choice was made by what it draws
LEAST, MOST = 2e6, 1e9  # products of two numbers in a map
LARGEST = 2**22  # numbers in an array
SIDES = {1: 2**13, 2: 2**8, 3: 2**5}  # the largest image, by the number of its axes
GROUPED, DEPTHWISE = 0.2, 0.2  # fractions of the convolutions
ALL_TAPS = "lax with all taps"  # where some taps are on padding only, which funcconv leaves out


class Drawn(NamedTuple):
    """A convolution that was drawn."""

    image: tuple[int, ...]  # (batch, *spatial, in)
    outputs: int
    form: Form

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        return (*self.form.window, self.image[-1] // self.form.groups, self.outputs)

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the result."""
        return (self.image[0], *self.form.positions, self.outputs)

    @property
    def name(self) -> str:
        """A short name."""
        axis, groups = self.form.axes[0], self.form.groups
        name = f"{'x'.join(map(str, self.image))} to {self.outputs} k{axis.window}"
        name += f" stride {axis.stride}" if axis.stride > 1 else ""
        name += f" padding {axis.lo}" if axis.lo else ""
        name += f" dilation {axis.dilation}" if axis.dilation > 1 else ""
        return name + (f" groups {groups}" if groups > 1 else "")


def drawn(rng: np.random.Generator) -> Drawn:
    """Return a convolution.

    Every other one has numbers of images and channels as networks have them, which XLA is faster with than with any.
    """
    while True:
        n = int(rng.choice([1, 2, 2, 2, 2, 3]))
        batch, side, inputs, outputs = (round(most ** rng.uniform()) for most in (2**8, SIDES[n], 2**8, 2**8))
        if rng.uniform() < 0.5:
            batch, inputs, outputs = 2 ** round(math.log2(batch)), 8 * -(-inputs // 8), 8 * -(-outputs // 8)
        window = int(rng.choice([2, 3, 3, 3, 4, 5, 5, 7, 11]))
        stride, dilation = int(rng.choice([1, 1, 1, 1, 2, 3])), int(rng.choice([1, 1, 1, 1, 1, 2]))
        padding = int(rng.choice([0, dilation * (window - 1) // 2]))
        groups, kind = 1, rng.uniform()
        if kind < DEPTHWISE:
            groups, outputs = inputs, inputs * int(rng.choice([1, 1, 2]))
        elif kind < DEPTHWISE + GROUPED:
            groups = int(rng.choice([2, 4, 8, 32]))
            inputs, outputs = (groups * -(-channels // groups) for channels in (inputs, outputs))
        if side + 2 * padding <= (window - 1) * dilation:
            continue
        axes = resolve("conv", (side,) * n, (window,) * n, stride=stride, padding=padding, dilation=dilation)
        form = Form(tuple(axes), groups)
        products = batch * math.prod(form.positions) * math.prod(form.window) * inputs * outputs // groups
        largest = batch * max(side**n * inputs, math.prod(form.positions) * outputs)
        if LEAST < products < MOST and largest < LARGEST:
            return Drawn((batch, *form.spatial, inputs), outputs, form)


def problems(case: Drawn) -> Iterator[tuple[str, Problem, _measure.Task]]:
    """Return the problems of the three maps on the CPU, in float32."""
    where = Where("cpu")
    problem = Problem.of(case.form, case.image, case.kernel, np.dtype(np.float32), 0, where)
    for primitive in _conv.PRIMITIVES:
        yield primitive.name, problem, _measure.conv_task(primitive, problem)


def milliseconds(case: Drawn, task: _measure.Task, rounds: int) -> dict[str, list[float]]:
    """Return the times of each form, and of XLA's own convolution with all taps. Forms that are far slower have two."""
    arrays = [_measure.random_array(leaf) for leaf in task.types]
    programs: dict[str, Callable[[], Any]] = {}
    for form in dict.fromkeys((*task.forms, "lax")):
        f = partial(task.compute, MeasuredForms("cpu", {task.key: form}))
        programs[form] = partial(jax.jit(f).lower(*task.types).compile(), *arrays)
    if case.form.trimmed != case.form:
        whole = {"x": case.image, "w": case.kernel, "g": case.result}
        primitive = next(p for p in _conv.PRIMITIVES if p.name == task.key.map)
        *operands, result = (jax.ShapeDtypeStruct(whole[role], np.float32) for role in _conv.PRIMITIVES[primitive])
        f = partial(through_lax, task.key.map, case.form, result)
        programs[ALL_TAPS] = partial(jax.jit(f), *map(_measure.random_array, operands))
    until = time.monotonic() if rounds <= 4 else math.inf
    return {form: [1e3 * each for each in seconds] for form, seconds in _measure.race(programs, until).items()}


def through_lax(name: str, form: Form, result: Any, a: Any, b: Any) -> Any:
    """Return one of the maps, as JAX makes it of XLA's convolution."""
    if name == "conv":
        return _lax.reference(a, b, form)
    if name == "conv_input_grad":
        return jax.linear_transpose(lambda x: _lax.reference(x, a, form), result)(b)[0]
    return jax.linear_transpose(lambda w: _lax.reference(a, w, form), result)(b)[0]


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table for each map: milliseconds, and how many times those of lax and of the fastest form."""
    rng = np.random.default_rng(SEED)
    tables: dict[str, Table] = {}
    for _ in range(4 if quick else SHAPES):
        case = drawn(rng)
        for name, problem, task in problems(case):
            all_times = milliseconds(case, task, 4 if quick else 11)
            times = {form: median(values) for form, values in all_times.items()}
            lax = times.pop(ALL_TAPS, times["lax"])
            chosen, fastest = choose(CHOICES[name], problem).form, min(times, key=lambda form: times[form])
            row = f"{case.name}: {chosen}" + (f", not {fastest}" if chosen != fastest else "")
            tables.setdefault(f"the choice for {name}", {})[row] = {
                "ms": times[chosen],
                "times faster than lax": lax / times[chosen],
                "times slower than the fastest": times[chosen] / times[fastest],
                **quartiles(all_times.get(ALL_TAPS, all_times["lax"]), all_times[chosen]),
            }
    return {title: with_mean(table) for title, table in tables.items()}
