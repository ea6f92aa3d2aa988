"""The options of `make_step`, checked and with their defaults."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..._common.errors import FuncconvError
from ..._common.types import DTypeLike, Number
from .._distributed.partition import Partition, check_options, with_auto_axes
from .._optimizer.groups import Optimizer, check_optimizer, transform_of
from .compute_dtypes import ALL, all_dtypes, checked_dtypes


@dataclass(frozen=True)
class StepOptions:
    """What a training step computes."""

    loss: Callable[..., Any]
    optimizer: Optimizer  # as the user gave it
    lr_factors: Mapping[str, float]  # by patterns
    transform: optax.GradientTransformationExtraArgs  # the same as one optimizer, which also takes extra arguments
    report_learning_rate: bool
    optimizer_value: str  # "loss" or "monitor"
    accumulate: int  # the number of micro-batches
    ema: Number | None
    average: str | None
    average_start: int
    compute_dtype: Any  # a dtype, a dict of dtypes by pattern, or None
    inputs: tuple[str, ...] | Mapping[str, Any] | None  # patterns, or dtypes by pattern
    loss_scale: Number | str
    clip: Number | None
    frozen: tuple[str, ...]  # patterns
    mesh: Mesh | None
    auto_mesh: Mesh | None  # the same devices, with axes for which XLA decides how intermediate results are sharded
    partition: Partition
    has_aux: bool

    @property
    def has_dynamic_scale(self) -> bool:
        """Whether the scale of the loss is part of the state."""
        return self.loss_scale == "dynamic"

    @property
    def has_average(self) -> bool:
        """Whether the state has an average of the parameters."""
        return self.ema is not None or self.average is not None

    def recorded(self) -> Mapping[str, Any]:
        """Return the settings that a checkpoint records. Their names and texts are part of its format."""
        # Checkpoints of funcconv 0.1 have no entries for these options, so they are recorded only if they are used.
        later = {
            "lr_factors": dict(self.lr_factors),
            "average": self.average,
            "average_start": self.average_start,
            "optimizer_value": self.optimizer_value if self.optimizer_value != "loss" else None,
        }
        return {
            "optimizer": self.optimizer,
            "accumulate": self.accumulate,
            "ema": self.ema,
            "compute_dtype": self.compute_dtype,
            "inputs": self.inputs,
            "loss_scale": self.loss_scale,
            "clip": self.clip,
            "frozen": self.frozen,
            "mesh": self.mesh and dict(self.mesh.shape),
            "partition": {pattern: str(spec) for pattern, spec in self.partition.items()},
            **{name: value for name, value in later.items() if value},
        }


def checked_options(
    loss: Callable[..., Any],
    optimizer: Optimizer,
    *,
    lr_factors: Mapping[str, float] | None,
    report_learning_rate: bool,
    optimizer_value: str,
    accumulate: int,
    ema: Number | None,
    average: str | None,
    average_start: int,
    compute_dtype: DTypeLike | Mapping[str, DTypeLike] | None,
    inputs: str | Sequence[str] | Mapping[str, DTypeLike] | None,
    loss_scale: Number | str | None,
    clip: Number | None,
    frozen: str | Sequence[str],
    mesh: Mesh | None,
    partition: Partition | None,
    has_aux: bool,
) -> StepOptions:
    """Return the options of a step.

    Raises:
        FuncconvError: if one is of the wrong type or out of range.
    """
    is_scale = loss_scale in (None, "dynamic") or (not isinstance(loss_scale, str) and 0 < loss_scale < math.inf)
    for name, value, is_valid, expected in (
        ("accumulate", accumulate, isinstance(accumulate, int) and accumulate >= 1, "an integer of at least 1"),
        ("ema", ema, ema is None or 0 <= ema < 1, "a decay from 0 to below 1"),
        ("clip", clip, clip is None or clip > 0, "above 0"),
        ("loss_scale", loss_scale, is_scale, 'finite and above 0, or "dynamic"'),
        ("optimizer_value", optimizer_value, optimizer_value in ("loss", "monitor"), '"loss" or "monitor"'),
    ):
        if not is_valid:
            msg = f"train: {name} must be {expected}; got {value!r}"
            raise FuncconvError(msg)
    _check_average(ema, average, average_start)
    lr_factors = {} if lr_factors is None else lr_factors
    check_optimizer(optimizer, lr_factors)
    check_options(mesh, partition)
    dtypes = None if compute_dtype is None else checked_dtypes("compute_dtype", compute_dtype)
    input_patterns = _checked_inputs(inputs, dtypes)
    if loss_scale is None:
        # Float16 has 5 bits for the exponent: without a scale, small gradients become 0. Other dtypes have 8 or more.
        loss_scale = "dynamic" if jnp.dtype("float16") in all_dtypes(dtypes, input_patterns) else 1.0
    return StepOptions(
        loss=loss,
        optimizer=optimizer,
        lr_factors=lr_factors,
        transform=transform_of(optimizer, lr_factors),
        report_learning_rate=report_learning_rate,
        optimizer_value=optimizer_value,
        accumulate=accumulate,
        ema=ema,
        average=average,
        average_start=average_start,
        compute_dtype=dtypes,
        inputs=input_patterns,
        loss_scale=loss_scale,
        clip=clip,
        frozen=_patterns(frozen),
        mesh=mesh,
        auto_mesh=None if mesh is None else with_auto_axes(mesh),
        partition=partition or {},
        has_aux=has_aux,
    )


def _checked_inputs(
    inputs: str | Sequence[str] | Mapping[str, DTypeLike] | None, dtypes: Any
) -> tuple[str, ...] | Mapping[str, Any] | None:
    """Return the patterns of inputs, with their dtypes if the user gave some.

    Raises:
        FuncconvError: if dtypes are given and nothing is cast, or the dtype of inputs is not known.
    """
    if isinstance(inputs, Mapping):
        if dtypes is None:
            msg = f"train: inputs={inputs!r} gives dtypes, which needs the dtype of the parameters; give compute_dtype="
            raise FuncconvError(msg)
        return checked_dtypes("inputs", inputs)  # type: ignore[no-any-return]
    patterns = None if inputs is None else _patterns(inputs)
    if isinstance(dtypes, Mapping) and ALL not in dtypes and patterns != ():
        msg = (
            f"train: compute_dtype has the patterns {', '.join(map(repr, dtypes))}, which do not give the dtype of the "
            'inputs. Add the pattern "*" as the last, give the dtypes as inputs={"image": "bfloat16"}, or pass '
            "inputs=() to cast no input"
        )
        raise FuncconvError(msg)
    return patterns


def _check_average(ema: Number | None, average: Any, average_start: Any) -> None:
    if average not in (None, "mean"):
        msg = f'train: average must be None or "mean"; got {average!r}'
        raise FuncconvError(msg)
    if not isinstance(average_start, int) or average_start < 0:
        msg = f"train: average_start must be an integer of at least 0; got {average_start!r}"
        raise FuncconvError(msg)
    if average is not None and ema is not None:
        msg = f"train: ema={ema} keeps a moving average and average={average!r} a mean; pass one of them"
        raise FuncconvError(msg)
    if average_start and average is None and ema is None:
        msg = f'train: average_start={average_start} needs an average; pass ema= or average="mean"'
        raise FuncconvError(msg)


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
