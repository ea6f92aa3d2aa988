"""The error that funcconv raises, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


class FuncconvError(ValueError):
    """Invalid input to an op, a layer or a graph.

    The message says what was expected, what was given (with the numbers) and what to do. Inside a graph it also names
    the node.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> try:
        ...     fc.pool(jnp.ones((1, 5, 5, 1)), (7, 7))
        ... except fc.FuncconvError as error:
        ...     print(error)
        pool: a window of 7 does not fit on spatial axis 0, which has 5 + 0 + 0 = 5 positions (size + padding); pad more
    """


def suggest(name: object, names: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the most similar of `names`, or a list of all names if none is similar."""
    names = list(names)
    # Similarity is case-sensitive, so "SAME" for "same" needs the second search.
    matches = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    matches = matches or [known for known in names if known.lower() == str(name).lower()]
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known are {', '.join(map(repr, names))}" if names else ""
