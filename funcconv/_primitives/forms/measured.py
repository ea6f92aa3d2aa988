"""The fastest form for each measured problem."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._windows.geometry import Axis
from .problem import Problem


class Key(NamedTuple):
    """The identity of a problem in a tuning: one of the maps, with all its sizes and options."""

    map: str  # "conv", "conv_input_grad" or "conv_kernel_grad"; for a max or min pool "extreme"
    batch: int
    inputs: int  # channels of a group
    outputs: int  # channels of a group
    groups: int
    dtype: str
    axes: tuple[Axis, ...]
    precision: str | None = None
    accumulate_dtype: str | None = None
    library: str | None = None  # the library that the compiler options turn on

    @classmethod
    def of(cls, name: str, problem: Problem) -> "Key":
        """Return the key of a problem, for the map with this name."""
        form = problem.form
        return cls(
            map=name,
            batch=problem.batch,
            inputs=problem.inputs,
            outputs=problem.outputs,
            groups=form.groups,
            dtype=problem.dtype.name,
            axes=form.axes,
            precision=None if form.precision is None else str(form.precision),
            accumulate_dtype=None if form.accumulate_dtype is None else jnp.dtype(form.accumulate_dtype).name,
            library=form.library,
        )

    @property
    def text(self) -> str:
        """Return the problem as one line."""
        axes = self.axes
        inputs, outputs = self.inputs * self.groups, self.outputs * self.groups
        parts = [
            f"{self.batch}x{_by(axis.size for axis in axes)}x{inputs}",
            f"window {_by(axis.window for axis in axes)}",
        ]
        if self.map != "extreme":
            parts.append(f"to {outputs}")
        for name, default in (("stride", 1), ("dilation", 1), ("lo", 0)):
            values = [getattr(axis, name) for axis in axes]
            if any(value != default for value in values):
                parts.append(f"{'padding' if name == 'lo' else name} {_by(values)}")
        if self.groups > 1 and self.map != "extreme":
            parts.append(f"{self.groups} groups")
        return ", ".join([*parts, *([] if self.dtype == "float32" else [self.dtype])])

    def as_json(self) -> dict[str, Any]:
        """Return the key as a dict for JSON."""
        return self._asdict() | {"axes": [axis._asdict() for axis in self.axes]}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Key":
        """Return the key from JSON. Entries that are missing, unknown or of another type raise a Python error."""
        sizes = {name: whole(entry[name]) for name in ("batch", "inputs", "outputs", "groups")}
        axes = tuple(Axis(**{name: whole(size) for name, size in axis.items()}) for axis in entry["axes"])
        key = cls(**{**entry, **sizes, "axes": axes})
        options = [text for text in (key.precision, key.accumulate_dtype, key.library) if text is not None]
        if not all(isinstance(text, str) for text in (key.map, key.dtype, *options)):
            msg = f"the names in {str(dict(entry))[:200]} are not all strings"
            raise TypeError(msg)
        return key


def whole(value: Any) -> int:
    """Return an integer from a JSON file; other values raise an error."""
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{value!r} is not an integer"
        raise TypeError(msg)
    return value


class MeasuredForms:
    """The forms that a tuning chooses. It is a static parameter of convolutions, so it has a value and a hash.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`: the one on which the forms were measured.
        forms: the name of a form for each problem.
    """

    def __init__(self, platform: str, forms: Mapping[Key, str]) -> None:
        self.platform, self._forms = platform, dict(forms)
        self._value = (platform, frozenset(self._forms.items()))
        self._hash = hash(self._value)

    def form(self, key: Key) -> str | None:
        """Return the measured form for a problem, or None if it was not measured."""
        return self._forms.get(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MeasuredForms) and self._value == other._value

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{len(self._forms)} measured on {self.platform}"


# The forms for the functions that are traced now. `tuned` sets it. JAX traces a function again if it changes.
measured: Any = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]


def _by(numbers: Any) -> str:
    return "x".join(map(str, numbers))
