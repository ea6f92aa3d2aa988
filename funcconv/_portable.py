"""Pickling of functions by the name under which their module has them.

`pickle` does this for plain functions. The functions of `jax.nn` and `jax.numpy`, and those that `jax.jit` or
`jax.custom_jvp` returns, are objects that `pickle` cannot write, or reads as other objects.
"""

import importlib
import pickle
import sys
from collections.abc import Callable
from functools import partial, reduce
from types import FunctionType
from typing import Any

import jax.numpy as jnp


class _Reference:
    """A function that is pickled as the name of its module and its name there."""

    def __init__(self, function: Callable[..., Any], module: str, name: str) -> None:
        self._function, self._module, self._name = function, module, name

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)

    def __reduce__(self) -> Any:
        return _found, (self._module, self._name)


def portable(value: Any) -> Any:
    """Return what is pickled in the place of an option of a layer, and read as an equal one.

    Raises:
        pickle.PicklingError: for a function that no module has under its name, such as a lambda.
    """
    if isinstance(value, FunctionType | jnp.ufunc) or (callable(value) and hasattr(value, "__wrapped__")):
        place = _place(value)
        if place is None:
            msg = (
                f"{value!r} cannot be pickled: it is not found under its name in its module. Define the function at "
                "the top level of a module; for one with options use functools.partial"
            )
            raise pickle.PicklingError(msg)
        return _Reference(value, *place)
    if type(value) is partial:
        args = [portable(each) for each in value.args]
        return partial(portable(value.func), *args, **{name: portable(each) for name, each in value.keywords.items()})
    if type(value) is tuple:
        return tuple(portable(each) for each in value)
    return value


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
        names = (each for each in sorted(sys.modules) if each == package or each.startswith(f"{package}."))
        modules = [*(each for each in names if "._" not in each), module]
    for each in modules:
        try:
            if _found(each, name) is function:
                return each, name
        except (AttributeError, ImportError, ValueError):
            continue
    return None
