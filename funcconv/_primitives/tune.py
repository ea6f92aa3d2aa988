"""`tune`: measure the forms of the convolutions and pools of a function on the current device."""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from .._common.errors import FuncconvError
from . import conv as _conv
from . import select as _select
from .compiler import candidates as option_candidates
from .compiler import library_of
from .explain import convs_and_pools
from .forms import Problem, Where
from .measure import Measurement, Task, conv_task, fastest, pool_task, race, random_array
from .tuning import Tuning, tuned

_SHARE_OF_OPTIONS = 0.15  # of the time: for the whole function with each set of compiler options
_SHARE_OF_FUNCTION = 0.15  # of the time: for the whole function with the measured forms


def tune(
    f: Callable[..., Any],
    *args: Any,
    seconds: float = 60.0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tuning:
    """Measure in which forms the convolutions and pools of a function are fastest on this device.

    The function `f` is traced. Each different convolution, input gradient, kernel gradient and max or min pool in it is
    compiled in each form that is correct for it, and timed with random arrays of the same shapes. Forms that need much
    more memory than operands and result are left out. A form replaces the default form if it is faster by more than the
    noise. Then the whole function is timed with the measured forms and with the default forms, without compiler options
    and with the fastest ones. The result contains the fastest of these combinations.

    Nothing changes until you apply the result with `fc.tuned`. A tuning is for one device. Measure again on another
    device.

    Args:
        f: a function of arrays or trees of arrays, for example a training step, a gradient or a Hessian-vector
            product. It is not changed, and its arguments are not donated.
        *args: its arguments. `jax.ShapeDtypeStruct` can replace an array; `f` then gets random numbers, and zeros for
            integers.
        seconds: about how long to measure, after `f` has been compiled. The convolutions and pools that take most of
            the time of `f` are measured first. Default: 60 seconds.
        path: path of the file to which the tuning is saved. Default: None, no file.
        progress: whether to print the progress to standard error. Default: True.

    Returns:
        A `Tuning`.

    Raises:
        FuncconvError: if `seconds` is not a positive number, or the file cannot be written. Errors that `f` raises are
            not changed.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 8, 8, (3, 3), groups=8)
        >>> loss = lambda params, x: fc.conv(params, x, groups=8).sum()
        >>> tuning = fc.tune(jax.grad(loss), params, jnp.ones((2, 8, 8, 8)), seconds=2, progress=False)
        >>> tuning.device["platform"] == jax.default_backend()
        True
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        msg = f"tune: seconds must be a positive number; got {seconds!r}. Omit it for 60 seconds"
        raise FuncconvError(msg)
    say = partial(print, file=sys.stderr, flush=True) if progress else _silent
    platform, sets = jax.default_backend(), option_candidates()
    with tuned(None):
        traced = jax.make_jaxpr(f)(*args)
    arrays = [_array(leaf) for leaf in jax.tree.leaves(args)]
    usual = next(iter(sets))  # no options
    entrants = {name: Tuning(compiler_options=options) for name, options in sets.items()}
    programs = {}
    for name, tuning in entrants.items():
        say(f"compiling the function with compiler options: {name}")
        programs[name] = _compiled(traced, tuning, arrays)
    began = time.monotonic()
    seconds_of = race(programs, began + _SHARE_OF_OPTIONS * seconds)
    others = sorted(programs.keys() - {usual}, key=lambda name: median(seconds_of[name]))
    best_sets = [usual, *others[:1]]
    unmeasured = 0
    left = began + (1 - _SHARE_OF_FUNCTION) * seconds - time.monotonic()
    for i, name in enumerate(best_sets):
        measurement = Measurement(platform, sets[name], say)
        until = began + (1 - _SHARE_OF_FUNCTION) * seconds - left * (len(best_sets) - 1 - i) / len(best_sets)
        measurement.measure(_tasks(traced, platform, library_of(sets[name])), until)
        tuning, unmeasured = measurement.tuning(), max(unmeasured, len(measurement.unmeasured))
        entrants[name] = tuning.with_usual_forms()
        if tuning != entrants[name]:
            say(f"compiling the function with measured forms and compiler options: {name}")
            entrants[f"{name}, measured"] = tuning
            programs[f"{name}, measured"] = _compiled(traced, tuning, arrays)
    names = {*best_sets} | (programs.keys() - sets.keys())
    seconds_of = race({name: programs[name] for name in programs if name in names}, began + seconds)
    best = fastest(seconds_of, usual)
    before, after = (1e3 * median(seconds_of[name]) for name in (usual, best))
    tuning = replace(entrants[best], before=before, after=after, unmeasured=unmeasured)
    say(str(tuning))
    if path is not None:
        tuning.save(path)
    return tuning


def _silent(_: str) -> None:
    pass


def _array(leaf: Any) -> Any:
    return random_array(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _tasks(traced: core.ClosedJaxpr, platform: str, library: str | None) -> Mapping[Task, int]:
    """Return the different problems of a traced function, with the number of times that each is computed."""
    tasks: dict[Any, Task] = {}
    counts: Counter[Any] = Counter()
    for eqn, times in convs_and_pools(traced.jaxpr, 1):
        if eqn.primitive is _select.extreme_p:
            if not eqn.params["keeps_nans"]:
                continue
            task = pool_task(eqn, platform)
        elif eqn.primitive in _conv.PRIMITIVES:
            roles = dict(zip(_conv.PRIMITIVES[eqn.primitive], [*eqn.invars, *eqn.outvars], strict=True))
            x, w, stack = roles["x"].aval, roles["w"].aval, eqn.params["stack"]
            form = eqn.params["form"]._replace(library=library, measured=None)
            if stack or not all(isinstance(size, int) for size in x.shape):
                continue
            task = conv_task(eqn.primitive, Problem.of(form, x.shape, w.shape, w.dtype, stack, Where(platform)))
        else:
            continue
        tasks.setdefault(task.key, task)
        counts[task.key] += times
    return {task: counts[key] for key, task in tasks.items()}


def _compiled(traced: core.ClosedJaxpr, tuning: Tuning, arrays: list[Any]) -> Callable[[], Any]:
    """Return the function as a compiled program with its arguments."""
    jaxpr = _with_forms(traced.jaxpr, tuning.forms, library_of(tuning.compiler_options))
    program = jax.jit(core.jaxpr_as_fun(traced.replace(jaxpr=jaxpr)))
    options = None if tuning.compiler_options is None else dict(tuning.compiler_options)
    compiled = program.lower(*arrays).compile(compiler_options=options)
    return lambda: compiled(*arrays)


def _with_forms(jaxpr: core.Jaxpr, forms: Any, library: str | None) -> core.Jaxpr:
    """Return a traced program whose convolutions and pools have the measured forms, in inner programs too."""

    def changed(value: Any) -> Any:
        if isinstance(value, core.Jaxpr):  # in jax 0.12 closed ones too
            return _with_forms(value, forms, library)
        if isinstance(value, core.ClosedJaxpr):
            return value.replace(jaxpr=changed(value.jaxpr))
        return type(value)(map(changed, value)) if type(value) in (tuple, list) else value

    eqns = []
    for eqn in jaxpr.eqns:
        params = {name: changed(value) for name, value in eqn.params.items()}
        if eqn.primitive in _conv.PRIMITIVES:
            params["form"] = params["form"]._replace(measured=forms, library=library)
        elif eqn.primitive is _select.extreme_p:
            params["measured"] = forms
        eqns.append(eqn.replace(params=params))
    return jaxpr.replace(eqns=eqns)
