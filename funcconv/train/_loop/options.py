"""The options of `fit`, checked before anything is read, written or trained."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..._common.errors import FuncconvError, suggest
from ..._common.paths import checked_path
from .._data.batches import Batches
from .best import Mode, Monitor
from .settings import OnChange


@dataclass(frozen=True)
class Options:
    """The options of `fit`, as plain values."""

    steps: int
    every: int
    patience: int | None
    monitor: Monitor | None
    checkpoint: Path | None
    checkpoint_every: int
    keep: int | Literal["best"]
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
    mode: Any,
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
    _check_choice("on_change", on_change, get_args(OnChange))
    monitored = _monitor(monitor, mode, evaluate)
    keeps_best = isinstance(keep, str) and keep == "best"
    for name, is_set in {"patience": patience is not None, 'keep="best"': keeps_best}.items():
        if is_set and monitored is None:
            msg = f"train: {name} needs evaluate=, and the name of one of its metrics as monitor="
            raise FuncconvError(msg)
    return Options(
        steps=_integer("steps", steps, 0),
        every=_integer("every", every, 1),
        patience=None if patience is None else _integer("patience", patience, 1),
        monitor=monitored,
        checkpoint=None if checkpoint is None else checked_path("train", checkpoint, wants="folder").absolute(),
        checkpoint_every=_integer("checkpoint_every", checkpoint_every, 1),
        keep="best" if keeps_best else _integer("keep", keep, 1, ', or "best"'),
        about=_json_dict(about),
        on_change=on_change,
        has_evaluate=evaluate is not None,
    )


def _monitor(monitor: Any, mode: Any, evaluate: Any) -> Monitor | None:
    _check_choice("mode", mode, get_args(Mode))
    if monitor is None:
        if mode != "min":
            msg = f"train: mode={mode!r} needs monitor=, the name of the metric of evaluate that it is about"
            raise FuncconvError(msg)
        return None
    if not isinstance(monitor, str):
        msg = f"train: monitor must be the name of a metric; got {monitor!r}"
        raise FuncconvError(msg)
    if monitor.startswith("-"):
        name = monitor.removeprefix("-")
        msg = f'train: monitor must be the name of a metric; got {monitor!r}. Pass monitor={name!r}, mode="max"'
        raise FuncconvError(msg)
    if evaluate is None:
        msg = f"train: monitor={monitor!r} needs evaluate=, a function that returns this metric"
        raise FuncconvError(msg)
    return Monitor(monitor, mode)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        msg = f"train: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}{suggest(value, choices)}"
        raise FuncconvError(msg)


def _integer(name: str, value: Any, minimum: int, alternative: str = "") -> int:
    # True and 2.5 are likely mistakes: Python would take True for 1, and int() would cut 2.5.
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
    try:
        number = operator.index(value) if is_integer else None
    except TypeError:  # an array of several numbers, or of floats
        number = None
    if number is None:
        msg = f"train: {name} must be an integer of at least {minimum}{alternative}; got {value!r}"
        raise FuncconvError(msg)
    if number < minimum:
        msg = f"train: {name} must be at least {minimum}{alternative}; got {number}"
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
