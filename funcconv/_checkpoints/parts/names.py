"""Patterns that pair the names in a file with those in a tree."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..._common.errors import FuncconvError, suggest

_MOST_LETTERS = 400  # of a list of names in a message


class Pairing(NamedTuple):
    """Which array of a file belongs to which entry of a tree. Names are in the form of `same_form`."""

    sources: dict[str, str]  # the name in the file, by the name in the tree
    unused: tuple[str, ...]  # the names in the file without an entry


def same_form(name: str) -> str:
    """Return a name with `/` between its parts: PyTorch writes `conv1.weight`, and nested dicts have `conv1/weight`."""
    return name.replace(".", "/")


def paired(names: Iterable[str], entries: Iterable[str], match: Mapping[str, str] | None) -> Pairing:
    """Pair the names in a file with the entries of a tree.

    Args:
        names: the names in the file.
        entries: the names in the tree.
        match: patterns of names in the file, and of the entries that they belong to. The first pattern that matches
            counts. None pairs equal names.

    Returns:
        The pairs, and the names that are not used.

    Raises:
        FuncconvError: if two names belong to one entry, a name can be read in two ways, or a pattern has no effect.
    """
    names, entries = list(names), dict.fromkeys(entries)
    targets = {name: name for name in names} if match is None else _targets(names, entries, match)
    sources: dict[str, str] = {}
    for name in names:
        target = targets.get(name)
        if target not in entries:
            continue
        if target in sources:
            msg = (
                f"{sources[target]!r} and {name!r} of the file both belong to {target!r}. Change match so that only "
                "one of them does"
            )
            raise FuncconvError(msg)
        sources[target] = name
    return Pairing(sources, tuple(name for name in names if targets.get(name) not in sources))


def _targets(names: list[str], entries: Mapping[str, None], match: Mapping[str, str]) -> dict[str, str]:
    """Return the entry of each name that a pattern matches."""
    if not match or not isinstance(match, Mapping):
        msg = (
            f"match must be a dict from names in the file to names in the tree, such as "
            f'{{"encoder/*": "trunk/*"}}; got {match!r}'
        )
        raise FuncconvError(msg)
    targets: dict[str, str] = {}
    for pattern, target in match.items():
        _check_pattern(pattern, target)
        matched = [name for name in names if _readings(name, same_form(pattern))]
        if not matched:
            msg = f"match: {pattern!r} matches no name in the file{_hint(same_form(pattern), names)}"
            raise FuncconvError(msg)
        own = {name: _target(name, pattern, target) for name in matched if name not in targets}
        if not own:
            msg = (
                f"match: the first pattern that matches counts, so {pattern!r} has no effect: earlier patterns match "
                f"{matched[0]!r} and all others that it matches. Put it before them"
            )
            raise FuncconvError(msg)
        if not any(entry in entries for entry in own.values()):
            name, entry = next(iter(own.items()))
            msg = (
                f"match: {pattern!r}: {target!r} gives no name that the tree has; for example, {name!r} of the file "
                f"becomes {entry!r}{_hint(entry, entries)}"
            )
            raise FuncconvError(msg)
        targets |= own
    return targets


def _check_pattern(pattern: object, target: object) -> None:
    if not (isinstance(pattern, str) and isinstance(target, str) and pattern and target):
        msg = f"match must have names or patterns on both sides; got {pattern!r}: {target!r}"
        raise FuncconvError(msg)
    if pattern.count("*") != target.count("*"):
        msg = (
            f"match: {pattern!r} and {target!r} must have as many `*`, because each stands for the same text on both "
            f"sides; they have {pattern.count('*')} and {target.count('*')}"
        )
        raise FuncconvError(msg)


def _readings(name: str, pattern: str) -> list[tuple[str, ...]]:
    """Return the texts that the `*` of a pattern stand for, with long first texts and with short ones; or nothing.

    If both are equal, there is no other way to read the name. A pattern without `*` is the name of an array, or of a
    dict of arrays; its one text is the rest of the name.
    """
    if "*" not in pattern:
        return [(name[len(pattern) :],)] if name == pattern or name.startswith(f"{pattern}/") else []
    parts = [re.escape(part) for part in pattern.split("*")]
    readings = [re.fullmatch(text.join(parts), name, re.DOTALL) for text in ("(.*)", "(.*?)")]
    return [reading.groups() for reading in readings if reading]


def _target(name: str, pattern: str, target: str) -> str:
    """Return the entry that a pattern gives to a name that it matches."""
    first, *others = same_form(target).split("*")
    others = others or [""]
    results = [
        first + "".join(text + part for text, part in zip(texts, others, strict=True))
        for texts in _readings(name, same_form(pattern))
    ]
    if len(set(results)) > 1:
        msg = (
            f"match: {pattern!r} matches {name!r} of the file in several ways, which give {results[0]!r} and "
            f"{results[1]!r}. Use a pattern with fewer `*`"
        )
        raise FuncconvError(msg)
    return results[0]


def _hint(name: str, names: Iterable[str]) -> str:
    """Return the most similar name, or the first names."""
    hint = suggest(name, names)
    return hint if len(hint) <= _MOST_LETTERS else f"{hint[:_MOST_LETTERS]}..."
