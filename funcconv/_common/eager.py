"""Calls outside of `jax.jit` as one program."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax

from .errors import FuncconvError

Op = TypeVar("Op", bound=Callable[..., Any])


class _Options(NamedTuple):
    """All arguments of a call but the first."""

    args: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    text: str  # differs for 1, 1.0 and True, which are equal


def one_program(op: Op) -> Op:
    """Compile calls of an op with an array, so that they start one program instead of one for each operation.

    Calls with an array that JAX traces are not changed. Inside of `jax.jit`, a call with a constant array becomes an
    inner program.

    Args:
        op: a function whose first argument is an array. The others are options.

    Returns:
        A function with the same arguments. A call is compiled if the array is on one device and the options are
        numbers, texts or tuples of them.
    """

    @functools.partial(jax.jit, static_argnames="options")
    def compiled(x: Any, options: _Options) -> Any:
        return op(x, *options.args, **dict(options.named))

    @functools.wraps(op)
    def call(x: Any, *args: Any, **named: Any) -> Any:
        if _is_on_one_device(x) and _are_values((*args, *named.values())):
            # Outside of this block the op raises its errors again, without the frames of JAX.
            with contextlib.suppress(FuncconvError):
                return compiled(x, _Options(args, tuple(named.items()), repr((args, named))))
        return op(x, *args, **named)

    return cast("Op", call)


def _is_on_one_device(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) == 1


def _are_values(options: tuple[Any, ...]) -> bool:
    """Return whether options are compared by value, as the keys of compiled programs are."""
    return all(
        _are_values(option) if type(option) is tuple else option is None or type(option) in (bool, int, float, str)
        for option in options
    )
