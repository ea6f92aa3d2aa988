"""A text that lists names without a counterpart, each with the most similar names of the other side."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from typing import TypeAlias

Words: TypeAlias = frozenset[tuple[str, int]]
_MOST_COMPARED = 5  # names with the most words in common, which are compared letter by letter
_MOST_SHOWN = 2
_LEAST_SIMILARITY = 0.5


def closest_names(
    left: Iterable[str], right: Iterable[str], *, left_side: str = "the graph", right_side: str = "the other side"
) -> str:
    """Return a text that lists all names that only one side has, each with the closest names of the other side.

    `/` and `.` are treated as equal, so that `"layer1/conv1"` and `"layer1.conv1"` are one name.

    Args:
        left: the names of one side.
        right: the names of the other side.
        left_side: what the left names belong to, for the text. Default: `"the graph"`.
        right_side: what the right names belong to, for the text. Default: `"the other side"`.

    Returns:
        Two headings, each with one name per line. A heading without names is left out, so the text is empty if both
        sides have the same names.
    """
    sides = [list(dict.fromkeys(left)), list(dict.fromkeys(right))]
    known = [{_dotted(name) for name in names} for names in sides]
    missing = [
        [name for name in names if _dotted(name) not in others]
        for names, others in zip(sides, reversed(known), strict=True)
    ]
    lines = []
    for title, names, others in ((left_side, missing[0], missing[1]), (right_side, missing[1], missing[0])):
        words = {other: _words(other) for other in others}
        if names:
            lines.append(f"only {title} has {len(names)} of the names:")
        for name in names:
            closest = _closest(name, words)
            lines.append(f"  {name} (closest: {', '.join(closest)})" if closest else f"  {name}")
    return "\n".join(lines)


def _closest(name: str, others: Mapping[str, Words]) -> Sequence[str]:
    """Return the most similar of some names.

    Only names that share the most words are compared letter by letter: for hundreds of names, all pairs would take
    minutes.
    """
    words = _words(name)
    by_dotted = {_dotted(other): other for other in nlargest(_MOST_COMPARED, others, lambda o: len(words & others[o]))}
    matches = difflib.get_close_matches(_dotted(name), by_dotted, n=_MOST_SHOWN, cutoff=_LEAST_SIMILARITY)
    return [by_dotted[match] for match in matches]


def _words(name: str) -> Words:
    """Return the words and numbers in a name, each with the number of its occurrence."""
    shared_words: Counter[str] = Counter()
    words = set()
    for word in re.findall(r"[a-z]+|[0-9]+", name.lower()):
        shared_words[word] += 1
        words.add((word, shared_words[word]))
    return frozenset(words)


def _dotted(name: str) -> str:
    return name.replace("/", ".")
