"""The one error that funcconv raises, and how it suggests a name."""

import difflib
from collections.abc import Iterable


class FuncconvError(ValueError):
    """Bad input to an op, a layer or a graph.

    The text says what was expected, what came, the numbers behind it and, inside a graph, the node's name.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> try:
        ...     fc.pool(jnp.ones((1, 5, 5, 1)), (7, 7))
        ... except fc.FuncconvError as error:
        ...     print(error)
        pool: a window of 7 does not fit on spatial axis 0, which has 5 + 0 + 0 = 5 positions (size + padding)
    """


def suggest(name: object, names: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of `names`, or the list of them where none is near."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5) or [
        n for n in names if n.lower() == str(name).lower()
    ]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(map(repr, names))}" if names else ""
