"""`Tuning`: the result of `tune`, which can be saved, loaded, printed, and applied while functions are traced."""

import functools
import importlib.metadata
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

from .._common.device import described_device
from .._common.errors import FuncconvError, suggest
from .._common.files import read_file, write_file
from .._common.strict_json import parsed
from .compiler import library_of
from .extreme import FORMS as POOL_FORMS
from .forms import CHOICES, Key, MeasuredForms, library, measured, whole

FORMAT = "funcconv tuning 1"
_FORMS = {name: {row.form for row in rows} for name, rows in CHOICES.items()} | {"extreme": set(POOL_FORMS)}
VARIABLE = "FUNCCONV_TUNING"  # of the environment: the path of a tuning for a whole process

Mismatch = Literal["raise", "warn"]


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that compile programs."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


class TunedProblem(NamedTuple):
    """One convolution or pool of a tuned function, or several equal ones."""

    key: Key  # the sizes and options
    times: int  # how often the function computes it; 0 if it is only a part of other problems
    form: str  # the form to use
    default: str  # the form that is used without a tuning
    milliseconds: dict[str, float]  # the median time of each form that was measured


@dataclass(frozen=True, repr=False)
class Tuning:
    """The result of `fc.tune`: the fastest form of each convolution and pool, and compiler options, on one device.

    Apply it with `fc.tuned` and pass `compiler_options` to `jax.jit`. `print` shows a table: each problem, the chosen
    form, its time and the time of XLA's own form. Tunings are equal if they choose the same.

    Attributes:
        problems: a tuple of `TunedProblem`, one for each convolution or pool that was measured. If the whole function
            is not faster with the measured forms, each contains its default form.
        compiler_options: compiler options for the outermost `jax.jit`. None: no options.
        before: milliseconds of the function without the tuning.
        after: milliseconds of the function with the tuning.
        unmeasured: the number of convolutions and pools that were not measured for lack of time. They keep their
            default forms.
        device: the properties of the device that JAX and the operating system report.
        versions: the versions of `jax` and `jaxlib`.

    Example:
        >>> import funcconv as fc
        >>> fc.Tuning().problems, fc.Tuning().compiler_options
        ((), None)
    """

    problems: tuple[TunedProblem, ...] = ()
    compiler_options: dict[str, str | bool] | None = None
    before: float = field(default=0.0, compare=False)
    after: float = field(default=0.0, compare=False)
    unmeasured: int = field(default=0, compare=False)
    device: Mapping[str, Any] = field(default_factory=described_device)
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    @functools.cached_property
    def forms(self) -> MeasuredForms:
        """The chosen forms, as a static parameter for convolutions and pools."""
        return MeasuredForms(self.device["platform"], {row.key: row.form for row in self.problems})

    def with_usual_forms(self) -> "Tuning":
        """Return the same measurement with the default form of each problem.

        Returns:
            A tuning that changes nothing but the compiler options.
        """
        return replace(self, problems=tuple(row._replace(form=row.default) for row in self.problems))

    def __hash__(self) -> int:
        return hash(self.forms)

    def __repr__(self) -> str:
        """Return one line; `print` shows the table."""
        times = f"{self.before:.3f} ms before, {self.after:.3f} ms after, " if self.before else ""
        return f"Tuning({len(self.problems)} problems, {times}on {self.device.get('platform')})"

    def __str__(self) -> str:
        """Return the table."""
        head = ("map", "problem", "times", "form", "ms", "default", "ms", "lax, ms")
        rows = [head]
        for row in sorted(self.problems, key=lambda row: -row.times * row.milliseconds[row.default]):
            ms = [row.milliseconds.get(form) for form in (row.form, row.default, "lax")]
            own, default, lax = ("" if value is None else f"{value:.3f}" for value in ms)
            rows.append((row.key.map, row.key.text, str(row.times), row.form, own, row.default, default, lax))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        options = (
            "none" if self.compiler_options is None else ", ".join(f"{k}={v}" for k, v in self.compiler_options.items())
        )
        lines += [f"compiler options: {options}"]
        lines += [f"the whole function: {self.before:.3f} ms without the tuning, {self.after:.3f} ms with it"]
        if self.unmeasured:
            lines += [f"not measured, for lack of time: {self.unmeasured} problems"]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tuning to a JSON file.

        Args:
            path: path of the file. If writing fails, an existing file does not change.

        Raises:
            FuncconvError: if the file cannot be written.
        """
        content = {
            "format": FORMAT,
            "versions": dict(self.versions),
            "device": dict(self.device),
            "compiler_options": self.compiler_options,
            "before": self.before,
            "after": self.after,
            "unmeasured": self.unmeasured,
            "problems": [row._asdict() | {"key": row.key.as_json()} for row in self.problems],
        }
        write_file("Tuning.save", path, (json.dumps(content, indent=1) + "\n").encode())

    @staticmethod
    def load(path: str | os.PathLike[str], mismatch: Mismatch = "raise") -> "Tuning":
        """Read a tuning from a JSON file.

        Args:
            path: path of a file that `save` has written.
            mismatch: what to do if the tuning is for another device or another version of JAX: `"raise"` an error, or
                `"warn"` and return a tuning that changes nothing. Default: `"raise"`.

        Returns:
            The tuning.

        Raises:
            FuncconvError: if the file cannot be read, is not a tuning, or is for another device or version.
        """
        if mismatch not in get_args(Mismatch):
            hint = suggest(mismatch, get_args(Mismatch))
            msg = f"Tuning.load: mismatch must be 'raise' or 'warn'; got {mismatch!r}{hint}"
            raise FuncconvError(msg)
        tuning = _from_json(path, read_file("Tuning.load", path))
        differences = _differences(tuning)
        if not differences:
            return tuning
        msg = f"Tuning.load: {os.fspath(path)} is for another machine: {'; '.join(differences)}"
        if mismatch == "raise":
            msg += ". Measure again with fc.tune, or pass mismatch='warn' to continue without a tuning"
            raise FuncconvError(msg)
        warnings.warn(f"{msg}. The tuning is not used", stacklevel=2)
        return Tuning()


@contextmanager
def tuned(tuning: Tuning | None) -> Iterator[None]:
    """Trace functions with the forms of a tuning, in a `with` block or by a decorator.

    The forms are chosen while JAX traces a function: `jax.jit(fc.tuned(tuning)(f),
    compiler_options=tuning.compiler_options)`, or a call of a compiled function in the `with` block, which is then
    traced again. A measured form applies on one device, to convolutions and pools with the same sizes, dtype and
    options as in the measurement; all others keep their default forms. Results can differ in their last digits from
    those without a tuning.

    To use a tuning in a program that you cannot change, set the environment variable `FUNCCONV_TUNING` to the path of
    its file. `fc.train.fit` then also uses its compiler options; set them in `XLA_FLAGS` for other functions.

    Args:
        tuning: the result of `fc.tune` or `fc.Tuning.load`. None: no tuning, not even the one that `FUNCCONV_TUNING`
            names.

    Yields:
        Nothing.

    Raises:
        FuncconvError: if `tuning` is neither a `Tuning` nor None.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 1, 4, (3, 3))
        >>> loss = lambda params, x: fc.conv(params, x).sum()
        >>> tuning = fc.tune(jax.grad(loss), params, jnp.ones((2, 8, 8, 1)), seconds=2, progress=False)
        >>> step = jax.jit(fc.tuned(tuning)(jax.grad(loss)), compiler_options=tuning.compiler_options)
        >>> step(params, jnp.ones((2, 8, 8, 1)))["bias"].shape
        (4,)
    """
    chosen = checked_tuning("tuned", tuning) or Tuning()
    with measured(chosen.forms), library(library_of(chosen.compiler_options)):
        yield


def current_tuning_forms() -> MeasuredForms | None:
    """Return the forms for what is traced now: those of `tuned`, or else those of `FUNCCONV_TUNING`."""
    forms: MeasuredForms | None = measured.value
    if forms is None and (tuning := tuning_of_environment()) is not None:
        return tuning.forms
    return forms


def checked_tuning(op: str, tuning: Any) -> Tuning | None:
    """Return the tuning that a user passed.

    Args:
        op: name of the called function, for messages.
        tuning: a `Tuning` or None.

    Returns:
        The same.

    Raises:
        FuncconvError: if it is something else.
    """
    if tuning is not None and not isinstance(tuning, Tuning):
        msg = (
            f"{op}: tuning must be a Tuning or None; got {type(tuning).__name__}. fc.tune and fc.Tuning.load return one"
        )
        raise FuncconvError(msg)
    return tuning


@functools.cache
def tuning_of_environment() -> Tuning | None:
    """Return the tuning that `FUNCCONV_TUNING` names, or None if it is not set."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        return Tuning.load(path)
    except FuncconvError as error:
        msg = f"{error} (the environment variable {VARIABLE} is the path of this file)"
        raise FuncconvError(msg) from error


