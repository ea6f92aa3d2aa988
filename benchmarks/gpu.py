"""What a GPU shows in eight minutes: the laws, slow cases that users reported, random shapes, networks, determinism.

The results are written after each row, so a run that is cut short keeps what it has. Each part has a share of the time,
and leaves out what does not fit.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcconv as fc

from . import forms, pools
from .about import about
from .libraries import on_jax
from .networks import NETWORKS
from .peers import programs, tuned
from .reported import CASES as REPORTED
from .tables import Table
from .timing import medians

ROOT = Path(__file__).parents[1]
SECONDS = 480.0
SHARES = {"laws": 0.20, "rows": 0.45, "networks": 0.27, "determinism": 0.08}  # of the time
RANDOM_ROWS, SEED = 30, 11
ROUNDS, PATIENCE = 9, 1.0
TUNING_SECONDS = 4.0  # for each row
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Record = dict[str, Any]
Row = tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]  # a name, funcconv, lax, and the arrays


def run(path: Path, *, seconds: float = SECONDS, quick: bool = False) -> Record:
    """Run all parts, and write the record to `path` as it grows."""
    device = jax.devices()[0]
    record: Record = about(device) | {"parts": {}}
    parts = {"laws": laws, "rows": rows, "networks": networks, "determinism": determinism}
    began, share = time.monotonic(), 0.0
    for name, part in parts.items():
        share += SHARES[name]
        table = record["parts"].setdefault(name, {})
        try:
            for row, figures in part(began + share * seconds, quick=quick):
                table[row] = figures
                print(f"{time.monotonic() - began:5.0f} s  {name}: {row}: {_short(figures)}", flush=True)
                _write(path, record)
        except Exception as error:  # the other parts are still of interest
            table["stopped"] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        record["seconds"] = time.monotonic() - began
        _write(path, record)
    record["summary"] = summary(record)
    _write(path, record)
    for name, figures in record["summary"].items():
        print(f"{name}: {_short(figures)}")
    return record


def laws(until: float, *, quick: bool) -> Iterator[tuple[str, Record]]:
    """Compare values and gradients with those of the CPU in float64, for each case of the tests.

    The errors are in units in the last place of the largest number. Convolutions compute with all digits of float32,
    which a GPU does not do by itself. The order is random, so that what fits into the time is of every kind.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from cases import CASES

    for i in np.random.default_rng(SEED).permutation(len(CASES))[:: 12 if quick else 1]:
        if time.monotonic() > until:
            return
        with jax.enable_x64(True), jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):  # noqa: FBT003
            yield CASES[i].name, _errors(CASES[i])


def _errors(case: Any) -> Record:
    """Return the largest error in each dtype, for one set of numbers that bfloat16 has."""
    drawn = case.draw(np.random.default_rng(0), batch=(2,))
    numbers = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16).astype(np.float64), drawn)
    f = jax.jit(_value_and_gradient(case))
    with jax.default_device(jax.devices("cpu")[0]):
        exact = f(*jax.tree.map(jnp.asarray, numbers))
    figures: Record = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        own = f(*jax.tree.map(partial(jnp.asarray, dtype=dtype), numbers))
        errors = jax.tree.leaves(jax.tree.map(partial(_error, dtype=dtype), own, exact))
        figures[jnp.dtype(dtype).name] = max(errors, default=0.0)
    return figures


def _value_and_gradient(case: Any) -> Callable[..., Any]:
    def value(params: Any, x: Any) -> Any:
        y = case.op(params, x)
        return jnp.sum(y.astype(jnp.float32) if y.dtype == jnp.bfloat16 else y), y

    return lambda params, x: (value(params, x)[1], jax.grad(lambda *args: value(*args)[0], (0, 1))(params, x))


def _error(own: Any, exact: Any, dtype: Any) -> float:
    own, exact = np.asarray(own, np.float64), np.asarray(exact, np.float64)
    if not exact.size:
        return 0.0
    scale = max(float(np.abs(exact).max()), 1.0)
    return float(np.abs(own - exact).max()) / scale / float(jnp.finfo(dtype).eps)


def rows(until: float, *, quick: bool) -> Iterator[tuple[str, Record]]:
    """Time reported slow cases, pools and random shapes, with and without a tuning, against lax."""
    for name, own, plain, arrays in _rows(quick=quick):
        if time.monotonic() > until:
            return
        yield name, against_lax(own, plain, arrays, TUNING_SECONDS / (4 if quick else 1))


def against_lax(own: Callable[..., Any], plain: Callable[..., Any], arrays: tuple[Any, ...], seconds: float) -> Record:
    """Return the milliseconds of lax, and how many times faster funcconv is, without and with a tuning."""
    tuning = fc.tune(own, *arrays, seconds=seconds, progress=False)
    tuned = jax.jit(fc.tuned(tuning)(own), compiler_options=tuning.compiler_options)
    ways = {"funcconv": jax.jit(own), "tuned": tuned, "lax": jax.jit(plain)}
    seconds = medians({name: partial(f, *arrays) for name, f in ways.items()}, rounds=ROUNDS, patience=PATIENCE)
    return {
        "lax, ms": 1e3 * seconds["lax"],
        "times faster than lax": seconds["lax"] / seconds["funcconv"],
        "tuned, times faster than lax": seconds["lax"] / seconds["tuned"],
        "problems": {
            f"{row.key.map} {row.key.text}": {"form": row.form}
            | {f"{form}, ms": ms for form, ms in row.milliseconds.items()}
            for row in tuning.problems
        },
    }


