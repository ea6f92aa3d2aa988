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

from ..._common.errors import FuncconvError
from ..._common.optional_packages import needs
from ..._common.types import Number, Shape
from ..._graph.combine.merge import add, concat
from ..._graph.declare.conv_layers import Conv, ConvTranspose
from ..._graph.declare.function import node
from ..._graph.declare.layer import Layer
from ..._graph.declare.layers import Dense, Flatten, Pool
from ..._graph.declare.node import Input, Node
from ..._graph.declare.training_layers import BatchNorm, Dropout, GroupNorm
from ..._graph.use.graph import Graph
from ..._ops.adaptive import adaptive_pool
from ..._ops.dense import dense
from ..._ops.norms import layer_norm
from .._matching import copied
from . import ops as ops
from .weights import as_numpy


@dataclass(frozen=True)
class Value:
    """A node and the shape that PyTorch sees, `(channels, *spatial)`, without the batch."""

    node: Node
    shape: Shape


class BatchSize:
    """The size of the batch, which a graph does not know: PyTorch reshapes by it, and nothing is computed with it."""


def trace_torch(module: Any, example: Any, *, layout: str = "NCHW") -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Return a module of PyTorch as a graph, with its weights.

    Args:
        module: that `torch.fx` can trace: without branches that depend on values. Its `training` says nothing: whether
            dropout draws and norms use the batch is said where the graph is evaluated.
        example: a tensor with one batch axis, `(batch, channels, *spatial)`, or a tuple of them, for the inputs.
        layout: `"NCHW"` for a graph that takes and gives arrays as the module does; `"NHWC"` for channels last.

    Returns:
        `(graph, params, state)`. The state has the running figures of batch norms, `{}` without any:
        `graph.apply(params, state, x)`. Nodes have the names of `torch.fx`: `layer1_0_conv` for `layer1.0.conv`.

    Raises:
        FuncconvError: if PyTorch is not installed, an operation has no counterpart (its name is told), or the graph
            does not give what the module gives for the example, as where the module does what `torch.fx` cannot see.

    Example:
        >>> import funcconv as fc, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> x = torch.rand(2, 3, 6, 6)
        >>> graph, params, _ = fc.interop.trace_torch(net, x)
        >>> bool(abs(graph(params, x.numpy()) - net(x).detach().numpy()).max() < 1e-5)
        True
    """
    with needs("torch", "a module of PyTorch"):
        from torch import fx, no_grad
        from torch.fx.passes.shape_prop import ShapeProp
    if layout not in ("NCHW", "NHWC"):
        msg = f"trace_torch: layout must be 'NCHW' or 'NHWC'; got {layout!r}"
        raise FuncconvError(msg)
    examples = example if isinstance(example, tuple) else (example,)
    modes = {each: each.training for each in module.modules()}
    try:
        module.eval()
        traced = fx.symbolic_trace(module)
        ShapeProp(traced).propagate(*(each.clone() for each in examples))
        with no_grad():
            expected = module(*(each.clone() for each in examples))
    except Exception as error:  # whatever PyTorch says
        msg = (
            f"trace_torch: torch.fx cannot trace the module: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )
        raise FuncconvError(msg) from error
    finally:
        for each, training in modes.items():
            each.training = training
    first = layout == "NCHW"
    graph, params, state = _Trace(traced, first=first).run()
    xs = [_moved(as_numpy(each), first=first) for each in examples]
    found, _ = jax.jit(graph.apply)(params, state, *xs)
    _check_same(found, jax.tree.map(lambda each: _moved(as_numpy(each), first=first), expected))
    return graph, params, state


def _moved(array: np.ndarray, *, first: bool) -> np.ndarray:
    return array if first or array.ndim < 3 else np.moveaxis(array, 1, -1)


def _check_same(found: Any, expected: Any) -> None:
    """Refuse a graph that does not give what the module gives, for reasons that no operation shows."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        own, theirs = np.asarray(a, np.float64), np.asarray(b, np.float64)
        largest = np.abs(theirs).max(initial=0)
        bound = 30 * float(jnp.finfo(a.dtype).eps) ** 0.5 * largest  # type: ignore[no-untyped-call]
        if own.shape != theirs.shape or not np.allclose(own, theirs, rtol=0, atol=bound, equal_nan=True):
            apart = f"by {np.abs(own - theirs).max():.2g}" if own.shape == theirs.shape else f"in shape: {own.shape}"
            msg = (
                f"trace_torch: the graph and the module differ {apart}, for the example, whose output has shape "
                f"{theirs.shape} and values up to {largest:.2g}: torch.fx does not see all that "
                "the module does, or it draws numbers where it is not in training"
            )
            raise FuncconvError(msg)


