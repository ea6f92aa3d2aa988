"""Choose the checkpoints to keep: the last ones and the best ones."""

from collections.abc import Iterable, Mapping


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