def _rows(*, quick: bool) -> Iterator[Row]:
    for name, case in list(REPORTED.items())[1::5] if quick else REPORTED.items():
        yield f"reported: {name}", partial(case.compute, None), partial(case.compute, "lax"), case.arrays()
    for name, (shape, window, stride, reduce) in list(pools.ROWS.items())[: 1 if quick else 3]:
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        own = partial(fc.pool, window=(window,) * (len(shape) - 2), stride=stride, reduce=reduce)
        plain = partial(pools.through_lax, window=window, stride=stride, reduce=reduce)
        yield f"pool, gradient: {name}", _gradient_of_sum(own), _gradient_of_sum(plain), (x,)
    rng = np.random.default_rng(SEED)
    for _ in range(2 if quick else RANDOM_ROWS):
        case = forms.drawn(rng)
        axes = case.form.axes
        options = {
            "groups": case.form.groups,
            "stride": tuple(axis.stride for axis in axes),
            "dilation": tuple(axis.dilation for axis in axes),
            "padding": tuple((axis.lo, axis.hi) for axis in axes),
        }
        kernel = rng.normal(size=case.kernel).astype(np.float32)
        x = rng.normal(size=case.image).astype(np.float32)

        def conv(implementation: str | None, kernel: Any, x: Any, options: dict[str, Any] = options) -> Any:
            return fc.conv({"kernel": kernel}, x, implementation=implementation, **options)

        arrays, name = (jnp.asarray(kernel), jnp.asarray(x)), case.name
        yield f"random: {name}", partial(conv, None), partial(conv, "lax"), arrays
        pair = (_gradient_of_sum(partial(conv, way), argnums=(0, 1)) for way in (None, "lax"))
        yield f"random, gradients: {name}", *pair, arrays


def _gradient_of_sum(f: Callable[..., Any], argnums: Any = 0) -> Callable[..., Any]:
    return jax.grad(lambda *arrays: jnp.square(f(*arrays)).sum(), argnums)


def networks(until: float, *, quick: bool) -> Iterator[tuple[str, Record]]:
    """Time steps, inference and Hessian-vector products of networks against flax, and PyTorch if it has the device.

    The step is tuned. Its tuning has most of the convolutions that the other two compute.
    """
    libraries = {name: build for name, build in on_jax().items() if name in ("funcconv", "flax")}
    for name, (net, usual, small) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=small if quick else usual).astype(np.float32)
        ways: dict[str, dict[str, Callable[[], Any]]] = {}
        for library, build in libraries.items():
            params, predict, images = build(net, jnp.asarray(x))
            tasks = programs(predict)
            for task, f in tasks.items():
                ways.setdefault(task, {})[library] = partial(jax.jit(f), params, images)
            if library == "funcconv":
                seconds = TUNING_SECONDS * (0.5 if quick else 2)
                for task, program in tuned(tasks, params, images, seconds).items():
                    ways[task]["tuned"] = program
        for library, of_library in _torch(net, x).items():
            for task, f in of_library.items():
                ways[task][library] = f
        for task, of_task in ways.items():
            if time.monotonic() > until:
                return
            seconds_by_library = medians(of_task, rounds=ROUNDS, patience=PATIENCE)
            ours = seconds_by_library.pop("funcconv")
            ratios = {f"{library} / funcconv": seconds / ours for library, seconds in seconds_by_library.items()}
            yield f"{name}, {task}", {"funcconv, ms": 1e3 * ours} | ratios


def _torch(net: Any, x: np.ndarray) -> dict[str, dict[str, Callable[[], Any]]]:
    if not importlib.util.find_spec("torch"):
        return {}
    from . import torch_eager

    device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return {"torch": torch_eager.programs(net, x, channels_last=True, device=device)}


def determinism(until: float, *, quick: bool) -> Iterator[tuple[str, Record]]:
    """Train through max pools with deterministic operations only, in a process of its own."""
    for library in ("funcconv", "lax"):
        flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
        # This process has taken most of the memory of the GPU.
        environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, "-m", "benchmarks.gpu", library, *(["--quick"] if quick else [])]
        left = max(until - time.monotonic(), 20.0)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=left
            )
        except subprocess.TimeoutExpired:
            yield library, {"error": f"no result after {left:.0f} s"}
            continue
        lines = done.stdout.splitlines()
        yield library, json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": done.stderr[-300:]}


def pooled_training(library: str, *, quick: bool) -> Record:
    """Return the milliseconds of a step through overlapping max pools, and whether two runs are equal bit by bit."""
    shape = (4, 32, 32, 8) if quick else (32, 112, 112, 64)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))

    def pool(x: Any) -> Any:
        if library == "funcconv":
            return fc.max_pool(x, (3, 3), stride=2)
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

    step = jax.jit(jax.grad(lambda x: jnp.square(pool(pool(x))).sum()))
    first, second = np.asarray(step(x)), np.asarray(step(x))
    seconds = medians({library: partial(step, x)}, rounds=ROUNDS, patience=PATIENCE)
    return {"ms": 1e3 * seconds[library], "equal": bool(np.array_equal(first, second))}


def summary(record: Record) -> Table:
    """Return the figures that are compared with the targets."""
    parts = record["parts"]
    table: Table = {}
    for dtype in ("float32", "bfloat16"):
        errors = [row[dtype] for row in parts["laws"].values() if dtype in row]
        if errors:
            table[f"laws in {dtype}"] = {"cases": len(errors), "largest error, units in the last place": max(errors)}
    for way in ("times faster than lax", "tuned, times faster than lax"):
        ratios = [row[way] for row in parts["rows"].values() if way in row]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            table[way] = {"rows": len(ratios), "geometric mean": mean, "smallest": min(ratios)}
    return table


def _write(path: Path, record: Record) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def _short(figures: Record) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if not isinstance(value, dict)
    )


if __name__ == "__main__":
    print(json.dumps(pooled_training(sys.argv[1], quick="--quick" in sys.argv)))
