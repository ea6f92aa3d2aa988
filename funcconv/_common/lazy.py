"""Modules that are imported at their first use."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType


def lazy_modules(package: str, names: tuple[str, ...]) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package whose modules `names` are imported when used."""

    def __getattr__(name: str) -> ModuleType:
        if name in names:
            return import_module(f".{name}", package)  # which also makes it an attribute of the package
        msg = f"module {package!r} has no attribute {name!r}"
        raise AttributeError(msg)

    def __dir__() -> list[str]:
        return sorted({*vars(import_module(package)), *names})

    return __getattr__, __dir__
