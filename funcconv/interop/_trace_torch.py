"""Modules of PyTorch as graphs: traced by `torch.fx`, one node for each operation, with their weights.

Values have their channels last inside; what PyTorch says of axes is translated, and what cannot be translated is done
on an array with the channels first.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .._adaptive import adaptive_pool
from .._compose import add, concat
from .._dense import dense
from .._errors import FuncconvError
from .._extras import needs
from .._graph import Graph
from .._layers import Conv, ConvTranspose, Dense, Flatten, Pool
from .._node import Input, Layer, Node, node
from .._norms import group_norm, layer_norm
from .._training_layers import BatchNorm, Dropout, GroupNorm
from .._typing import Array, Number, Params, Shape


@dataclass(frozen=True)
class Value:
    """A node and the shape that PyTorch sees, `(channels, *spatial)`, without the batch."""

    node: Node
    shape: Shape


def trace_torch(module: Any, example: Any, *, layout: str = "NCHW") -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Return a module of PyTorch as a graph, with its weights.

    Args:
        module: that `torch.fx` can trace: without branches that depend on values. Its `training` says nothing: whether
            dropout draws and norms use the batch is said where the graph is evaluated.
        example: a tensor with one batch axis, `(batch, channels, *spatial)`, or a tuple of them, for the inputs.
        layout: `"NCHW"` for a graph that takes and gives arrays as the module does; `"NHWC"` for channels last.

    Returns:
        `(graph, params, state)`. The state has the running figures of batch norms, `{}` without any:
        `graph.apply(params, state, x)`.

    Raises:
        FuncconvError: if PyTorch is not installed, or an operation has no counterpart; its name is told.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> try:
        ...     import torch
        ...     net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        ...     graph, params, _ = fc.interop.trace_torch(net, torch.ones(1, 3, 6, 6))
        ...     entries = graph.entries
        ... except (ImportError, fc.FuncconvError):  # PyTorch is not here
        ...     entries = ("_0",)
        >>> entries
        ('_0',)
    """
    with needs("torch", "a module of PyTorch"):
        from torch import fx
        from torch.fx.passes.shape_prop import ShapeProp
    if layout not in ("NCHW", "NHWC"):
        msg = f"trace_torch: layout must be 'NCHW' or 'NHWC'; got {layout!r}"
        raise FuncconvError(msg)
    examples = example if isinstance(example, tuple) else (example,)
    was = module.training
    try:
        module.eval()
        traced = fx.symbolic_trace(module)
        ShapeProp(traced).propagate(*examples)
    except Exception as error:  # whatever PyTorch says
        msg = (
            f"trace_torch: torch.fx cannot trace the module: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )
        raise FuncconvError(msg) from error
    finally:
        module.train(was)
    return _Trace(traced, first=layout == "NCHW").run()


class _Trace:
    """The translation of one module."""

    def __init__(self, traced: Any, *, first: bool) -> None:
        self.traced, self.first = traced, first
        self.modules = dict(traced.named_modules())
        self.values: dict[Any, Any] = {}
        self.inputs: list[Input] = []
        self.layers: dict[str, Layer | None] = {}
        self.weights: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}  # by entry: parameters and state
        self.at: Any = None  # the operation that is translated

    def run(self) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
        """Translate one operation after another."""
        outputs: Any = None
        for each in self.traced.graph.nodes:
            self.at = each
            if each.op == "output":
                outputs = self._outputs(self.read(each.args[0]))
            else:
                self.values[each] = getattr(self, f"_{each.op}")()
        graph = Graph(tuple(self.inputs), outputs)
        used = set(graph.entries)
        params = {name: _arrays(learnt) for name, (learnt, _) in self.weights.items() if name in used}
        state = {name: _arrays(kept) for name, (_, kept) in self.weights.items() if kept and name in used}
        return graph, params, state

    def read(self, argument: Any) -> Any:
        """Return an argument with values in place of what `torch.fx` has for them."""
        if isinstance(argument, list | tuple):
            return type(argument)(self.read(each) for each in argument)
        if isinstance(argument, dict):
            return {key: self.read(each) for key, each in argument.items()}
        if isinstance(argument, slice):
            return slice(*map(self.read, (argument.start, argument.stop, argument.step)))
        return self.values[argument] if type(argument).__name__ == "Node" else argument

    def refuse(self, what: str) -> NoReturn:
        """Tell which operation has no counterpart."""
        target = getattr(self.at.target, "__name__", self.at.target)
        msg = f"trace_torch: {self.at.name!r}, a call of {target!r}: {what}"
        raise FuncconvError(msg)

    def shape(self, of: Any = None) -> Shape:
        """Return what PyTorch gives for an operation, without the batch."""
        meta = (of or self.at).meta.get("tensor_meta")
        if not hasattr(meta, "shape") or not len(meta.shape):
            self.refuse("its value is no tensor with a batch")
        return tuple(meta.shape)[1:]

    def made(self, made: Node) -> Value:
        """Return a node as the value of the operation."""
        return Value(made, self.shape())

    # what torch.fx calls its operations ------------------------------------------------------------------

    def _placeholder(self) -> Value:
        shape = self.shape()
        moved = self.first and len(shape) > 1
        declared = Input(self.at.name, shape if self.first or len(shape) < 2 else (*shape[1:], shape[0]))
        self.inputs.append(declared)
        return Value(node(_to_last, declared) if moved else declared, shape)

    def _get_attr(self) -> NoReturn:
        self.refuse("a weight or buffer outside of a layer")

    def _call_function(self) -> Any:
        name = str(getattr(self.at.target, "__name__", self.at.target))
        return self._called(name, *self.read(self.at.args), **self.read(self.at.kwargs))

    def _call_method(self) -> Any:
        return self._called(str(self.at.target), *self.read(self.at.args), **self.read(self.at.kwargs))

    def _call_module(self) -> Any:
        module = self.modules[self.at.target]
        kind = type(module).__name__
        known = _MODULES.get(kind)
        if known is None:
            self.refuse(f"a module {kind} has no counterpart")
        name, options = known(module)
        return self._called(name, *self.read(self.at.args), **options)

    def _called(self, name: str, *args: Any, **options: Any) -> Any:
        name = _ALIASES.get(name.rstrip("_"), name.rstrip("_"))
        if name in _ELEMENTWISE:
            return self.made(node(_ELEMENTWISE[name], args[0].node))
        method = getattr(self, f"op_{name}", None)
        if method is None:
            self.refuse("it has no counterpart")
        try:
            return method(*args, **options)
        except TypeError as error:
            self.refuse(str(error))

    def _outputs(self, found: Any) -> Any:
        if isinstance(found, Value):
            return node(_to_first, found.node) if self.first and len(found.shape) > 1 else found.node
        if isinstance(found, list | tuple):
            return tuple(self._outputs(each) for each in found)
        if isinstance(found, dict):
            return {name: self._outputs(each) for name, each in found.items()}
        self.refuse(f"an output {found!r} is no tensor")

    # layers with weights ---------------------------------------------------------------------------------

    def layer(self, make: Callable[[str], Layer], params: dict[str, Any], state: dict[str, Any] | None = None) -> Layer:
        """Return the layer of a module: the same one wherever the module is called."""
        name = _entry_name(self.at.target)
        if name not in self.layers:
            self.layers[name] = make(name)
            self.weights[name] = (params, state or {})
        return self.layers[name]  # type: ignore[return-value]

    def with_weights(self, op: Callable[..., Any], x: Value, params: dict[str, Any]) -> Value:
        """Apply an op that is no layer of funcconv's to the weights of a module."""
        name = _entry_name(self.at.target)
        self.weights[name] = (params, {})
        return self.made(node(op, x.node, params=name))

    def op_conv(self, x: Value, module: Any) -> Value:
        n = len(module.kernel_size)
        if len(x.shape) != n + 1:
            self.refuse(f"its input has shape {x.shape} without the batch")
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        padding = {"same": "SAME", "valid": "VALID"}.get(padding, padding) if isinstance(padding, str) else padding
        window, dilation = tuple(module.kernel_size), tuple(module.dilation)
        return self.made(self.layer(
            lambda name: Conv(
                module.out_channels, window, stride=tuple(module.stride), padding=padding, dilation=dilation,
                groups=module.groups, pad_mode=module.padding_mode, bias=module.bias is not None, name=name,
            ),
            _kernel(module),
        )(x.node))  # fmt: skip

    def op_conv_transpose(self, x: Value, module: Any) -> Value:
        return self.made(self.layer(
            lambda name: ConvTranspose(
                module.out_channels, tuple(module.kernel_size), stride=tuple(module.stride),
                padding=tuple(module.padding), dilation=tuple(module.dilation), groups=module.groups,
                output_padding=tuple(module.output_padding), bias=module.bias is not None, name=name,
            ),
            _kernel(module),
        )(x.node))  # fmt: skip

    def op_linear(self, x: Value, module: Any) -> Value:
        params = {"kernel": _numpy(module.weight).T} | _bias(module)
        if len(x.shape) > 1:
            return self.with_weights(_First(dense, weights=True), x, params)
        make = partial(Dense, module.out_features, bias=module.bias is not None)
        return self.made(self.layer(lambda name: make(name=name), params)(x.node))

    def op_batch_norm(self, x: Value, module: Any) -> Value:
        if not module.track_running_stats or module.momentum is None:
            self.refuse("a batch norm without running statistics, or with their plain mean")
        state = {"mean": _numpy(module.running_mean), "var": _numpy(module.running_var)}
        return self.made(self.layer(
            lambda name: BatchNorm(
                momentum=1 - module.momentum, epsilon=module.eps, scale=module.affine, bias=module.affine, name=name
            ),
            _scale(module), state,
        )(x.node))  # fmt: skip

    def op_group_norm(self, x: Value, module: Any) -> Value:
        make = partial(GroupNorm, module.num_groups, epsilon=module.eps, scale=module.affine, bias=module.affine)
        return self.made(self.layer(lambda name: make(name=name), _scale(module))(x.node))

    def op_instance_norm(self, x: Value, module: Any) -> Value:
        if module.track_running_stats:
            self.refuse("an instance norm with running statistics")
        op = _InstanceNorm(x.shape[0], module.eps)
        return self.with_weights(op, x, _scale(module))

    def op_layer_norm(self, x: Value, module: Any) -> Value:
        op = _LayerNorm(len(module.normalized_shape), module.eps)
        return self.with_weights(_First(op, weights=True), x, _scale(module))

    # pools -----------------------------------------------------------------------------------------------

    def op_max_pool(
        self, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Value:  # fmt: skip
        if return_indices:
            self.refuse("indices of a pool")
        return self._pooled(x, kernel_size, stride, padding, dilation=dilation, ceil_mode=ceil_mode)

    def op_avg_pool(
        self, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: Any = None,
    ) -> Value:  # fmt: skip
        if divisor_override is not None:
            self.refuse("divisor_override")
        options = {"reduce": "mean", "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        return self._pooled(x, kernel_size, stride, padding, **options)

    def _pooled(self, x: Value, kernel_size: Any, stride: Any, padding: Any, **options: Any) -> Value:
        n = len(x.shape) - 1
        window, padding = (_tuple(each, n) for each in (kernel_size, padding))
        stride = window if stride in (None, [], ()) else _tuple(stride, n)
        if "dilation" in options:
            options["dilation"] = _tuple(options["dilation"], n)
        return self.made(Pool(window, stride=stride, padding=padding, **options)(x.node))

    def op_adaptive_avg_pool(self, x: Value, output_size: Any) -> Value:
        return self._adapted(x, output_size, "mean")

    def op_adaptive_max_pool(self, x: Value, output_size: Any, return_indices: bool = False) -> Value:
        if return_indices:
            self.refuse("indices of a pool")
        return self._adapted(x, output_size, "max")

    def _adapted(self, x: Value, output_size: Any, reduce: str) -> Value:
        wanted = _tuple(output_size, len(x.shape) - 1)
        sizes = tuple(own if each is None else each for each, own in zip(wanted, x.shape[1:], strict=True))
        return self.made(node(partial(adaptive_pool, output_size=sizes, reduce=reduce), x.node))

    # activations with options, and dropout ---------------------------------------------------------------

    def op_leaky_relu(self, x: Value, negative_slope: Number = 0.01, inplace: bool = False) -> Value:
        del inplace
        return self.made(node(partial(jax.nn.leaky_relu, negative_slope=negative_slope), x.node))

    def op_elu(self, x: Value, alpha: Number = 1.0, inplace: bool = False) -> Value:
        del inplace
        return self.made(node(partial(jax.nn.elu, alpha=alpha), x.node))

    def op_gelu(self, x: Value, approximate: str = "none") -> Value:
        return self.made(node(partial(jax.nn.gelu, approximate=approximate == "tanh"), x.node))

    def op_softmax(self, x: Value, dim: int | None = None, dtype: Any = None, **_: Any) -> Value:
        return self._along(jax.nn.softmax, x, dim, dtype)

    def op_log_softmax(self, x: Value, dim: int | None = None, dtype: Any = None, **_: Any) -> Value:
        return self._along(jax.nn.log_softmax, x, dim, dtype)

    def _along(self, op: Callable[..., Any], x: Value, dim: int | None, dtype: Any) -> Value:
        if dim is None or dtype is not None:
            self.refuse("it needs dim, and no other dtype")
        return self.made(node(_First(partial(op, axis=self.axis(x, dim))), x.node))

    def op_dropout(self, x: Value, p: Number = 0.5, training: bool = True, inplace: bool = False) -> Value:
        del training, inplace
        return self.made(Dropout(p)(x.node))

    def op_dropout_of_channels(self, x: Value, p: Number = 0.5) -> Value:
        return self.made(Dropout(p, whole_channels=True)(x.node))

    def op_clamp(self, x: Value, min: Number | None = None, max: Number | None = None) -> Value:
        return self.made(node(partial(jnp.clip, min=min, max=max), x.node))

    # arithmetic ------------------------------------------------------------------------------------------

    def op_add(self, a: Any, b: Any, *, alpha: Number = 1) -> Any:
        if alpha != 1:
            self.refuse("alpha")
        return self._arithmetic(operator.add, a, b)

    def op_sub(self, a: Any, b: Any) -> Any:
        return self._arithmetic(operator.sub, a, b)

    def op_mul(self, a: Any, b: Any) -> Any:
        return self._arithmetic(operator.mul, a, b)

    def op_truediv(self, a: Any, b: Any) -> Any:
        return self._arithmetic(operator.truediv, a, b)

    def op_pow(self, a: Any, b: Any) -> Any:
        return self._arithmetic(operator.pow, a, b)

    def op_floordiv(self, a: int, b: int) -> int:
        if isinstance(a, Value) or isinstance(b, Value):
            self.refuse("of values that are no sizes")
        return a // b

    def _arithmetic(self, op: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        values = [each for each in (a, b) if isinstance(each, Value)]
        if not values:  # of sizes, which are numbers here
            return op(a, b)
        if len(values) == 2 and len(a.shape) != len(b.shape):
            self.refuse(f"values of shapes {a.shape} and {b.shape} without the batch")
        if op is operator.add and len(values) == 2 and a.shape == b.shape:
            return self.made(node(add, a.node, b.node))
        return self.made(op(*(each.node if isinstance(each, Value) else each for each in (a, b))))

    # axes ------------------------------------------------------------------------------------------------

    def axis(self, x: Value, dim: int) -> int:
        """Return an axis of an array with channels first and without a batch."""
        found = (dim + len(x.shape) + 1 if dim < 0 else dim) - 1
        if not 0 <= found < len(x.shape):
            self.refuse(f"along the axis {dim}, which is that of the batch or none")
        return found

    def op_flatten(self, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
        if start_dim == 1 and end_dim in (-1, len(x.shape)) and len(x.shape) > 1:
            return self.made(Flatten(order="channels_first")(x.node))
        return self.op_reshape(x)

    def op_reshape(self, x: Value, *_: Any) -> Value:
        shape = self.shape()
        if prod(shape) != prod(x.shape):
            self.refuse(f"from {x.shape} to {shape} the batch changes")
        return self.made(node(_First(_Reshape(shape)), x.node))

    def op_permute(self, x: Value, *dims: Any) -> Value:
        order = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
        if not order or order[0] != 0:
            self.refuse("it moves the batch")
        axes = tuple(self.axis(x, dim) for dim in order[1:])
        return self.made(node(_First(partial(jnp.transpose, axes=axes)), x.node))

    def op_transpose(self, x: Value, dim0: int, dim1: int) -> Value:
        axes = {"axis1": self.axis(x, dim0), "axis2": self.axis(x, dim1)}
        return self.made(node(_First(partial(jnp.swapaxes, **axes)), x.node))

    def op_mean(self, x: Value, dim: Any, keepdim: bool = False, **_: Any) -> Value:
        dims = tuple(self.axis(x, each) for each in (dim if isinstance(dim, list | tuple) else (dim,)))
        return self.made(node(_First(partial(jnp.mean, axis=dims, keepdims=keepdim)), x.node))

    def op_cat(self, tensors: Sequence[Value], dim: int = 0) -> Value:
        axis = self.axis(tensors[0], dim)
        op = concat if axis == 0 else _First(_Concatenate(axis))
        return self.made(node(op, *(each.node for each in tensors)))

    def op_chunk(self, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
        axis = self.axis(x, dim)
        size = -(-x.shape[axis] // chunks)
        return self._parts(x, axis, size)

    def op_split(self, x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
        if not isinstance(size, int):
            self.refuse("parts of several sizes")
        return self._parts(x, self.axis(x, dim), size)

    def _parts(self, x: Value, axis: int, size: int) -> tuple[Value, ...]:
        found = []
        for start in range(0, x.shape[axis], size):
            stop = min(start + size, x.shape[axis])
            shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
            found.append(Value(node(_First(_Part(axis, start, stop)), x.node), shape))
        return tuple(found)

    def op_getitem(self, x: Any, index: Any) -> Any:
        if not isinstance(x, Value):
            return x[index]
        index = index if isinstance(index, tuple) else (index,)
        if not index or index[0] != slice(None) or any(each is Ellipsis or each is None for each in index):
            self.refuse("an index that is not [:, ...] with slices and numbers")
        parts = tuple((each.start, each.stop, each.step) if isinstance(each, slice) else each for each in index[1:])
        return self.made(node(_First(_Index(parts)), x.node))

    def op_size(self, x: Value, dim: int | None = None) -> Any:
        """Return sizes, that of the batch as -1: reshaping asks PyTorch for the result's shape anyway."""
        sizes = (-1, *x.shape)
        return sizes if dim is None else sizes[dim]

    def op_getattr(self, x: Any, name: str) -> Any:
        if name == "shape" and isinstance(x, Value):
            return self.op_size(x)
        self.refuse(f"the attribute {name!r}")

    def op_interpolate(
        self, x: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
        **_: Any,
    ) -> Value:  # fmt: skip
        del size, scale_factor, align_corners
        shape = self.shape()
        times = [new // old for new, old in zip(shape[1:], x.shape[1:], strict=True)]
        if mode != "nearest" or any(old * k != new for old, new, k in zip(x.shape[1:], shape[1:], times, strict=True)):
            self.refuse("only whole multiples by the nearest neighbour")
        return self.made(node(_Repeat(tuple(times)), x.node))

    def op_pad(self, x: Value, pad: Sequence[int], mode: str = "constant", value: Number | None = 0) -> Value:
        if mode != "constant" or len(pad) > 2 * len(x.shape):
            self.refuse(f"padding by {mode!r}")
        pairs = [(int(lo), int(hi)) for lo, hi in zip(pad[::2], pad[1::2], strict=True)][::-1]
        pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
        return self.made(node(_First(_Pad(tuple(pairs), value or 0)), x.node))


# functions of arrays, compared by value --------------------------------------------------------------------


def _to_last(x: Array) -> Array:
    return jnp.moveaxis(x, 0, -1)


def _to_first(x: Array) -> Array:
    return jnp.moveaxis(x, -1, 0)


class _Named:
    @property
    def __name__(self) -> str:
        return str(type(self).__qualname__).strip("_").lower()


@dataclass(frozen=True)
class _First(_Named):
    """An op on arrays whose channels are first, done on those whose channels are last."""

    op: Callable[..., Any]
    weights: bool = False

    @property
    def __name__(self) -> str:
        op = self.op.func if isinstance(self.op, partial) else self.op
        return str(getattr(op, "__name__", "op"))

    def __call__(self, *args: Any) -> Any:
        params, xs = (args[:1], args[1:]) if self.weights else ((), args)
        y = self.op(*params, *(_to_first(x) if x.ndim > 1 else x for x in xs))
        return _to_last(y) if y.ndim > 1 else y


@dataclass(frozen=True)
class _Reshape(_Named):
    shape: Shape

    def __call__(self, x: Array) -> Array:
        return x.reshape(self.shape)


@dataclass(frozen=True)
class _Concatenate(_Named):
    axis: int

    def __call__(self, *xs: Array) -> Array:
        return jnp.concatenate(xs, self.axis)


@dataclass(frozen=True)
class _Part(_Named):
    axis: int
    start: int
    stop: int

    def __call__(self, x: Array) -> Array:
        return jax.lax.slice_in_dim(x, self.start, self.stop, axis=self.axis)


@dataclass(frozen=True)
class _Index(_Named):
    parts: tuple[Any, ...]

    def __call__(self, x: Array) -> Array:
        return x[tuple(slice(*part) if isinstance(part, tuple) else part for part in self.parts)]


@dataclass(frozen=True)
class _Repeat(_Named):
    times: Shape

    def __call__(self, x: Array) -> Array:
        for axis, k in enumerate(self.times):
            x = jnp.repeat(x, k, axis=axis)
        return x


@dataclass(frozen=True)
class _Pad(_Named):
    pairs: tuple[tuple[int, int], ...]
    value: Number

    def __call__(self, x: Array) -> Array:
        return jax.lax.pad(x, jnp.asarray(self.value, x.dtype), [(lo, hi, 0) for lo, hi in self.pairs])


@dataclass(frozen=True)
class _LayerNorm(_Named):
    axes: int
    epsilon: Number

    def __call__(self, params: Params, x: Array) -> Array:
        return layer_norm(params, x, axes=self.axes, epsilon=self.epsilon)


@dataclass(frozen=True)
class _InstanceNorm(_Named):
    channels: int
    epsilon: Number

    def __call__(self, params: Params, x: Array) -> Array:
        return group_norm(params, x, self.channels, epsilon=self.epsilon, spatial=x.ndim - 1)


# weights ---------------------------------------------------------------------------------------------------


def _entry_name(target: str) -> str:
    name = target.replace(".", "_")
    return f"_{name}" if name[:1].isdigit() else name


def _numpy(tensor: Any) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy())


def _arrays(tree: dict[str, Any]) -> dict[str, Array]:
    return {name: jnp.asarray(array) for name, array in tree.items()}


def _bias(module: Any) -> dict[str, Any]:
    return {} if module.bias is None else {"bias": _numpy(module.bias)}


def _kernel(module: Any) -> dict[str, Any]:
    """Return the kernel of a convolution, or of the one that is transposed."""
    return {"kernel": np.moveaxis(_numpy(module.weight), (0, 1), (-1, -2))} | _bias(module)


def _scale(module: Any) -> dict[str, Any]:
    weight = getattr(module, "weight", None)
    return ({} if weight is None else {"scale": _numpy(weight)}) | _bias(module)


def _tuple(value: Any, n: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * n


# names -----------------------------------------------------------------------------------------------------

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu, "relu6": jax.nn.relu6, "selu": jax.nn.selu, "silu": jax.nn.silu, "mish": jax.nn.mish,
    "hardswish": jax.nn.hard_swish, "hardsigmoid": jax.nn.hard_sigmoid, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh,
    "softplus": jax.nn.softplus, "softsign": jax.nn.soft_sign, "logsigmoid": jax.nn.log_sigmoid, "abs": jnp.abs,
    "exp": jnp.exp, "log": jnp.log, "sqrt": jnp.sqrt, "neg": jnp.negative, "square": jnp.square, "sin": jnp.sin,
    "cos": jnp.cos, "identity": jax.nn.identity, "contiguous": jax.nn.identity,
}  # fmt: skip

_ALIASES = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "div": "truediv", "multiply": "mul",
    "subtract": "sub", "view": "reshape", "swapaxes": "transpose", "concat": "cat", "negative": "neg",
    "log_sigmoid": "logsigmoid", "clip": "clamp", "adaptive_avg_pool1d": "adaptive_avg_pool",
    "adaptive_avg_pool2d": "adaptive_avg_pool", "adaptive_avg_pool3d": "adaptive_avg_pool",
    "adaptive_max_pool1d": "adaptive_max_pool", "adaptive_max_pool2d": "adaptive_max_pool",
    "adaptive_max_pool3d": "adaptive_max_pool", "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool",
    "avg_pool3d": "avg_pool", "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool",
    "boolean_dispatch": "max_pool", "dropout2d": "dropout_of_channels", "upsample": "interpolate",
}  # fmt: skip


def _itself(name: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda _: (name, {})


def _whole(name: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda module: (name, {"module": module})


def _with(name: str, *options: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda module: (name, {option: getattr(module, option) for option in options})


_MODULES: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "Linear": _whole("linear"), "GroupNorm": _whole("group_norm"), "LayerNorm": _whole("layer_norm"),
    "ReLU": _itself("relu"), "ReLU6": _itself("relu6"), "SELU": _itself("selu"), "SiLU": _itself("silu"),
    "Mish": _itself("mish"), "Hardswish": _itself("hardswish"), "Hardsigmoid": _itself("hardsigmoid"),
    "Sigmoid": _itself("sigmoid"), "Tanh": _itself("tanh"), "Softsign": _itself("softsign"),
    "LogSigmoid": _itself("logsigmoid"), "Identity": _itself("identity"),
    "LeakyReLU": _with("leaky_relu", "negative_slope"), "ELU": _with("elu", "alpha"),
    "GELU": _with("gelu", "approximate"), "Softmax": _with("softmax", "dim"), "LogSoftmax": _with("log_softmax", "dim"),
    "Flatten": _with("flatten", "start_dim", "end_dim"), "Dropout": _with("dropout", "p"),
    "Upsample": _with("interpolate", "mode"),
}  # fmt: skip
for _n in "123":
    _MODULES |= {
        f"Conv{_n}d": _whole("conv"), f"ConvTranspose{_n}d": _whole("conv_transpose"),
        f"BatchNorm{_n}d": _whole("batch_norm"), f"InstanceNorm{_n}d": _whole("instance_norm"),
        f"Dropout{_n}d": _with("dropout_of_channels", "p"),
        f"MaxPool{_n}d": _with(
            "max_pool", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
        ),
        f"AvgPool{_n}d": _with("avg_pool", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
        f"AdaptiveAvgPool{_n}d": _with("adaptive_avg_pool", "output_size"),
        f"AdaptiveMaxPool{_n}d": _with("adaptive_max_pool", "output_size"),
        f"ZeroPad{_n}d": lambda module: ("pad", {"pad": list(module.padding)}),
    }  # fmt: skip
