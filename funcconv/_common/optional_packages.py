"""Packages that are not installed with funcconv, and what to say where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FuncconvError


@contextmanager
def needs(extra: str, where: str) -> Iterator[None]:
    """Retell a failed import: what it was for, and what to install."""
    try:
        yield
    except ImportError as error:
        msg = f"{where} needs a package that is not here ({error}); pip install 'funcconv[{extra}]'"
        raise FuncconvError(msg) from error
