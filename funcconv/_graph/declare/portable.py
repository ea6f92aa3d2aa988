"""Pickling of functions by the name under which their module has them.

`pickle` does this for plain functions. The functions of `jax.nn` and `jax.numpy`, and those that `jax.jit` or
`jax.custom_jvp` returns, are objects that `pickle` cannot write, or reads as other objects.
"""

import importlib
import inspect
import operator
import pickle
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial, reduce
from types import FunctionType, MethodType
from typing import Any

import jax.numpy as jnp

from ..._common.errors import FuncconvError

# Of the module `operator`: they compare by identity, and `by_value` compares them by what they get.
GETTERS = (operator.attrgetter, operator.itemgetter, operator.methodcaller)


class _Reference:
    """A function that is pickled as a call which finds it."""

    def __init__(self, function: Callable[..., Any], find: Callable[..., Any], *args: Any) -> None:
        self._function, self._found_by = function, (find, args)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)

    def __reduce__(self) -> Any:
        return self._found_by


def portable(value: Any) -> Any:
    """Return what is pickled in the place of an option of a layer, and read as an equal one.

    Raises:
        pickle.PicklingError: for a function that no module has under its name, such as a lambda, and for an object that
            is equal to no copy of itself.
    """
    if isinstance(value, MethodType):
        return _Reference(value, getattr, portable(value.__self__), value.__name__)
    if isinstance(value, FunctionType | jnp.ufunc) or (callable(value) and hasattr(value, "__wrapped__")):
        place = _place(value)
        if place is None:
            msg = (
                f"{value!r} cannot be pickled: it is not found under its name in its module. Define the function at "
                "the top level of a module; for one with options use functools.partial"
            )
            raise pickle.PicklingError(msg)
        return _Reference(value, _restored, *place)
    # A subclass of partial or tuple may have more attributes, so only these classes are rebuilt.
    if type(value) is partial:
        args = [portable(item) for item in value.args]
        return partial(portable(value.func), *args, **{name: portable(item) for name, item in value.keywords.items()})
    if type(value) is tuple:
        return tuple(portable(item) for item in value)
    if _by_identity(value) and _place(value) is None:
        msg = (
            f"{value!r} cannot be pickled: no copy is equal to it, as {type(value).__name__} compares by identity. "
            "Make it a frozen dataclass, or give it __eq__ and __hash__; for a function with options use "
            "functools.partial"
        )
        raise pickle.PicklingError(msg)
    return value


def _by_identity(value: Any) -> bool:
    """Whether a value is equal to itself alone."""
    if value is None or inspect.isclass(value) or inspect.ismodule(value) or isinstance(value, (*GETTERS, Enum)):
        return False
    return "__eq__" not in {name for kind in type(value).__mro__[:-1] for name in vars(kind)}


def _restored(module: str, name: str) -> Any:
    """Return what a pickle names."""
    try:
        return _found(module, name)
    except (AttributeError, ImportError) as error:
        msg = (
            f"the pickle needs the function {name!r} of the module {module!r}, which is not found: {error}. Define it "
            "there, or read the pickle with the version that wrote it"
        )
        raise FuncconvError(msg) from error


def _found(module: str, name: str) -> Any:
    return reduce(getattr, name.split("."), importlib.import_module(module))


def _place(function: Any) -> tuple[str, str] | None:
    """Return the public module that has a function, and its name there."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    module = getattr(function, "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str):
        return None
    modules = [module]
    if "._" in module:  # a private module may be another in the next version of its package
        package = module.split(".")[0]
        names = (
            candidate
            for candidate in sorted(sys.modules)
            if candidate == package or candidate.startswith(f"{package}.")
        )
        modules = [*(candidate for candidate in names if "._" not in candidate), module]
    for candidate in modules:
        try:
            if _found(candidate, name) is function:
                return candidate, name
        except (AttributeError, ImportError, ValueError):
            continue
    return None
