"""What was restored, and what was not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_MOST_LINES = 20  # of each list in the text


@dataclass(frozen=True, repr=False)
class RestoreReport:
    """What `fc.train.restore(..., into=...)` has taken from a file, and what it has not. Print it to see all lists.

    Attributes:
        restored: the name in the file, by the name in `into`.
        missing: the names in `into` that the file does not have. Their values are those of `into`.
        mismatched: the shapes and dtypes that do not fit, by the name in `into`. Their values are those of `into`.
        unused: the names in the file that nothing in `into` was restored from.
        notes: sentences about what was chosen in the file, such as the entry of a training checkpoint.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> file, into = {"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.zeros(2), "c": jnp.zeros(4)}
        >>> params, report = fc.train.restore(file, into=into, missing="keep")
        >>> report
        RestoreReport: 1 of 2 arrays restored
          missing in the file, kept: c
          unused in the file: b
    """

    restored: Mapping[str, str]
    missing: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        count = len(self.restored) + len(self.missing) + len(self.mismatched)
        lines = [f"RestoreReport: {len(self.restored)} of {count} arrays restored"]
        renamed = [f"{name} from {source}" for name, source in self.restored.items() if name != source]
        different = [f"{name}: {text}" for name, text in self.mismatched.items()]
        for title, entries in (
            ("renamed", renamed),
            ("missing in the file, kept", self.missing),
            ("with another shape or dtype, kept", different),
            ("unused in the file", self.unused),
        ):
            if entries:
                lines.append(f"  {title}:{listed(entries)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def listed(entries: Iterable[str]) -> str:
    """Return entries as a text after a colon: on its line if there are few, one per line otherwise; it may be cut."""
    entries = list(entries)
    shown = entries[:_MOST_LINES] + ([f"and {len(entries) - _MOST_LINES} more"] if len(entries) > _MOST_LINES else [])
    return " " + ", ".join(shown) if len(shown) < 4 else "\n    " + "\n    ".join(shown)
