"""Choose the checkpoints to keep: the last ones and the best ones."""

import math
from collections.abc import Iterable, Mapping

from .._common.types import Number


def steps_to_keep(steps: Iterable[int], newest: int, keep: int, scores: Mapping[int, float | None]) -> set[int]:
    """Return the steps to keep.

    Args:
        steps: the steps of all checkpoints.
        newest: the step that was just written. If there are later ones, the run was resumed before them, for example
            because they are damaged. They are kept until the run reaches their steps.
        keep: how many of the last and how many of the best are kept.
        scores: a score for each step. The smallest is the best; None or NaN is never one of the best. Of two equal
            scores, the earlier step is better.

    Returns:
        The steps to keep.
    """
    steps = sorted(steps)
    last = [step for step in steps if step <= newest][-keep:]
    later = [step for step in steps if step > newest]
    # A score that is NaN does not equal itself.
    ranked = sorted((score, step) for step in steps if (score := scores.get(step)) is not None and score == score)
    return {*last, *later, *(step for _, step in ranked[:keep])}


def score(metrics: Mapping[str, Number], best: str) -> float | None:
    """Return the score of a checkpoint, of which the smallest is the best; None if it does not have the metric.

    Args:
        metrics: the metrics of the checkpoint.
        best: the name of a metric of which the smallest value is the best, or `"-name"` for the largest.

    Returns:
        The score.
    """
    value = metrics.get(best.removeprefix("-"))
    if value is None or math.isnan(value):
        return None
    return -float(value) if best.startswith("-") else float(value)
