"""The functions of PyTorch that compute what the functions in a graph do, for one example or for a batch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...._common.errors import FuncconvError
from ...._graph.declare.arithmetic import WithNumber
from ...._graph.declare.node import Item
from ...._graph.to_file.registry import name_of
from ...._ops.conv import conv as _conv
from ...._ops.conv_transpose import conv_transpose as _conv_transpose
from ...._ops.local_conv import local_conv as _local_conv
from .axes import AXES
from .convolutions import conv, conv_transpose, local_conv
from .elementwise import ELEMENTWISE
from .example_axes import of_rank
from .lazy_torch import torch
from .norms import dense, flatten, group_norm, instance_norm, layer_norm, local_response_norm, rms_norm
from .pools import adaptive_pool, global_pool, pool
from .reductions import REDUCTIONS
from .resampling.patches import fold, pixel_shuffle, pixel_unshuffle, unfold
from .resampling.resize import blur_pool, resize
from .weighted import WEIGHTED

# Functions of funcconv that take any number of batch axes in front; those with parameters take them first.
_WITH_BATCH_AXES: dict[str, Callable[..., Any]] = {
    "funcconv.adaptive_pool": adaptive_pool,
    "funcconv.avg_pool": partial(pool, reduce="mean"),
    "funcconv.blur_pool": blur_pool,
    "funcconv.dense": dense,
    "funcconv.flatten": flatten,
    "funcconv.fold": fold,
    "funcconv.global_pool": global_pool,
    "funcconv.group_norm": group_norm,
    "funcconv.instance_norm": instance_norm,
    "funcconv.layer_norm": layer_norm,
    "funcconv.local_response_norm": local_response_norm,
    "funcconv.max_pool": pool,
    "funcconv.min_pool": partial(pool, reduce="min"),
    "funcconv.pixel_shuffle": pixel_shuffle,
    "funcconv.pixel_unshuffle": pixel_unshuffle,
    "funcconv.pool": pool,
    "funcconv.rms_norm": rms_norm,
    "funcconv.resize": resize,
    "funcconv.sum_pool": partial(pool, reduce="sum"),
    "funcconv.unfold": unfold,
}
_WITHOUT_NAME: dict[Any, Callable[..., Any]] = {
    _conv: conv,
    _conv_transpose: conv_transpose,
    _local_conv: local_conv,
}


class Value(NamedTuple):
    """The value of a node.

    Attributes:
        array: a tensor, or a tuple or a dict of tensors.
        has_batch: whether it has a batch axis in front. A value that no input changes has none.
    """

    array: Any
    has_batch: bool

    def for_batch(self, size: Any) -> Any:
        """Return the value with a batch axis of this size in front."""
        return self.array if self.has_batch else mapped(lambda x: x.expand(size, *x.shape), self.array)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree with a function applied to its tensors."""
    if isinstance(tree, Mapping):
        return {name: mapped(function, item) for name, item in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(mapped(function, item) for item in tree)
    return function(tree)


class Counterpart(NamedTuple):
    """The PyTorch function that replaces a function in a graph.

    Attributes:
        kind: what the function expects: `"elementwise"` operands that PyTorch broadcasts, `"by_example"` operands and
            how many batch axes all of them have in front (`lead`), `"weighted"` an input and weights without batch
            axes, `"with_batch_axes"` an input with any batch axes in front, `"item"` a tuple or a dict.
        function: the function.
    """

    kind: str
    function: Callable[..., Any]

    def __call__(self, operands: Sequence[Value], *, params: Any = None, batched: bool = False) -> Value:
        """Compute the function.

        Args:
            operands: its arguments.
            params: the first argument, if the function takes parameters. Default: None, it takes none.
            batched: whether the function is written for a batch, so that all its arguments have one batch axis.

        Returns:
            The result.
        """
        if params is not None and self.kind != "with_batch_axes":
            operands = [Value(params, has_batch=False), *operands]
        has_batch = any(operand.has_batch for operand in operands)
        arrays = [operand.array for operand in operands]
        if self.kind == "item":
            return Value(self.function(arrays[0], lead=int(has_batch)), has_batch)
        if batched:  # an op for a batch sees its axis as any other
            options = {"lead": 0} if self.kind == "by_example" else {}
            given = () if params is None or self.kind != "with_batch_axes" else (params,)
            return Value(self.function(*given, *arrays, **options), has_batch)
        if self.kind == "elementwise":
            rank = max(x.ndim - operand.has_batch for x, operand in zip(arrays, operands, strict=True))
            aligned = [
                of_rank(x, rank + has_batch, int(operand.has_batch))
                for x, operand in zip(arrays, operands, strict=True)
            ]
            return Value(self.function(*aligned), has_batch)
        if self.kind == "by_example":
            size = next((x.array.shape[0] for x in operands if x.has_batch), None)
            arrays = [x.for_batch(size) if has_batch else x.array for x in operands]
            return Value(self.function(*arrays, lead=int(has_batch)), has_batch)
        if self.kind == "weighted":
            return Value(self._weighted(operands), has_batch)
        return Value(self._with_batch_axes(params, operands[0]), has_batch)

    def _weighted(self, operands: Sequence[Value]) -> Any:
        arrays = [operand.array for operand in operands]
        if not any(operand.has_batch for operand in operands[1:]):
            return self.function(*arrays)
        # Each example has weights of its own.
        size = next(operand.array.shape[0] for operand in operands if operand.has_batch)
        examples = zip(*(operand.for_batch(size) for operand in operands), strict=True)
        return torch.stack([self.function(*example) for example in examples])

    def _with_batch_axes(self, params: Any, x: Value) -> Any:
        options: dict[str, Any] = {}
        names = inspect.signature(self.function).parameters
        if "spatial" in names and names["spatial"].default is None:
            options["spatial"] = x.array.ndim - x.has_batch - 1
        layout = names["layout"].default if "layout" in names else None
        if layout is not None:
            options.pop("spatial", None)
            if x.has_batch and x.array.ndim == len(layout.replace("N", "")) + 1:
                options["layout"] = "N" + layout.replace("N", "")
        return self.function(*(() if params is None else (params,)), x.array, **options)


def counterpart(op: Any, operands: int, *, parametric: bool = False) -> Counterpart:
    """Return the PyTorch function that replaces a function.

    Args:
        op: the function.
        operands: the number of its inputs.
        parametric: whether it takes parameters in front of them.

    Returns:
        The counterpart.

    Raises:
        FuncconvError: if there is none, or none with these options.
    """
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = {}
    function: Any = op
    while isinstance(function, partial):
        args, options = (*function.args, *args), function.keywords | options
        function = function.func
    label = getattr(function, "__name__", None) or repr(function)
    kind, found = _found(function)
    if found is None:
        msg = f"the function {name_of(function) or label!r} has no counterpart in PyTorch"
        raise FuncconvError(msg)
    for name, option in options.items():
        if callable(option) and not isinstance(option, type):  # a reduction of a pool
            options[name] = counterpart(option, 1).function
    try:
        lead = {"lead": 0} if kind == "by_example" else {}
        inspect.signature(found).bind(*args, *[None] * (operands + parametric), **options, **lead)
    except TypeError as error:
        msg = f"the function {name_of(function) or label!r} has no counterpart in PyTorch with these options: {error}"
        raise FuncconvError(msg) from None
    return Counterpart(kind, partial(found, *args, **options) if args or options else found)


def _found(function: Any) -> tuple[str, Any]:
    if isinstance(function, WithNumber):
        of_two = ELEMENTWISE.get(name_of(function.op) or "")
        return "elementwise", of_two and partial(_with_number, of_two, function.number, first=function.first)
    if isinstance(function, Item):
        return "item", partial(_item, index=function.index)
    name = name_of(function) or ""
    for kind, known in (
        ("elementwise", ELEMENTWISE),
        ("by_example", AXES | REDUCTIONS),
        ("weighted", WEIGHTED),
        ("with_batch_axes", _WITH_BATCH_AXES),
    ):
        if name in known:
            return kind, known[name]
    try:
        return "with_batch_axes", _WITHOUT_NAME.get(function)
    except TypeError:  # not hashable
        return "", None


def _with_number(function: Callable[..., Any], number: Any, x: Any, *, first: bool) -> Any:
    return function(number, x) if first else function(x, number)


def _item(x: Any, *, index: Any, lead: int) -> Any:
    return x[index] if isinstance(x, Mapping | tuple) else x[(slice(None),) * lead + (index,)]
