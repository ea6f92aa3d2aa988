"""Whole networks in funcconv, in its peers and in PyTorch: a training step, inference and a product with the Hessian.

A figure of another library is a ratio in one run: its time, divided by the time of funcconv. A plus is for
`compiler_options`, and `tuned` is funcconv with the forms and options that `fc.tune` measured for the training step. It
has most of the convolutions of the other two. The quartiles are those of the ratio to lax over the rounds. The other
tables have the time to compile a training step, and the memory that it holds beside its arguments and results.
"""

import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

from .libraries import on_jax
from .networks import NETWORKS
from .tables import Table, with_mean
from .timing import medians, quartiles, timed

STEP = "training step"
TUNING_SECONDS = 60.0  # for each network
COMPILING, MEMORY = f"compiling a {STEP}", f"memory of a {STEP}"


def programs(predict: Callable[[Any, Any], Any]) -> dict[str, Callable[[Any, Any], Any]]:
    """Return what is timed, as functions of parameters and images."""

    def loss(params: Any, x: Any) -> Any:
        return jnp.square(predict(params, x) - 1).mean()

    def step(params: Any, x: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, x)
        return value, jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradient)

    def product(params: Any, x: Any) -> Any:
        return jax.jvp(jax.grad(lambda params: loss(params, x)), (params,), (params,))[1]

    return {STEP: step, "inference": predict, "HVP": product}


def compiled_anew(f: Callable[..., Any], options: Any, params: Any, x: Any) -> Any:
    """Return the compiled function, which JAX has not seen before."""
    return jax.jit(lambda *args: f(*args), compiler_options=options).lower(params, x).compile()


def tuned(tasks: dict[str, Callable[..., Any]], params: Any, x: Any, seconds: float) -> dict[str, Callable[[], Any]]:
    """Return the programs with the forms that are measured to be the fastest for the training step."""
    tuning = fc.tune(tasks[STEP], params, x, seconds=seconds, progress=False)
    return {
        task: partial(jax.jit(fc.tuned(tuning)(f), compiler_options=tuning.compiler_options), params, x)
        for task, f in tasks.items()
    }


def of_network(net: Any, shape: tuple[int, ...], rounds: int, tuning_seconds: float) -> tuple[Table, Table]:
    """Return what each library takes, in milliseconds or megabytes, for each task, and the quartiles of the ratios."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ways: dict[str, dict[str, Callable[[], Any]]] = {}
    compiling: dict[str, Callable[[], Any]] = {}
    taken: Table = {MEMORY: {}}
    builds = {library: (build, None) for library, build in on_jax().items()}
    best = fc.compiler_options()
    builds |= {f"{library} +": (on_jax()[library], best) for library in ("funcconv", "lax") if best}
    for library, (build, options) in builds.items():
        params, predict, images = build(net, jnp.asarray(x))
        for task, f in programs(fc.compiled_with(options)(predict)).items():
            anew = partial(compiled_anew, f, options, params, images)
            compiled = anew()
            if task == STEP:
                compiling[library] = anew
                taken[MEMORY][library] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            ways.setdefault(task, {})[library] = partial(compiled, params, images)
        if library == "funcconv":
            for task, program in tuned(programs(predict), params, images, tuning_seconds).items():
                ways[task]["tuned"] = program
    if importlib.util.find_spec("torch"):
        from . import torch_eager

        layouts = [torch_eager.programs(net, x, channels_last=last) for last in (False, True)]
        for task, of_task in ways.items():
            of_task["torch"], of_task["torch, last"] = (programs[task] for programs in layouts)
    seconds = {COMPILING: medians(compiling, 3, patience=3)}
    times = {task: timed(of_task, rounds) for task, of_task in ways.items()}
    seconds |= {
        task: {way: statistics.median(values) for way, values in of_task.items()} for task, of_task in times.items()
    }
    taken |= {task: {library: 1e3 * value for library, value in of_task.items()} for task, of_task in seconds.items()}
    for of_task in taken.values():  # the better of two layouts
        if "torch, last" in of_task:
            of_task["torch"] = min(of_task["torch"], of_task.pop("torch, last"))
    return taken, {task: quartiles(found["lax"], found["funcconv"]) for task, found in times.items()}


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table for each task."""
    tables: dict[str, Table] = {}
    for name, (net, usual, small) in NETWORKS.items():
        shape, rounds, seconds = (small, 3, 2.0) if quick else (usual, 9, TUNING_SECONDS)
        taken, spread = of_network(net, shape, rounds, seconds)
        for task, of_task in taken.items():
            ours = of_task.pop("funcconv")
            unit = "MB" if task == MEMORY else "ms"
            ratios = {library: theirs / ours for library, theirs in of_task.items()}
            tables.setdefault(task, {})[name] = {f"funcconv, {unit}": ours} | ratios | spread.get(task, {})
    return {title: with_mean(table) for title, table in tables.items()}
