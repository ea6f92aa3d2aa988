"""Counts of labels and predictions."""

import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import ArrayLike
from .totals import Sum


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int) -> Sum:
    """Return how often each class was predicted for each label, as a metric that is summed over batches.

    From the summed counts `n` you can compute other metrics: the accuracy `n.trace() / n.sum()`, the recall of each
    class `n.diagonal() / n.sum(1)`, the precision `n.diagonal() / n.sum(0)`. The mean of their values in batches would
    be another number.

    Args:
        labels: the right classes, integers of any shape, such as `(examples,)` or `(examples, height, width)`.
        predictions: the predicted classes, integers of the same shape, such as `logits.argmax(-1)`.
        classes: the number of classes. Pairs in which the label or the prediction is not from 0 to `classes - 1` are
            not counted, so `-1` or 255 can mark a position without a label.

    Returns:
        `Sum(counts)` with counts of shape `(classes, classes)` and dtype int32: `counts[i, j]` is the number of
        positions with the label `i` and the prediction `j`.

    Raises:
        FuncconvError: if the arrays are not of one shape or not of integers, or `classes` is not a positive integer.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> labels, predictions = jnp.array([0, 0, 1, 2, -1]), jnp.array([0, 1, 1, 2, 0])
        >>> fc.train.confusion(labels, predictions, 3).value.tolist()
        [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    is_integer = all(jnp.issubdtype(array.dtype, jnp.integer) for array in (labels, predictions))
    if not is_integer or labels.shape != predictions.shape:
        msg = (
            "confusion: labels and predictions must be integers of one shape; got "
            f"{labels.dtype} of shape {labels.shape} and {predictions.dtype} of shape {predictions.shape}. "
            "Take the argmax of logits over the classes"
        )
        raise FuncconvError(msg)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        msg = f"confusion: classes must be an integer of at least 1; got {classes!r}. Pass the number of classes"
        raise FuncconvError(msg)
    # JAX counts negative indices from the end, so pairs that do not count get an index behind it, which is dropped.
    counted = (labels >= 0) & (labels < classes) & (predictions >= 0) & (predictions < classes)
    rows, columns = (jnp.where(counted, array, classes).astype(jnp.int32) for array in (labels, predictions))
    return Sum(jnp.zeros((classes, classes), jnp.int32).at[rows, columns].add(1, mode="drop"))