def _differences(tuning: Tuning) -> list[str]:
    """Return how the machine of a tuning differs from this one, as texts."""
    here = {**described_device(), **installed_versions()}
    there = {**tuning.device, **tuning.versions}
    return [
        f"{name} is {here.get(name)!r} on this machine and {there.get(name)!r} in the file"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def _from_json(path: str | os.PathLike[str], content: bytes) -> Tuning:
    try:
        entries = parsed(content)
        if entries["format"] != FORMAT:
            msg = f"its format is {str(entries['format'])[:100]!r}, expected {FORMAT!r}"
            raise ValueError(msg)  # noqa: TRY301
        return Tuning(
            problems=tuple(map(_problem_from_json, entries["problems"])),
            compiler_options=_options_from_json(entries["compiler_options"]),
            before=float(entries["before"]),
            after=float(entries["after"]),
            unmeasured=int(entries["unmeasured"]),
            device=dict(entries["device"]),
            versions=dict(entries["versions"]),
        )
    except (FuncconvError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"the entry {error} is missing" if isinstance(error, KeyError) else error
        msg = f"Tuning.load: {os.fspath(path)} is not a tuning that Tuning.save wrote: {reason}. Measure with fc.tune"
        raise FuncconvError(msg) from error


def _problem_from_json(entry: Mapping[str, Any]) -> TunedProblem:
    key = Key.from_json(entry["key"])
    if entry["default"] not in entry["milliseconds"]:
        msg = f"the problem {key.text} has no time for its default form {entry['default']!r}"
        raise ValueError(msg)
    unknown = {entry["form"], *entry["milliseconds"]} - _FORMS[key.map]
    if unknown:
        msg = f"{key.map} has no form {', '.join(map(repr, sorted(unknown)))}"
        raise ValueError(msg)
    milliseconds = {name: float(value) for name, value in entry["milliseconds"].items()}
    return TunedProblem(key, whole(entry["times"]), entry["form"], entry["default"], milliseconds)


def _options_from_json(options: Any) -> dict[str, str | bool] | None:
    if options is not None and not all(isinstance(value, str | bool) for value in options.values()):
        msg = f"the values of compiler_options must be strings or booleans; got {str(options)[:200]}"
        raise ValueError(msg)
    return options and dict(options)
