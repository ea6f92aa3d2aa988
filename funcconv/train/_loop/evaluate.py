"""Means of metrics over a data set, in batches."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import ExitStack
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.patterns import path_of
from ..._primitives.tuning import tuning_of_environment
from .._data.batches import Batches
from .._distributed.partition import mesh_of, on_every_device, placed_batch
from .._distributed.processes import digests, of_state
from .._logs.progress import Progress
from .._step.described import described, is_real
from .._step.memory import copied_batch
from .._step.step import compiled
from .._step.totals import Weighted, checked_total, is_total

Metric: TypeAlias = Callable[[Any, Any], Any]
_ADVICE = "Return train.Weighted(sum, weight) for another mean, and train.Sum(value) for a count"
_MAX_PENDING = 2  # batches that are being computed while the next one is prepared


def evaluate(
    metrics: Metric | Mapping[str, Metric], state: Any, batches: Iterable[Any], *, progress: bool = False
) -> Any:
    """Compute metrics over a data set: exact means and sums over all examples, also if the last batch is short.

    All metrics of a batch are computed in one compiled function. It is compiled once for each shape of a batch, so a
    short last batch compiles it a second time. The batch is not filled up, because a metric could not tell the added
    examples from others. Later calls with the same functions use the compiled code again. So define the metrics once,
    not in each call.

    What a metric returns says how batches are combined. `x_b` is its result for batch `b` with `n_b` examples:

    - An array `(examples, ...)` has a value for each example. The result is the mean over all examples, `(...)`.
    - A floating scalar is the mean over the examples of the batch. The result is `sum_b n_b x_b / sum_b n_b`.
    - `Weighted(s_b, w_b)` is any other mean, such as over tokens. The result is `sum_b s_b / sum_b w_b`, of the shape
      of `s_b`; NaN if the total weight is 0.
    - `Sum(x_b)` is a count, such as the result of `confusion`. The result is `sum_b x_b`, of the shape of `x_b`.

    A scalar that is a mean over something else, such as the pixels of a mask, must be a `Weighted`; this cannot be
    detected. An integer scalar raises an error, because it is no mean. Numbers are summed within a batch in at least
    float32, and over batches in float64 or, if they are integers, in int64.

    If the state is on a mesh, each device computes its share of each batch; a batch that cannot be cut evenly is
    computed as a whole on every device. In several processes, each of them must call `evaluate` with the same whole
    batches, and all get the same result.

    Args:
        metrics: a function `metric(state, batch)`, or a dict of these by their names. A function may also return a dict
            or another tree of results. It must be pure, because it is compiled.
        state: the first argument of the metrics, a tree of arrays, such as a `State` or parameters.
        batches: the data set. The result of `train.batches` is read from its beginning for one epoch, and its position
            does not change; it needs `drop_last=False` if the last batch is short. Or a list of batches, a loader, or
            another iterable that ends. All entries of a batch have the same first axis, the examples, unless each
            metric returns `Weighted` or `Sum`.
        progress: whether to show a progress bar on the standard error. Default: False, because `fit` has its own.

    Returns:
        The result in the structure of `metrics`: for a function the result in place of what it returns, for a dict a
        dict. Results are Python numbers, or NumPy arrays of float64 or int64.

    Raises:
        FuncconvError: if there are no batches; if `train.batches` would leave out examples; if a metric is not a
            function or cannot be hashed, or returns anything else than listed above; if processes have other batches.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> def error(state, batch):
        ...     return abs(state * batch["x"] - batch["y"])
        >>> data = fc.train.batches({"x": np.arange(5.0), "y": np.ones(5)}, 2, drop_last=False)
        >>> fc.train.evaluate(error, 1.0, data), fc.train.evaluate({"error": error}, 2.0, data)
        (1.4, {'error': 3.4})
    """
    compute, mesh = _compiled(_checked(metrics), mesh_of(state)), mesh_of(state)
    source, count = _source(batches)
    sums: Any = None
    pending: deque[Any] = deque()
    with ExitStack() as closing:
        bar = Progress(count, 0, shown=progress, name="evaluating", unit="batch")
        closing.callback(bar.close, "")
        for number, batch in enumerate(source, 1):
            if number == 1:
                _check_processes(state, batch)
            pending.append(compute(state, batch if mesh is None else placed_batch(batch, mesh)))
            if len(pending) > _MAX_PENDING:
                sums = _added(sums, pending.popleft())
            bar.update(number, {}, {})
    for totals in pending:
        sums = _added(sums, totals)
    if sums is None:
        msg = (
            f"evaluate: there are no batches in the {type(batches).__name__}. An iterator can be read only once: pass "
            "train.batches(...), a list or a loader"
        )
        raise FuncconvError(msg)
    results = jax.tree.map(_result, sums, is_leaf=is_total)
    # `jax.jit` sorts the names.
    return {name: results[name] for name in metrics} if isinstance(metrics, Mapping) else results


def _checked(metrics: Any) -> Any:
    """Return the metrics as a value that can be hashed: a function, or a tuple of names and functions."""
    functions = metrics.items() if isinstance(metrics, Mapping) else [("metrics", metrics)]
    for name, function in functions:
        try:
            hash(function)
            is_valid = callable(function)
        except TypeError:
            is_valid = False
        if not is_valid:
            msg = (
                "evaluate: metrics must be a function metric(state, batch) that can be hashed, or a dict of these; "
                f"{name!r} is a {type(function).__name__}. Define a function with def"
            )
            raise FuncconvError(msg)
    return tuple(functions) if isinstance(metrics, Mapping) else metrics


def _source(batches: Any) -> tuple[Iterable[Any], int | None]:
    """Return an iterable over the batches, with arrays that do not change, and their number if it is known."""
    if isinstance(batches, Batches):
        return batches.first_epoch(), batches.per_epoch
    # These are iterable, but over their keys or examples.
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping | str) or hasattr(batches, "dtype"):
        msg = (
            "evaluate: batches must be an iterable over batches, such as train.batches(...), a list or a loader; got "
            f"a {type(batches).__name__}. Pass [batch] for a single batch"
        )
        raise FuncconvError(msg)
    return map(copied_batch, batches), len(batches) if isinstance(batches, Sized) else None


def _check_processes(state: Any, batch: Any) -> None:
    """Refuse other batches in another process with the same state. Comparing the first one finds shuffled parts."""
    processes = of_state(state)
    if processes.together:
        processes.check(digests(batch, "the first batch of evaluate"))


@functools.lru_cache(maxsize=32)  # so that later calls with the same functions do not compile again
def _compiled(functions: Any, mesh: Mesh | None) -> Any:
    return compiled(functools.partial(_totals, functions, mesh), tuning_of_environment())


def _totals(functions: Any, mesh: Mesh | None, state: Any, batch: Any) -> Any:
    """Return a `Weighted` or a `Sum` for each metric of a batch."""

    def totals(state: Any, batch: Any) -> Any:
        returned, count = _returned(functions, state, batch), _count(batch)
        _check_first_axes(functions, state, batch, returned, count)
        return jax.tree.map_with_path(lambda path, value: _total(path, value, count), returned, is_leaf=_is_metric)

    if mesh is None:
        return totals(state, batch)
    if AxisType.Explicit not in mesh.axis_types:
        return on_every_device(totals(state, batch), mesh)
    # The types of arrays have shardings. Inside, XLA decides, so that metrics can use every operation.
    replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    return jax.sharding.auto_axes(totals, axes=mesh.axis_names, out_sharding=replicated)(state, batch)


def _returned(functions: Any, state: Any, batch: Any) -> Any:
    if isinstance(functions, tuple):
        return {name: function(state, batch) for name, function in functions}
    return functions(state, batch)


def _is_metric(value: Any) -> bool:
    return value is None or is_total(value)  # None is no leaf, and would be left out


def _count(batch: Any) -> int | None:
    """Return the number of examples in a batch, or None if its arrays do not have the same first axis."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    return counts.pop()[0] if len(counts) == 1 and () not in counts else None


