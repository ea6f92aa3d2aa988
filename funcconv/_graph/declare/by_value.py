"""What functions are compared by, so that layers and graphs are equal when they compute the same in the same way."""

from collections.abc import Hashable
from functools import partial
from types import MethodType
from typing import Any

from ..._common.errors import FuncconvError
from .portable import GETTERS


def check_hash(layer: object, rule: str) -> None:
    """Refuse a layer that cannot be compared by value."""
    try:
        hash(layer)
    except TypeError:
        msg = f"{layer!r}: {rule}"
        raise FuncconvError(msg) from None


def by_value(op: Any) -> Hashable:
    """Return what an op is compared by.

    Partial applications of equal functions to equal arguments are equal, as are methods of equal objects.
    """
    if isinstance(op, MethodType):
        return (op.__func__, by_value(op.__self__))
    if isinstance(op, GETTERS):
        return tuple(map(by_value, op.__reduce__()))  # its class, and the arguments
    if not isinstance(op, partial):
        return op  # type: ignore[no-any-return]
    args, keywords = op.args, op.keywords
    while isinstance(op.func, partial):  # one that has attributes of its own, such as documentation
        op = op.func
        args, keywords = (*op.args, *args), op.keywords | keywords
    # 1, 1.0 and True are equal and hash alike, but they lead to other dtypes, so types are compared too.
    options = (*args, *(option for item in sorted(keywords.items()) for option in item))
    return (by_value(op.func), len(args), tuple((type(option), by_value(option)) for option in options))
