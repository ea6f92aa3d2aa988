"""Max, min, sum and average pooling by name."""

import re
from functools import partial
from typing import Any

from .pool import pool


def _named(name: str, reduce: str, result: list[float]) -> partial[Any]:
    op = partial(pool, reduce=reduce)
    op.__name__ = name  # type: ignore[attr-defined]
    # The arguments are those of `pool` without `reduce`; `python -OO` removes docstrings.
    arguments = re.sub(r"        reduce: .*?(?=        stride: )", "", pool.__doc__ or "", flags=re.DOTALL)
    arguments = arguments[arguments.find("    Args:") : arguments.find("    Source:")].rstrip()
    op.__doc__ = f"""Reduce each window of each channel to its {reduce}: `pool` with `reduce="{reduce}"`.

{arguments}

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.{name}(jnp.array([1.0, 4.0, -2.0, 0.0]).reshape(1, 4, 1), 2, stride=1).ravel().tolist()
        {result}
    """
    return op


max_pool = _named("max_pool", "max", [4.0, 4.0, 0.0])
min_pool = _named("min_pool", "min", [1.0, -2.0, -2.0])
sum_pool = _named("sum_pool", "sum", [5.0, 2.0, -2.0])
avg_pool = _named("avg_pool", "mean", [2.5, 1.0, -1.0])
