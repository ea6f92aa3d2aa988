"""Patterns of names such as `"trunk/*"`, which choose parts of trees and graphs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax


def path_of(path: Sequence[Any]) -> str:
    """Return a path in a tree as text, `"trunk/conv1/kernel"`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def meets(path: str, pattern: str) -> bool:
    """Whether a pattern matches a path, or a subtree that contains it."""
    names = path.split("/")
    return any(fnmatchcase("/".join(names[:i]), pattern) for i in range(1, len(names) + 1))
