"""The options of `fit`, checked before anything is read, written or trained."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..._common.errors import FuncconvError, suggest
from ..._common.paths import checked_path
from .._data.batches import Batches
from .settings import OnChange


@dataclass(frozen=True)
class Options:
    """What `fit` was given, as plain values.

    Raises:
        FuncconvError: if one is of the wrong kind or out of range.
    """

    steps: int
    every: int
    patience: int | None
    monitor: str | None
    checkpoint: Path | None
    checkpoint_every: int
    keep: int
    about: dict[str, Any]
    on_change: OnChange
    has_evaluate: bool

    def described(self, batches: Any) -> dict[str, str]:
        """Return what processes that train together must have in common, but for the state and the program."""
        found = dict(vars(self)) | {"checkpoint": self.checkpoint and str(self.checkpoint)}
        if isinstance(batches, Batches):
            found |= {f"batches: {name}": value for name, value in batches.common().items()}
        return {name: json.dumps(value, sort_keys=True, default=repr) for name, value in found.items()}


def checked(
    *, steps: Any, every: Any, patience: Any, monitor: Any, checkpoint: Any, checkpoint_every: Any, keep: Any,
    about: Any, on_change: Any, evaluate: Any,
) -> Options:  # fmt: skip
    """Return the options of `fit`.

    Raises:
        FuncconvError: if one is of the wrong kind or out of range.
    """
    if evaluate is not None and not callable(evaluate):
        msg = f"train: evaluate must be a function of a state; got {evaluate!r}"
        raise FuncconvError(msg)
    if monitor is not None and not isinstance(monitor, str):
        msg = f"train: monitor must be the name of a metric; got {monitor!r}"
        raise FuncconvError(msg)
    if patience is not None and (evaluate is None or monitor is None):
        msg = "train: patience needs evaluate=, and the name of one of its metrics as monitor="
        raise FuncconvError(msg)
    if on_change not in (choices := get_args(OnChange)):
        near = suggest(on_change, choices)
        msg = f"train: on_change must be one of {', '.join(map(repr, choices))}; got {on_change!r}{near}"
        raise FuncconvError(msg)
    return Options(
        steps=_whole("steps", steps, 0), every=_whole("every", every, 1),
        patience=None if patience is None else _whole("patience", patience, 1), monitor=monitor,
        checkpoint=None if checkpoint is None else checked_path("train", checkpoint, wants="folder").absolute(),
        checkpoint_every=_whole("checkpoint_every", checkpoint_every, 1), keep=_whole("keep", keep, 1),
        about=_json(about), on_change=on_change, has_evaluate=evaluate is not None,
    )  # fmt: skip


def _whole(name: str, value: Any, least: int) -> int:
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
    try:
        number = operator.index(value) if is_integer else None
    except TypeError:  # an array of several numbers, or of floats
        number = None
    if number is None:
        msg = f"train: {name} must be an integer of at least {least}; got {value!r}"
        raise FuncconvError(msg)
    if number < least:
        msg = f"train: {name} must be at least {least}; got {number}"
        raise FuncconvError(msg)
    return number


def _json(about: Any) -> dict[str, Any]:
    msg = "train: about must be a dict of what JSON has, which are texts, numbers, lists and dicts"
    if about is not None and not isinstance(about, Mapping):
        msg += f"; got {about!r}"
        raise FuncconvError(msg)
    found = dict(about or {})
    try:
        json.dumps(found, sort_keys=True)
    except (TypeError, ValueError) as error:
        msg += f": {error}"
        raise FuncconvError(msg) from error
    return found