class _Trace:
    """The translation of one module."""

    def __init__(self, traced: Any, *, first: bool) -> None:
        from torch.nn import functional

        self.traced, self.first = traced, first
        self.modules = dict(traced.named_modules())
        self.values: dict[Any, Any] = {}
        self.inputs: list[Input] = []
        self.layers: dict[str, Layer] = {}  # by the path of the module
        self.owners: dict[int, str] = {}  # of parameters: the entry that has them
        self.weights: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}  # by entry: parameters and state
        self.dispatched = {getattr(functional, name): name for name in _DISPATCHED}
        self.memory: dict[Any, Any] = {}  # by operation: the first one whose numbers it may share
        self.tensor: dict[Any, Any] = {}  # by one that changed a tensor in place: the one that made it
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

    def done(self, op: Callable[..., Any], *xs: Value, **options: Any) -> Value:
        """Return a function of values, with its options, as the value of the operation, whose name it has."""
        op = partial(op, **options) if options else op
        return self.made(node(op, *(x.node for x in xs), name=self.at.name, batched=False))

    def done_first(self, op: Callable[..., Any], x: Value, **options: Any) -> Value:
        """Return a function that sees the channels first as the value of the operation."""
        if len(x.shape) < 2 and len(self.shape()) < 2:
            return self.done(op, x, **options)
        return self.done(partial(ops.channels_first, partial(op, **options) if options else op), x)

    # what torch.fx calls its operations ------------------------------------------------------------------

    def _placeholder(self) -> Value:
        shape = self.shape()
        moved = self.first and len(shape) > 1
        declared = Input(self.at.name, shape if self.first or len(shape) < 2 else (*shape[1:], shape[0]))
        self.inputs.append(declared)
        return Value(node(ops.to_last, declared, batched=False) if moved else declared, shape)

    def _get_attr(self) -> NoReturn:
        self.refuse("a weight or buffer outside of a layer")

    def _call_function(self) -> Any:
        name = self.dispatched.get(self.at.target) or getattr(self.at.target, "__name__", self.at.target)
        return self._called(str(name), self.read(self.at.args), self.read(self.at.kwargs))

    def _call_method(self) -> Any:
        return self._called(str(self.at.target), self.read(self.at.args), self.read(self.at.kwargs))

    def _call_module(self) -> Any:
        module = self.modules[self.at.target]
        kind = type(module).__name__
        known = _MODULES.get(kind)
        if known is None:
            self.refuse(f"a module {kind} has no counterpart")
        name, options = known(module)
        options |= {"inplace": True} if getattr(module, "inplace", False) else {}
        return self._called(name, self.read(self.at.args), options | self.read(self.at.kwargs))

    def _called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bare = name.rstrip("_")
        inplace = bool(options.pop("inplace", False)) or bare != name
        name = _ALIASES.get(bare, bare)
        if name in _SAME_MEMORY and self.at.args:
            self.memory[self.at] = self.memory_of(self.at.args[0])
        if name in _ELEMENTWISE and args:
            inplace = inplace or args[1:] == (True,)
            if options or args[1:] not in ((), (True,), (False,)):
                self.refuse(f"its options {options or args[1:]}")
            found = self.done(_ELEMENTWISE[name], args[0])
        else:
            method = getattr(self, f"op_{name}", None)
            if method is None:
                self.refuse("it has no counterpart")
            try:
                found = method(*args, **options)
            except TypeError as error:
                self.refuse(str(error))
        if inplace and isinstance(found, Value):
            self.changed(self.at.args[0], found)
        return found

    def changed(self, source: Any, found: Value) -> None:
        """Give a tensor that is changed in place its new value; others in its memory must not be read again."""
        tensor, memory = self.tensor.get(source, source), self.memory_of(source)
        self.tensor[self.at], self.memory[self.at] = tensor, memory
        order = {each: i for i, each in enumerate(self.traced.graph.nodes)}
        for each in order:
            last = max((order[user] for user in each.users), default=-1)
            if self.tensor.get(each, each) is tensor:
                self.values[each] = found
            elif self.memory_of(each) is memory and last > order[self.at]:
                self.refuse(f"it changes in place what {each.name!r} shares, which is read again")

    def memory_of(self, operation: Any) -> Any:
        """Return the operation that made the memory in which a value lies."""
        return self.memory.get(operation, operation)

    def _outputs(self, found: Any) -> Any:
        if isinstance(found, Value):
            return node(ops.to_first, found.node, batched=False) if self.first and len(found.shape) > 1 else found.node
        if isinstance(found, list | tuple):
            return tuple(self._outputs(each) for each in found)
        if isinstance(found, dict):
            return {name: self._outputs(each) for name, each in found.items()}
        self.refuse(f"an output {found!r} is no tensor")

    # layers with weights ---------------------------------------------------------------------------------

    def layer(self, make: Callable[..., Layer], params: dict[str, Any], state: dict[str, Any] | None = None) -> Layer:
        """Return the layer of a module: the same one wherever it is called, and its entry wherever its weights are."""
        if self.at.target not in self.layers:
            entry = self.entry(params, state or {})
            self.layers[self.at.target] = make(name=self.at.name, params=None if entry == self.at.name else entry)
        return self.layers[self.at.target]

    def with_weights(self, op: Callable[..., Any], x: Value, params: dict[str, Any]) -> Value:
        """Apply an op that is no layer of funcconv's to the weights of a module."""
        return self.made(node(op, x.node, params=self.entry(params, {}), name=self.at.name, batched=False))

    def entry(self, params: dict[str, Any], state: dict[str, Any]) -> str:
        """Return the entry of a module's weights: another module's, if it has the same, and in the same places."""
        own = [*self.modules[self.at.target].parameters(recurse=False)]
        owners = {self.owners.setdefault(id(each), self.at.name) for each in own}
        if len(owners) > 1 or (state and owners - {self.at.name}):
            self.refuse(f"it shares some of its weights with {sorted(owners - {self.at.name})}, but not all")
        name: str = owners.pop() if owners else self.at.name
        if name in self.weights and {k: v.shape for k, v in self.weights[name][0].items()} != {
            k: v.shape for k, v in params.items()
        }:
            self.refuse(f"it uses the weights of {name!r} in another way")
        self.weights.setdefault(name, (params, state))
        return name

    def op_conv(self, x: Value, module: Any) -> Value:
        n = len(module.kernel_size)
        if len(x.shape) != n + 1:
            self.refuse(f"its input has shape {x.shape} without the batch")
        padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        padding = {"same": "SAME", "valid": "VALID"}.get(padding, padding) if isinstance(padding, str) else padding
        window, dilation = tuple(module.kernel_size), tuple(module.dilation)
        return self.made(self.layer(
            partial(
                Conv, module.out_channels, window, stride=tuple(module.stride), padding=padding, dilation=dilation,
                groups=module.groups, pad_mode=module.padding_mode, bias=module.bias is not None,
            ),
            _kernel(module),
        )(x.node))  # fmt: skip

    def op_conv_transpose(self, x: Value, module: Any) -> Value:
        return self.made(self.layer(
            partial(
                ConvTranspose, module.out_channels, tuple(module.kernel_size), stride=tuple(module.stride),
                padding=tuple(module.padding), dilation=tuple(module.dilation), groups=module.groups,
                output_padding=tuple(module.output_padding), bias=module.bias is not None,
            ),
            _kernel(module),
        )(x.node))  # fmt: skip

    def op_linear(self, x: Value, module: Any) -> Value:
        params = {"kernel": as_numpy(module.weight).T} | _bias(module)
        if len(x.shape) > 1:
            return self.with_weights(partial(ops.with_weights_channels_first, dense), x, params)
        make = partial(Dense, module.out_features, bias=module.bias is not None)
        return self.made(self.layer(make, params)(x.node))

    def op_batch_norm(self, x: Value, module: Any) -> Value:
        if not module.track_running_stats or module.momentum is None:
            self.refuse("a batch norm without running statistics, or with their plain mean")
        state = {"mean": as_numpy(module.running_mean), "var": as_numpy(module.running_var)}
        return self.made(self.layer(
            partial(
                BatchNorm, momentum=1 - module.momentum, epsilon=module.eps, scale=module.affine, bias=module.affine
            ),
            _scale(module), state,
        )(x.node))  # fmt: skip

    def op_group_norm(self, x: Value, module: Any) -> Value:
        make = partial(GroupNorm, module.num_groups, epsilon=module.eps, scale=module.affine, bias=module.affine)
        return self.made(self.layer(make, _scale(module))(x.node))

    def op_instance_norm(self, x: Value, module: Any) -> Value:
        if module.track_running_stats:
            self.refuse("an instance norm with running statistics")
        return self.with_weights(partial(ops.instance_norm, epsilon=module.eps), x, _scale(module))

    def op_layer_norm(self, x: Value, module: Any) -> Value:
        op = partial(layer_norm, axes=len(module.normalized_shape), epsilon=module.eps)
        return self.with_weights(partial(ops.with_weights_channels_first, op), x, _scale(module))

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
        return self.made(Pool(window, stride=stride, padding=padding, name=self.at.name, **options)(x.node))

    def op_adaptive_avg_pool(self, x: Value, output_size: Any) -> Value:
        return self._adapted(x, output_size, "mean")

    def op_adaptive_max_pool(self, x: Value, output_size: Any, return_indices: bool = False) -> Value:
        if return_indices:
            self.refuse("indices of a pool")
        return self._adapted(x, output_size, "max")

    def _adapted(self, x: Value, output_size: Any, reduce: str) -> Value:
        wanted = _tuple(output_size, len(x.shape) - 1)
        sizes = tuple(own if each is None else each for each, own in zip(wanted, x.shape[1:], strict=True))
        return self.done(adaptive_pool, x, output_size=sizes, reduce=reduce)

    # activations with options, and dropout ---------------------------------------------------------------

    def op_leaky_relu(self, x: Value, negative_slope: Number = 0.01) -> Value:
        return self.done(ops.leaky_relu, x, negative_slope=negative_slope)

    def op_elu(self, x: Value, alpha: Number = 1.0) -> Value:
        return self.done(jax.nn.elu, x, alpha=alpha)

    def op_gelu(self, x: Value, approximate: str = "none") -> Value:
        return self.done(jax.nn.gelu, x, approximate=approximate == "tanh")

    def op_softplus(self, x: Value, beta: Number = 1, threshold: Number = 20) -> Value:
        return self.done(ops.softplus, x, beta=beta, threshold=threshold)

    def op_clamp(self, x: Value, min: Number | None = None, max: Number | None = None) -> Value:
        return self.done(ops.clamp, x, low=min, high=max)

    def op_hardtanh(self, x: Value, min_val: Number = -1.0, max_val: Number = 1.0) -> Value:
        return self.done(ops.clamp, x, low=min_val, high=max_val)

    def op_softmax(self, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
        return self._along(jax.nn.softmax, x, dim, dtype)

    def op_log_softmax(self, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
        return self._along(jax.nn.log_softmax, x, dim, dtype)

    def _along(self, op: Callable[..., Any], x: Value, dim: int | None, dtype: Any) -> Value:
        if dim is None or dtype is not None:
            self.refuse("it needs dim, and no other dtype")
        return self.done(op, x, axis=self.own_axis(x, dim))

    def op_dropout(self, x: Value, p: Number = 0.5, training: bool = True) -> Value:
        del training
        return self.made(Dropout(p, name=self.at.name)(x.node))

    def op_dropout_of_channels(self, x: Value, p: Number = 0.5, training: bool = True) -> Value:
        del training
        return self.made(Dropout(p, whole_channels=True, name=self.at.name)(x.node))

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

    def op_floordiv(self, a: Any, b: Any) -> Any:
        if isinstance(a, Value) or isinstance(b, Value):
            self.refuse("of values that are no sizes")
        return self._arithmetic(operator.floordiv, a, b)

    def _arithmetic(self, op: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        values = [each for each in (a, b) if isinstance(each, Value)]
        sizes = [each for each in (a, b) if isinstance(each, BatchSize)]
        if values and sizes:
            self.refuse("of values and the size of the batch, which a graph does not know")
        if not values:  # of sizes, which are numbers here
            return sizes[0] if sizes else op(a, b)
        if len(values) == 2 and len(a.shape) != len(b.shape):
            self.refuse(f"values of shapes {a.shape} and {b.shape} without the batch")
        if op is operator.add and len(values) == 2 and a.shape == b.shape:
            return self.done(add, a, b)
        return self.made(op(*(each.node if isinstance(each, Value) else each for each in (a, b))))

    # axes ------------------------------------------------------------------------------------------------

    def axis(self, x: Value, dim: int) -> int:
        """Return an axis of an array with channels first and without a batch."""
        found = (dim + len(x.shape) + 1 if dim < 0 else dim) - 1
        if not 0 <= found < len(x.shape):
            self.refuse(f"along the axis {dim}, which is that of the batch or none")
        return found

    def own_axis(self, x: Value, dim: int) -> int:
        """Return an axis of an array with channels last and without a batch."""
        return (self.axis(x, dim) - 1) % len(x.shape)

    def op_flatten(self, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
        if start_dim == 1 and end_dim in (-1, len(x.shape)) and len(x.shape) > 1:
            return self.made(Flatten(order="channels_first", name=self.at.name)(x.node))
        return self.op_reshape(x)

    def op_reshape(self, x: Value, *_: Any) -> Value:
        shape = self.shape()
        if prod(shape) != prod(x.shape):
            self.refuse(f"from {x.shape} to {shape} the batch changes")
        return self.done_first(jnp.reshape, x, shape=shape)

    def op_permute(self, x: Value, *dims: Any) -> Value:
        order = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
        if not order or order[0] != 0:
            self.refuse("it moves the batch")
        axes = tuple(self.axis(x, dim) for dim in order[1:])
        return self.done_first(jnp.transpose, x, axes=axes)

    def op_transpose(self, x: Value, dim0: int, dim1: int) -> Value:
        return self.done_first(jnp.swapaxes, x, axis1=self.axis(x, dim0), axis2=self.axis(x, dim1))

    def op_mean(self, x: Value, dim: Any, keepdim: bool = False) -> Value:
        dims = tuple(self.axis(x, each) for each in (dim if isinstance(dim, list | tuple) else (dim,)))
        return self.done_first(jnp.mean, x, axis=dims, keepdims=keepdim)

    def op_cat(self, tensors: Sequence[Value], dim: int = 0) -> Value:
        if self.axis(tensors[0], dim) == 0:
            return self.done(concat, *tensors)
        return self.done(ops.concatenate, *tensors, axis=self.own_axis(tensors[0], dim))

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
            op = partial(ops.part, axis=(axis - 1) % len(x.shape), start=start, stop=stop)
            found.append(Value(node(op, x.node, batched=False), shape))
        return tuple(found)

    def op_getitem(self, x: Any, index: Any) -> Any:
        if not isinstance(x, Value):
            return x[index]
        index = index if isinstance(index, tuple) else (index,)
        if not index or index[0] != slice(None) or any(each is Ellipsis or each is None for each in index):
            self.refuse("an index that is not [:, ...] with slices and numbers")
        parts = tuple((each.start, each.stop, each.step) if isinstance(each, slice) else each for each in index[1:])
        return self.done_first(ops.index, x, parts=parts)

    def op_size(self, x: Value, dim: int | None = None) -> Any:
        """Return sizes; reshaping asks PyTorch for the result's shape anyway."""
        sizes = (BatchSize(), *x.shape)
        return sizes if dim is None else sizes[dim]

    def op_getattr(self, x: Any, name: str) -> Any:
        if name == "shape" and isinstance(x, Value):
            return self.op_size(x)
        self.refuse(f"the attribute {name!r}")

    def op_interpolate(
        self, x: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None,
        recompute_scale_factor: Any = None, antialias: bool = False,
    ) -> Value:  # fmt: skip
        del size, align_corners, recompute_scale_factor, antialias
        shape = self.shape()
        times = [new // old for new, old in zip(shape[1:], x.shape[1:], strict=True)]
        whole = all(old * k == new for old, new, k in zip(x.shape[1:], shape[1:], times, strict=True))
        factors = times if scale_factor is None else _tuple(scale_factor, len(times))
        if mode != "nearest" or not whole or any(each not in (None, k) for each, k in zip(factors, times, strict=True)):
            self.refuse("only whole multiples by the nearest neighbour")
        return self.done(ops.repeat, x, times=tuple(times))

    def op_pad(self, x: Value, pad: Sequence[int], mode: str = "constant", value: Number | None = 0) -> Value:
        if mode != "constant" or len(pad) > 2 * len(x.shape):
            self.refuse(f"padding by {mode!r}")
        pairs = [(int(lo), int(hi)) for lo, hi in zip(pad[::2], pad[1::2], strict=True)][::-1]
        pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
        return self.done(ops.pad, x, pairs=(*pairs[1:], pairs[0]), value=value or 0)


# weights ---------------------------------------------------------------------------------------------------


def _arrays(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: copied(array) for name, array in tree.items()}  # PyTorch may go on training


def _bias(module: Any) -> dict[str, Any]:
    return {} if module.bias is None else {"bias": as_numpy(module.bias)}


def _kernel(module: Any) -> dict[str, Any]:
    """Return the kernel of a convolution, or of the one that is transposed."""
    return {"kernel": np.moveaxis(as_numpy(module.weight), (0, 1), (-1, -2))} | _bias(module)


def _scale(module: Any) -> dict[str, Any]:
    weight = getattr(module, "weight", None)
    return ({} if weight is None else {"scale": as_numpy(weight)}) | _bias(module)


def _tuple(value: Any, n: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * n


# names -----------------------------------------------------------------------------------------------------

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu, "relu6": ops.relu6, "selu": jax.nn.selu, "silu": jax.nn.silu, "mish": jax.nn.mish,
    "hardswish": ops.hardswish, "hardsigmoid": ops.hardsigmoid, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh,
    "softsign": jax.nn.soft_sign, "logsigmoid": jax.nn.log_sigmoid, "abs": ops.absolute, "exp": jnp.exp, "log": jnp.log,
    "sqrt": jnp.sqrt, "neg": jnp.negative, "square": jnp.square, "sin": jnp.sin, "cos": jnp.cos,
    "identity": jax.nn.identity, "contiguous": jax.nn.identity, "clone": jax.nn.identity,
    "detach": jax.lax.stop_gradient,
}  # fmt: skip

_SAME_MEMORY = {  # what may give the numbers of its input, and not a copy of them
    "identity", "contiguous", "detach", "reshape", "flatten", "permute", "transpose", "chunk", "split", "getitem",
    "dropout", "dropout_of_channels",
}  # fmt: skip

_DISPATCHED = (  # functions of torch.nn.functional that do not know their own names
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
)  # fmt: skip

_ALIASES = {
    "div": "truediv", "multiply": "mul",
    "subtract": "sub", "view": "reshape", "swapaxes": "transpose", "concat": "cat", "negative": "neg",
    "log_sigmoid": "logsigmoid", "clip": "clamp", "adaptive_avg_pool1d": "adaptive_avg_pool",
    "adaptive_avg_pool2d": "adaptive_avg_pool", "adaptive_avg_pool3d": "adaptive_avg_pool",
    "adaptive_max_pool1d": "adaptive_max_pool", "adaptive_max_pool2d": "adaptive_max_pool",
    "adaptive_max_pool3d": "adaptive_max_pool", "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool",
    "avg_pool3d": "avg_pool", "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool",
    "dropout1d": "dropout_of_channels", "dropout2d": "dropout_of_channels", "dropout3d": "dropout_of_channels",
    "upsample": "interpolate",
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
    "Upsample": _with("interpolate", "size", "scale_factor", "mode"),
    "Softplus": _with("softplus", "beta", "threshold"), "Hardtanh": _with("hardtanh", "min_val", "max_val"),
}  # fmt: skip
for _n in "123":
    _MODULES |= {
        f"Conv{_n}d": _whole("conv"), f"ConvTranspose{_n}d": _whole("conv_transpose"),
        f"BatchNorm{_n}d": _whole("batch_norm"), f"InstanceNorm{_n}d": _whole("instance_norm"),
        f"Dropout{_n}d": _with("dropout_of_channels", "p"),
        f"MaxPool{_n}d": _with(
            "max_pool", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
        ),
        f"AvgPool{_n}d": _with(
            "avg_pool", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
            *(("divisor_override",) if _n > "1" else ()),
        ),
        f"AdaptiveAvgPool{_n}d": _with("adaptive_avg_pool", "output_size"),
        f"AdaptiveMaxPool{_n}d": _with("adaptive_max_pool", "output_size"),
        f"ZeroPad{_n}d": lambda module: ("pad", {"pad": list(module.padding)}),
    }  # fmt: skip
