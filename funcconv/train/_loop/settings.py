"""The settings of a run, which each checkpoint records, and which are compared when a run is resumed."""

import hashlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from .._data.batches import Batches
from .constants import constants_of, program_text, short

OnChange: TypeAlias = Literal["warn", "raise", "ignore"]
_OPTIMIZER = "optimizer: "  # before the names of the constants of an optimizer
_UNKNOWN = "not known"


def settings_of(step: Any, state: Any, batches: Any, **options: Any) -> dict[str, str]:
    """Return a text for each setting that the result of a run depends on, by its name.

    Args:
        step: the step of `make_step`, whose options and optimizer are known. Other functions have no settings.
        state: the first state, for its key.
        batches: the result of `train.batches`. Other iterators have no settings.
        **options: options of `fit`.
    """
    settings = dict(options)
    for name, value in getattr(step, "options", {}).items():
        if name == "optimizer":
            settings |= {_OPTIMIZER + name: constant for name, constant in constants_of(value).items()}
        else:
            settings[name] = value
    if isinstance(batches, Batches):
        settings |= {f"batches: {name}": value for name, value in batches.options().items()}
    key = getattr(state, "key", None)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        settings["key of the state"] = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return {name: value if isinstance(value, str) else short(value) for name, value in settings.items()}


def program_of(compiled: Any, state: Any, batch: Any) -> dict[str, str]:
    """Return a digest of the traced program of a step, and the shapes and dtypes of its batch."""
    shapes = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else "", batch)
    digest = hashlib.sha256(program_text(compiled.trace(state, batch).jaxpr).encode()).hexdigest()
    return {"digest": digest, "batch": str(shapes)}


def record_of(settings: Mapping[str, str], program: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the record of the settings in a checkpoint, which JSON can hold."""
    return {"settings": dict(settings), "program": program, "versions": _versions()}


class Changes:
    """Compares the settings of a resumed run with those that its checkpoint recorded.

    Args:
        record: the record in the checkpoint, from `record_of`. None or empty if there is none.
        on_change: `"warn"`, `"raise"` or `"ignore"`.
        folder: the folder of checkpoints, for the message.
    """

    def __init__(self, record: Any, on_change: OnChange, folder: object) -> None:
        self._record: dict[str, Any] = record if isinstance(record, dict) else {}
        self._on_change, self._folder = on_change, folder
        self._same_versions = self._record.get("versions") == _versions()
        self._said = False

    def check(self, settings: Mapping[str, str]) -> None:
        """Warn about changed settings, or raise.

        Another version of optax may use other names for the constants of an optimizer. So if versions differ, names
        that only one side has are ignored.

        Raises:
            FuncconvError: if `on_change` is `"raise"` and there is a difference.
        """
        old_settings = self._record.get("settings")
        if not isinstance(old_settings, dict):
            return
        lines = []
        for name in dict.fromkeys([*settings, *old_settings]):
            old, new = old_settings.get(name, _UNKNOWN), settings.get(name, _UNKNOWN)
            if old != new and (self._same_versions or _UNKNOWN not in (old, new)):
                lines.append(f"{name}: {old} then, {new} now")
        self._say(lines)

    def check_program(self, program: Mapping[str, str]) -> None:
        """Warn if the step is another program, or raise. Nothing is said if a changed setting explains it.

        Raises:
            FuncconvError: if `on_change` is `"raise"` and the program is another one.
        """
        old_program = self._record.get("program")
        # Another version of JAX may trace another program for the same step, and a changed setting explains another
        # program.
        if not self._same_versions or self._said or not isinstance(old_program, dict):
            return
        # A batch of another shape has another program, although nothing has changed.
        if old_program.get("batch") == program["batch"] and old_program.get("digest") != program["digest"]:
            self._say(["the compiled step: another program, so the loss, the model or the optimizer has changed"])

    def _say(self, lines: list[str]) -> None:
        if not lines or self._on_change == "ignore":
            return
        self._said = True
        changes = "\n  ".join(lines)
        msg = f"train: the run in {self._folder} was saved with other settings:\n  {changes}\n"
        if self._on_change == "raise":
            msg += 'Pass the old settings, or on_change="warn" or "ignore" to continue with the new ones.'
            raise FuncconvError(msg)
        msg += 'It continues with the new ones. on_change="raise" stops instead, and "ignore" does not warn.'
        warnings.warn(msg, stacklevel=4)


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in ("funcconv", "jax", "jaxlib", "optax"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # it runs from a checkout that is not installed
            versions[name] = _UNKNOWN
    return versions
