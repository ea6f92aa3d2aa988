"""Names for functions, under which they are written to files and found again."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..._common.errors import FuncconvError, suggest
from .known_ops import KNOWN_OPS, POLICIES

_BY_NAME: dict[str, Callable[..., Any]] = KNOWN_OPS | POLICIES
_NAMES: dict[Any, str] = {op: name for name, op in reversed(_BY_NAME.items())}  # of two names, the first
_MODULES: dict[str, str] = {}  # by the beginning of a name: the module that registers such names when it is imported


def register_op(name: str, op: Callable[..., Any]) -> None:
    """Register a function under a name, which `Graph.to_json` writes and `Graph.from_json` looks up.

    Args:
        name: the name, such as `"mylab.squash"`. A program that reads the file must register the same name first.
        op: a function of arrays, an initializer or a reduction.

    Returns:
        None.

    Raises:
        FuncconvError: if the name belongs to another function, is not a string, or `op` is not a function.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def squash(x):
        ...     return x / (1 + jnp.abs(x))
        >>> fc.register_op("mylab.squash", squash)
        >>> x = fc.Input("x", (3,))
        >>> graph = fc.Graph(x, fc.node(squash, x))
        >>> fc.Graph.from_json(graph.to_json()) == graph
        True
    """
    if not isinstance(name, str) or not callable(op):
        msg = f"register_op: expected a name and a function; got {name!r} and {op!r}. Write register_op(name, op)"
        raise FuncconvError(msg)
    if _BY_NAME.setdefault(name, op) is not op:
        msg = (
            f"register_op: {name!r} is the name of {_BY_NAME[name]!r}, and cannot be that of {op!r}. Choose another "
            "name, such as one that begins with the name of your package"
        )
        raise FuncconvError(msg)
    _NAMES.setdefault(op, name)


def name_of(op: Any) -> str | None:
    """Return the first name of a function, None where it has none."""
    try:
        return _NAMES.get(op)
    except TypeError:  # not hashable
        return None


def registered_by(beginning: str, module: str) -> None:
    """Import a module when a file needs a name with this beginning, which the module registers."""
    _MODULES[beginning] = module


def named(name: object) -> Callable[..., Any]:
    """Return a function by its name."""
    for beginning, module in _MODULES.items():
        if isinstance(name, str) and name.startswith(beginning):
            import_module(module)
    if not isinstance(name, str) or name not in _BY_NAME:
        msg = f"no function is registered as {name!r}{suggest(name, _BY_NAME)[:300]}; register_op gives it that name"
        raise FuncconvError(msg)
    return _BY_NAME[name]
