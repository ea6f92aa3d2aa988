"""The settings of a run: recorded with each checkpoint, and compared when a run goes on."""

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
_OPTIMIZER = "optimizer: "
_UNKNOWN = "not known"


def settings_of(step: Any, state: Any, batches: Any, **options: Any) -> dict[str, str]:
    """Return a text for each setting that the result of a run depends on, by its name.

    Args:
        step: of `make_step`, whose options and optimizer are known; of other functions nothing is.
        state: the first one, of which the key is taken.
        batches: of `batches`; of other iterators nothing is known.
        **options: of `fit`.
    """
    found = dict(options)
    for name, value in getattr(step, "options", {}).items():
        if name == "optimizer":
            found |= {_OPTIMIZER + name: constant for name, constant in constants_of(value).items()}
        else:
            found[name] = value
    if isinstance(batches, Batches):
        found |= {f"batches: {name}": value for name, value in batches.options().items()}
    key = getattr(state, "key", None)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        found["key of the state"] = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return {name: value if isinstance(value, str) else short(value) for name, value in found.items()}


def program_of(compiled: Any, state: Any, batch: Any) -> dict[str, str]:
    """Return a digest of the program of a step, and of all that it depends on beside the settings."""
    shapes = jax.tree.map(lambda each: f"{each.dtype}{list(each.shape)}" if hasattr(each, "dtype") else "", batch)
    digest = hashlib.sha256(program_text(compiled.trace(state, batch).jaxpr).encode()).hexdigest()
    return {"digest": digest, "batch": str(shapes)}


def record_of(settings: Mapping[str, str], program: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what a checkpoint says of the settings, as JSON has it."""
    return {"settings": dict(settings), "program": program, "versions": _versions()}


class Changes:
    """Compares the settings of a run that goes on with those that its checkpoint recorded.

    Args:
        then: the record of the checkpoint, of `record_of`; None if the run begins, or nothing was recorded.
        on_change: `"warn"`, `"raise"` or `"ignore"`.
        where: the folder, for the message.
    """

    def __init__(self, then: Any, on_change: OnChange, where: object) -> None:
        self._then: dict[str, Any] = then if isinstance(then, dict) else {}
        self._on_change, self._where = on_change, where
        self._same_versions = self._then.get("versions") == _versions()
        self._said = False

    def check(self, settings: Mapping[str, str]) -> None:
        """Warn of settings that changed, or raise.

        Other versions may name the constants of an optimizer otherwise, so names that only one of them knows are then
        left out.

        Raises:
            FuncconvError: if `on_change` is `"raise"` and there is a difference.
        """
        then = self._then.get("settings")
        if not isinstance(then, dict):
            return
        lines = []
        for name in dict.fromkeys([*settings, *then]):
            was, now = then.get(name, _UNKNOWN), settings.get(name, _UNKNOWN)
            if was != now and (self._same_versions or _UNKNOWN not in (was, now)):
                lines.append(f"{name}: {was} then, {now} now")
        self._say(lines)

    def check_program(self, program: Mapping[str, str]) -> None:
        """Warn if the step computes something else, or raise; only if no other change was said.

        Raises:
            FuncconvError: if `on_change` is `"raise"` and the program is another one.
        """
        then = self._then.get("program")
        if not self._same_versions or self._said or not isinstance(then, dict):
            return
        if then.get("batch") == program["batch"] and then.get("digest") != program["digest"]:
            self._say(["the compiled step: another program, so the loss, the model or the optimizer has changed"])

    def _say(self, lines: list[str]) -> None:
        if not lines or self._on_change == "ignore":
            return
        self._said = True
        changes = "\n  ".join(lines)
        msg = f"train: the run in {self._where} was saved with other settings:\n  {changes}\n"
        if self._on_change == "raise":
            msg += 'Pass the settings of then, or on_change="warn" or "ignore" to go on with those of now.'
            raise FuncconvError(msg)
        msg += 'It goes on with those of now. on_change="raise" stops instead, and "ignore" says nothing.'
        warnings.warn(msg, stacklevel=4)


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in ("funcconv", "jax", "jaxlib", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # it is used from its source
            found[name] = _UNKNOWN
    return found
