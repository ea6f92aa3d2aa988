"""Optional packages, and the error if one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FuncconvError


@contextmanager
def needs(extra: str, where: str) -> Iterator[None]:
    """Turn a failed import in the `with` block into an error that says what to install."""
    try:
        yield
    except ImportError as error:
        msg = f"{where} needs a package that is not installed ({error}). In the checkout: pip install '.[{extra}]'"
        raise FuncconvError(msg) from error
