"""Curves of the metrics of a run."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .._common.errors import FuncconvError, suggest
from .._common.types import Number
from ._axes import axes_for

_MAX_VALUES = 200  # curves with more values get a running mean


@runtime_checkable
class Reports(Protocol):
    """The part of `train.History` that is used here, because public namespaces do not import each other."""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics."""

    def __getitem__(self, name: str) -> list[Number]: ...

    def steps(self, name: str) -> list[int]:
        """The steps at which a metric was reported."""


def history(history: Reports, *names: str, log: bool = True, ax: Any = None) -> Any:
    """Draw metrics of a run over the steps.

    If a metric has more than 200 values, its running mean is drawn, with the values in a pale colour behind it.

    Args:
        history: the history that `train.fit` returned.
        *names: the metrics to draw. Default: the loss and the metrics of evaluations.
        log: whether the vertical axis is logarithmic; it stays linear if a value is not positive. Default: True.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure. Values that are not finite leave a gap.

    Raises:
        FuncconvError: if there is no such metric, or matplotlib is not installed.

    Example:
        >>> import funcconv as fc
        >>> run = fc.train.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.2}, {"step": 2, "eval/error": 0.3}])
        >>> [line.get_label() for line in fc.plot.history(run).axes[0].lines]
        ['loss', 'eval/error']
    """
    chosen: Sequence[str] = names or [name for name in history.names if name == "loss" or name.startswith("eval/")]
    for name in chosen:
        if name not in history.names:
            msg = f"plot.history: the run reported no metric {name!r}{suggest(name, history.names)}"
            raise FuncconvError(msg)
    ax = axes_for("plot.history", ax, (7.0, 4.0))
    smallest = np.inf
    for i, name in enumerate(chosen):
        steps, values = np.asarray(history.steps(name)), np.asarray(history[name], float)
        # NaN leaves a gap, but an infinite value would leave no range for the axis.
        values = np.where(np.isfinite(values), values, np.nan)
        smallest = min(smallest, np.nanmin(values, initial=np.inf))
        marker = "o" if name.startswith("eval/") else None
        if len(values) > _MAX_VALUES:
            ax.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
            window = len(values) // 50
            means = np.convolve(values, np.ones(window) / window, "valid")
            steps, values = steps[window - 1 :], means  # the mean at a step is over the values up to it
        ax.plot(steps, values, color=f"C{i}", marker=marker, markersize=4, label=name)
    if log and 0 < smallest < np.inf:
        ax.set_yscale("log")
    ax.set(xlabel="step")
    if chosen:
        ax.legend()
    return ax.figure