def _check_first_axes(functions: Any, state: Any, batch: Any, returned: Any, count: int | None) -> None:
    """Refuse an array whose first axis has the size of the examples by chance, such as one for each class.

    With twice as many examples, values for each example are twice as many.
    """
    leaves = jax.tree.leaves_with_path(returned, is_leaf=_is_metric)
    paths = {path for path, value in leaves if is_real(value) and jnp.shape(value)[:1] == (count,)}
    if not paths or not count:
        return

    def doubled(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((2 * len(leaf), *leaf.shape[1:]), leaf.dtype)  # type: ignore[no-untyped-call]

    twice = jax.tree.map(doubled, batch)
    try:
        of_twice = jax.eval_shape(lambda batch: _returned(functions, state, batch), twice)
    except Exception:  # such as a metric for batches of one size only, which then has no other meaning
        return
    for path, value in jax.tree.leaves_with_path(of_twice, is_leaf=_is_metric):
        if path in paths and value.shape[:1] != (2 * count,):
            msg = (
                f"evaluate: {_name(path)} has shape {value.shape} for {count} and for {2 * count} examples, so its "
                f"first axis is not that of the examples. {_ADVICE}"
            )
            raise FuncconvError(msg)


def _total(path: Sequence[Any], value: Any, count: int | None) -> Any:
    """Return the sum and the weight of one metric of a batch with `count` examples."""
    if is_total(value):
        return checked_total(value, _name(path))
    if not is_real(value):
        msg = f"evaluate: {_name(path)} must be an array of real numbers; got {described(value)}. {_ADVICE}"
        raise FuncconvError(msg)
    values = jnp.asarray(value)
    is_mean = values.ndim == 0 and jnp.issubdtype(values.dtype, jnp.floating)
    if count is None or not (is_mean or values.shape[:1] == (count,)):
        given = "a batch whose entries have no common first axis" if count is None else f"a batch of {count} examples"
        msg = (
            f"evaluate: {_name(path)} must be one value for each example, or a floating scalar, the mean over the "
            f"examples; got {described(value)} for {given}. {_ADVICE}"
        )
        raise FuncconvError(msg)
    dtype = wide(values.dtype) if jnp.issubdtype(values.dtype, jnp.floating) else jnp.float32
    values = values.astype(dtype)
    total = values.sum(0) if values.ndim else values * count
    # The mean of no examples is NaN, also as a part of a data set.
    return Weighted(total if count else jnp.zeros_like(total), jnp.asarray(count, jnp.int32))


def _name(path: Sequence[Any]) -> str:
    return f"the metric {path_of(path)!r}" if path else "the metric"


def _added(sums: Any, totals: Any) -> Any:
    """Return the sums with those of one more batch, in float64 or int64."""
    totals = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.int64 if np.issubdtype(leaf.dtype, np.integer) else np.float64),
        jax.device_get(totals),
    )
    return totals if sums is None else jax.tree.map(np.add, sums, totals)


def _result(total: Any) -> Any:
    """Return the mean of a `Weighted` and the value of a `Sum`, as a Python number if it is a scalar."""
    if isinstance(total, Weighted):
        weight = np.broadcast_to(total.weight, np.shape(total.sum))
        result = np.where(weight == 0, np.nan, total.sum / np.where(weight == 0, 1, weight))
    else:
        result = np.asarray(total.value)
    return result if result.ndim else result.item()
