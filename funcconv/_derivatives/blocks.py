"""Parts of a tree of nested dicts, by name: where their leaves are among those of the whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError, suggest
from .trees import Tree


@dataclass(frozen=True)
class Part:
    """A subtree: the places of its leaves, and its structure."""

    places: tuple[int, ...]
    structure: Any

    def taken(self, tree: Tree) -> Tree:
        """Return the part of a tree."""
        leaves = jax.tree.leaves(tree)
        return jax.tree.unflatten(self.structure, [leaves[place] for place in self.places])

    def put(self, part: Tree, tree: Tree) -> Tree:
        """Return the tree with this part replaced."""
        leaves, structure = jax.tree.flatten(tree)
        new = dict(zip(self.places, jax.tree.leaves(part), strict=True))
        return jax.tree.unflatten(structure, [new.get(place, leaf) for place, leaf in enumerate(leaves)])

    def among_zeros(self, part: Tree, form: Tree) -> Tree:
        """Return a tree of the given form that has this part, and zeros elsewhere."""
        return self.put(part, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form))


def whole(tree: Tree) -> Part:
    """Return the part that is the tree itself."""
    return Part(tuple(range(len(jax.tree.leaves(tree)))), jax.tree.structure(tree))


def part(where: str, tree: Tree, name: str) -> Part:
    """Return the part that a name such as `"conv1"` or `"trunk/conv1/kernel"` says."""
    leaves, structure = jax.tree.flatten(tree)
    subtree: Any = jax.tree.unflatten(structure, range(len(leaves)))
    # Numbers stand for the leaves, so that the structure tells which leaves belong to a subtree.
    known = list(names(subtree))
    if name not in known:
        msg = f"{where}: params have no entry {name!r}"
        raise FuncconvError(msg + (suggest(name, known) or "; they are not a nested dict"))
    for word in name.split("/"):
        subtree = next(value for key, value in subtree.items() if str(key) == word)
    places, structure = jax.tree.flatten(subtree)
    return Part(tuple(places), structure)


def names(tree: Tree, before: str = "") -> Iterator[str]:
    """Return the paths of all entries of nested dicts that have leaves."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if jax.tree.leaves(value):
            yield f"{before}{key}"
            yield from names(value, f"{before}{key}/")
