"""Timing of the forms of convolutions and pools on the current device."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

from . import conv as _conv
from . import extreme as _extreme
from . import select as _select
from .compiler import library_of
from .forms import CHOICES, Key, MeasuredForms, Problem, candidates, choose, chosen
from .tuning import TunedProblem, Tuning

_MOST_ROUNDS = 11
_LEAST_ROUNDS = 4
_LEAST_SECONDS = 2e-3  # of one timing on an accelerator, which gets several calls at once if they are shorter,
_MOST_CALLS = 20  # but not more than this
_HOPELESS = 2.5  # times the shortest time; programs that are slower twice are not timed again
_LEAST_GAIN = 1.02  # of the median: differences below this are not worth another form
_ROUNDS_WON = 0.75  # fraction of the rounds in which a program must be the faster one
_LEAST_PRODUCTS = 2**15  # of a convolution that is worth measuring; shorter ones take as long as a call
_MOST_MEMORY = 4  # times the bytes of operands and result that a form may need besides them,
_SPARE_MEMORY = 2**24  # and these bytes


class Task(NamedTuple):
    """A convolution or a pool whose forms are to be timed."""

    key: Key
    forms: tuple[str, ...]  # that compute it
    default: str  # the form that is used without a tuning
    types: tuple[Any, ...]  # of its operands
    compute: Callable[..., Any]  # a function of `MeasuredForms` and the operands


def conv_task(primitive: Primitive, problem: Problem) -> Task:
    """Return the task of one of the three maps of a convolution. It has a single form if it has a stack."""
    form, name = problem.form, primitive.name
    shapes = {
        "x": (problem.batch, *form.spatial, problem.inputs * form.groups),
        "w": (*form.window, problem.inputs, problem.outputs * form.groups),
        "g": (problem.batch, *form.positions, problem.outputs * form.groups),
    }
    *operands, result = (jax.ShapeDtypeStruct(shapes[role], problem.dtype) for role in _conv.PRIMITIVES[primitive])

    def compute(forms: MeasuredForms, *arrays: Any) -> Any:
        out = jax.typeof(arrays[0]).update(shape=result.shape, dtype=result.dtype, weak_type=False)
        return primitive.bind(*arrays, form=form._replace(measured=forms), stack=0, out=out)

    default = choose(CHOICES[name], problem._replace(form=form._replace(measured=None))).form
    forms = candidates(name, problem) if problem.products > _LEAST_PRODUCTS else ()
    return Task(Key.of(name, problem), tuple(dict.fromkeys((default, *forms))), default, tuple(operands), compute)


def pool_task(eqn: Any, platform: str) -> Task:
    """Return the task of the forward pass of a max or min pool that keeps NaNs; others have one form."""
    x, params = eqn.invars[0].aval, eqn.params

    def compute(forms: MeasuredForms, x: Any) -> Any:
        return _select.extreme_p.bind(x, **params | {"measured": forms})

    operand = jax.ShapeDtypeStruct(x.shape, x.dtype)
    default, _ = _extreme.chosen_form(x, params["axes"], None, platform, keeps_nans=True)
    forms = tuple(_extreme.FORMS) if math.prod(x.shape) > _LEAST_PRODUCTS else (default,)
    return Task(_extreme.key_of(x, params["axes"]), forms, default, (operand,), compute)


class Measurement:
    """The fastest forms of problems, with one set of compiler options.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        options: for the compiler.
        say: is called with a line about each problem.
    """

    def __init__(self, platform: str, options: Mapping[str, str | bool] | None, say: Callable[[str], None]) -> None:
        self._platform, self._say = platform, say
        self._options = None if options is None else dict(options)
        self._library = library_of(options)
        self.rows: dict[Key, TunedProblem] = {}
        self.unmeasured: set[Key] = set()

    def measure(self, tasks: Mapping[Task, int], until: float) -> None:
        """Time the forms of tasks, with the number of times that the function computes each.

        Tasks that take most time come first. Tasks that have not begun at the time `until` are left out.
        """
        worthwhile = {task: times for task, times in tasks.items() if len(task.forms) > 1}
        cost: dict[Task, float] = {}
        for task, times in worthwhile.items():
            if time.monotonic() < until:
                program, _ = self._compiled(task, task.default)
                call = partial(program, *map(random_array, task.types))
                jax.block_until_ready(call())
                cost[task] = times * _seconds(call)
        for task in sorted(worthwhile, key=lambda task: -cost.get(task, 0.0)):
            if time.monotonic() < until and task in cost:
                self._measure(task, worthwhile[task], until)
            else:
                self.unmeasured.add(task.key)

    def tuning(self) -> Tuning:
        """Return the measured forms as a tuning. It includes problems whose default form is the fastest."""
        return Tuning(tuple(self.rows.values()), self._options)

    def _measure(self, task: Task, times: int, until: float) -> None:
        """Time the forms of a task, after those of the convolutions of which they consist."""
        programs: dict[str, Callable[[], Any]] = {}
        limit = _MOST_MEMORY * sum(_bytes(leaf) for leaf in task.types) + _SPARE_MEMORY
        for part in self._parts(task):
            if part.key not in self.rows and len(part.forms) > 1 and time.monotonic() < until:
                self._measure(part, 0, until)
        arrays = [random_array(leaf) for leaf in task.types]
        for form in task.forms:
            if form != task.default and time.monotonic() > until:
                continue
            try:
                program, memory = self._compiled(task, form)
            except jax.errors.JaxRuntimeError:
                if form == task.default:
                    raise
                continue  # this XLA cannot compile the form for this device
            if form == task.default or memory <= limit:
                programs[form] = partial(program, *arrays)
        seconds = race(programs, until)
        best = fastest(seconds, task.default)
        milliseconds = {form: 1e3 * statistics.median(values) for form, values in seconds.items()}
        row = TunedProblem(task.key, times, best, task.default, milliseconds)
        self.rows[task.key] = row
        texts = (f"{form} {value:.3f} ms" for form, value in sorted(milliseconds.items(), key=lambda item: item[1]))
        self._say(f"{task.key.map} {task.key.text}: {', '.join(texts)}")

    def _forms(self, task: Task, form: str) -> MeasuredForms:
        """Return the forms that were measured so far, and this one for the task itself."""
        measured_forms = {key: row.form for key, row in self.rows.items()}
        return MeasuredForms(self._platform, measured_forms | {task.key: form})

    def _parts(self, task: Task) -> list[Task]:
        """Return the convolutions that are parts of the forms of a task."""
        parts: list[tuple[str, Problem]] = []
        token = chosen.set(parts)
        try:
            for form in task.forms:
                jax.jit(partial(task.compute, self._forms(task, form))).lower(*task.types)
        finally:
            chosen.reset(token)
        primitives = {primitive.name: primitive for primitive in _conv.PRIMITIVES}
        tasks = [conv_task(primitives[name], problem) for name, problem in parts if not problem.stack]
        return [part for part in tasks if part.key != task.key]

    def _compiled(self, task: Task, form: str) -> tuple[Callable[..., Any], int]:
        """Return a compiled program, and the bytes that it needs besides operands and result."""
        function = jax.jit(lambda *arrays: task.compute(self._forms(task, form), *arrays))
        compiled = function.lower(*task.types).compile(compiler_options=self._options)
        memory = compiled.memory_analysis()  # None if this platform does not report it
        return compiled, 0 if memory is None else memory.temp_size_in_bytes


def race(programs: Mapping[str, Callable[[], Any]], until: float) -> dict[str, list[float]]:
    """Return the seconds of programs, which run in turns.

    Args:
        programs: compiled, with their operands.
        until: the time at which no further round begins, unless there were few.

    Returns:
        As many numbers for each program as there were rounds. Programs that are far too slow have two.
    """
    calls = {name: _calls(program) for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(2):  # another process can delay a single call
        for name, program in programs.items():
            seconds[name].append(_seconds(program, calls[name]))
    shortest = min(map(min, seconds.values()))
    racing = [name for name, values in seconds.items() if min(values) <= _HOPELESS * shortest]
    for i in range(2, _MOST_ROUNDS):
        if i >= _LEAST_ROUNDS and time.monotonic() > until:
            break
        for name in racing:
            seconds[name].append(_seconds(programs[name], calls[name]))
    return seconds


def fastest(seconds: Mapping[str, list[float]], usual: str) -> str:
    """Return the fastest program, or the usual one if the difference is within the noise."""
    best = min(seconds, key=lambda name: statistics.median(seconds[name]))
    ratios = [a / b for a, b in zip(seconds[usual], seconds[best], strict=False)]
    is_faster = statistics.median(ratios) > _LEAST_GAIN and sum(r > 1 for r in ratios) >= _ROUNDS_WON * len(ratios)
    return best if is_faster else usual


def random_array(leaf: Any) -> Any:
    """Return an array of this type on the default device: random floats, zeros of other types, or a random key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros(leaf.shape, leaf.dtype)
    values = np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
    return jax.device_put(values.astype(leaf.dtype))


def _calls(program: Callable[[], Any]) -> int:
    """Return the number of calls to time together: several for a short program on an accelerator, else one."""
    jax.block_until_ready(program())  # the first call is slower
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(_MOST_CALLS, int(_LEAST_SECONDS / _seconds(program))))


def _seconds(program: Callable[[], Any], calls: int = 1) -> float:
    begin = time.perf_counter()
    jax.block_until_ready([program() for _ in range(calls)])
    return (time.perf_counter() - begin) / calls


def _bytes(leaf: Any) -> int:
    return int(math.prod(leaf.shape) * leaf.dtype.itemsize)
