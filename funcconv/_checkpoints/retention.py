"""Which checkpoints are kept: the last ones and the best ones."""

import math
from collections.abc import Iterable, Mapping

from .._common.types import Number


def kept(steps: Iterable[int], newest: int, keep: int, scores: Mapping[int, float | None]) -> set[int]:
    """Return the steps to keep.

    Args:
        steps: of all checkpoints.
        newest: the step that was just written. Later ones are of a run that was continued from before them, because
            they are damaged, for example. They are kept until the run comes to their steps.
        keep: how many of the last and how many of the best are kept.
        scores: by step, the smallest is the best; None or NaN is never one of the best. Of equal scores, the earlier
            step is the better one.

    Returns:
        The steps to keep.
    """
    steps = sorted(steps)
    last = [step for step in steps if step <= newest][-keep:]
    later = [step for step in steps if step > newest]
    ranked = sorted((score, step) for step in steps if (score := scores.get(step)) is not None and score == score)
    return {*last, *later, *(step for _, step in ranked[:keep])}


def score(metrics: Mapping[str, Number], best: str) -> float | None:
    """Return how good a checkpoint is, the smallest the best, or None if its metrics do not say it.

    Args:
        metrics: of the checkpoint.
        best: the name of a metric of which the smallest value is the best, or `"-name"` for the largest.

    Returns:
        The score.
    """
    value = metrics.get(best.removeprefix("-"))
    if value is None or math.isnan(value):
        return None
    return -float(value) if best.startswith("-") else float(value)
