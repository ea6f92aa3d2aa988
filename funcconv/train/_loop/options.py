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
    """The options of `fit`, as plain values."""

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
        """Return the options that must be equal in all processes that train together, as texts."""
        texts = dict(vars(self)) | {"checkpoint": self.checkpoint and str(self.checkpoint)}
        if isinstance(batches, Batches):
            texts |= {f"batches: {name}": value for name, value in batches.common().items()}
        return {name: json.dumps(value, sort_keys=True, default=repr) for name, value in texts.items()}


def checked(
    *,
    steps: Any,
    every: Any,
    patience: Any,
    monitor: Any,
    checkpoint: Any,
    checkpoint_every: Any,
    keep: Any,
    about: Any,
    on_change: Any,
    evaluate: Any,
) -> Options:
    """Return the options of `fit`.

    Raises:
        FuncconvError: if an option has the wrong type or is out of range.
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
        hint = suggest(on_change, choices)
        msg = f"train: on_change must be one of {', '.join(map(repr, choices))}; got {on_change!r}{hint}"
        raise FuncconvError(msg)
    return Options(
        steps=_integer("steps", steps, 0),
        every=_integer("every", every, 1),
        patience=None if patience is None else _integer("patience", patience, 1),
        monitor=monitor,
        checkpoint=None if checkpoint is None else checked_path("train", checkpoint, wants="folder").absolute(),
        checkpoint_every=_integer("checkpoint_every", checkpoint_every, 1),
        keep=_integer("keep", keep, 1),
        about=_json_dict(about),
        on_change=on_change,
        has_evaluate=evaluate is not None,
    )


def _integer(name: str, value: Any, minimum: int) -> int:
    # True and 2.5 are likely mistakes: Python would take True for 1, and int() would cut 2.5.
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
    try:
        number = operator.index(value) if is_integer else None
    except TypeError:  # an array of several numbers, or of floats
        number = None
    if number is None:
        msg = f"train: {name} must be an integer of at least {minimum}; got {value!r}"
        raise FuncconvError(msg)
    if number < minimum:
        msg = f"train: {name} must be at least {minimum}; got {number}"
        raise FuncconvError(msg)
    return number


def _json_dict(about: Any) -> dict[str, Any]:
    msg = "train: about must be a dict of what JSON has, which are texts, numbers, lists and dicts"
    if about is not None and not isinstance(about, Mapping):
        msg += f"; got {about!r}"
        raise FuncconvError(msg)
    content = dict(about or {})
    try:
        json.dumps(content, sort_keys=True)
    except (TypeError, ValueError) as error:
        msg += f": {error}"
        raise FuncconvError(msg) from error
    return content
