"""PyTorch modules as graphs: `torch.export` lists the operations of a module, and each becomes a node."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.declare.function import Function
from ..._graph.name.flatten import InputRow, Row, check_rows
from ..._graph.use.graph import Graph
from ..._graph.use.structure import from_parts
from .._matching import copied
from . import ops
from .entries import Entries
from .handlers import axes, constants, elementwise, layers, pools, reductions
from .in_place import InPlace
from .program import Program, exported
from .tensors import BATCH, Tensor, Weight, whole
from .translation import PendingRow, SymbolicSize, Translation
from .arrays import as_numpy

_HANDLERS: Mapping[str, Callable[..., Any]] = {
    **elementwise.HANDLERS,
    **axes.HANDLERS,
    **reductions.HANDLERS,
    **pools.HANDLERS,
    **constants.HANDLERS,
    **layers.HANDLERS,
}

# The two programs add the same numbers in different orders, and errors grow through the layers. A wrong translation
# differs in the first digits; so half of the digits, with a margin, is a safe bound.
_ERROR_MARGIN = 30
_LARGEST_LITERAL = 256  # numbers of a constant that is written into the graph; a larger one is kept in the state


def trace_torch(module: Any, example: Any, *, layout: str = "NCHW") -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Convert a PyTorch module to a graph, and copy its weights.

    `torch.export` lists the operations of the module in evaluation mode, for a batch of any size. Convolutions, linear
    maps, norms, pools and dropout become layers; each other operation becomes a node. The graph is then compared with
    the module on the example.

    Args:
        module: a `torch.nn.Module` that `torch.export` accepts, which means that no branch depends on the values of
            tensors. Its own mode does not matter and is restored. Whether dropout is active and batch norms use the
            batch is decided by `train=` of `graph.apply`.
        example: a tensor `(batch, channels, *spatial)`, or any tensor with a batch axis in front; for a module with
            several inputs a tuple of tensors. The batch size does not matter.
        layout: the axes of the graph's inputs and outputs: `"NCHW"` for channels first, as the module has them, or
            `"NHWC"` for channels last, where an array has at least one spatial axis. Default: `"NCHW"`.

    Returns:
        `(graph, params, state)`. Evaluate the network by `graph.apply(params, state, x)`. Nodes and entries are called
        as the modules are: `layer1/0/conv1` for `layer1.0.conv1`. A weight that is in no layer is an entry under its
        own name. `state` holds running statistics, buffers, and those weights that the module has but does not use in
        evaluation mode; it is `{}` if there are none.

    Raises:
        FuncconvError: if PyTorch is not installed, if `torch.export` cannot export the module, if an operation has no
            counterpart (the message names it and its module), or if the results of graph and module differ on the
            example.

    Example:
        >>> import funcconv as fc, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> x = torch.rand(2, 3, 6, 6)
        >>> graph, params, _ = fc.interop.trace_torch(net, x)
        >>> bool(abs(graph(params, x.numpy()) - net(x).detach().numpy()).max() < 1e-5)
        True
    """
    if layout not in ("NCHW", "NHWC"):
        msg = f"trace_torch: layout must be 'NCHW' or 'NHWC'; got {layout!r}"
        raise FuncconvError(msg)
    channels_first = layout == "NCHW"
    examples = example if isinstance(example, tuple | list) else (example,)
    program = exported(module, examples)
    graph, params, state = _graph(program, channels_first=channels_first)

    def as_own(tensor: Any) -> Any:
        array = as_numpy(tensor)
        return array if channels_first or array.ndim < 3 else np.moveaxis(array, 1, -1)

    # This program runs once, so that its compilation should be fast, not its code.
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    run = jax.jit(graph.apply, compiler_options=fast)
    outputs, _ = run(params, state, *map(as_own, program.examples))
    _check_same(outputs, [as_own(tensor) for tensor in _leaves(program.outputs)])
    return graph, params, state


def _graph(program: Program, *, channels_first: bool) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Return the graph of a program, its parameters and its state."""
    translation = Translation(program)
    signature: list[InputRow] = []
    values = _operations(translation, program.graph_module, None, signature, channels_first=channels_first)
    leaves = [_last(translation, value, channels_first=channels_first) for value in values]
    used = _used_rows(translation, [leaf.source for leaf in leaves])
    entries = Entries(translation, used)
    entries.make_rows()
    results = tuple(
        entries.source(leaf.source, "output") if isinstance(leaf.source, Weight) else entries.numbers[leaf.source]
        for leaf in leaves
    )
    entries.keep_unused()
    check_rows([row.name for row in signature], entries.rows)
    numbers = iter(results)
    tree = jax.tree.structure(_structure(program.outputs, lambda: next(numbers)))
    numbers = iter(results)
    ordered = jax.tree.leaves(_structure(program.outputs, lambda: next(numbers)))
    places = (None,) * len(entries.rows)
    graph = from_parts(Graph, tuple(signature), None, tuple(entries.rows), tuple(ordered), tree, None, places)
    return graph, *entries.trees(copied)


def _operations(
    translation: Translation,
    graph_module: Any,
    arguments: Any,
    signature: list[InputRow],
    *,
    channels_first: bool,
) -> Any:
    """Translate the operations of a program one after the other; return its outputs.

    Args:
        translation: the translation.
        graph_module: the program, or a part of it that is called like a function.
        arguments: what the part is called with; None for the whole program.
        signature: the inputs of the graph, which are added.
        channels_first: whether inputs have their channels first.

    Returns:
        The values that it returns.
    """
    given = None if arguments is None else iter(arguments)
    in_place = InPlace(translation, list(graph_module.graph.nodes))
    for operation in graph_module.graph.nodes:
        translation.operation = operation
        if operation.op == "placeholder":
            value = _placeholder(translation, signature, channels_first=channels_first) if given is None else next(given)
        elif operation.op == "get_attr":
            value = _attribute(translation, getattr(graph_module, operation.target))
        elif operation.op == "output":
            return translation.read(operation.args[0])
        elif str(operation.target).startswith("wrap_with_"):
            value = _wrapped(translation, operation, signature, channels_first=channels_first)
        else:
            value = _call(translation, in_place)
        translation.values[operation] = value
    return ()


def _wrapped(translation: Translation, operation: Any, signature: list[InputRow], *, channels_first: bool) -> Any:
    """Translate a part of the program that runs in another mode: without gradients, or without autocast."""
    args = list(operation.args)
    position = next(i for i, arg in enumerate(args) if hasattr(translation.values.get(arg), "graph"))
    part = translation.values[args[position]]
    if "autocast" in str(operation.target) and args[2] is not False and args[2] is not None:
        translation.refuse("autocast, which computes in another precision")
    values = _operations(
        translation, part, [translation.read(arg) for arg in args[position + 1 :]], signature, channels_first=channels_first
    )
    if "set_grad" in str(operation.target) and args[0] is False:
        translation.operation = operation
        return tuple(translation.like(jax.lax.stop_gradient, value) for value in values)
    return values


def _placeholder(translation: Translation, signature: list[InputRow], *, channels_first: bool) -> Tensor | None:
    operation, program = translation.operation, translation.program
    if operation.name in program.targets:
        name = program.targets[operation.name]
        return whole(Weight(tensor=name), tuple(program.tensors[name].shape), None)
    shape = translation.shape()
    sizes = tuple(dim.size for dim in shape[1:])
    dtype = translation.dtype()
    kept = None if dtype == np.float32 else dtype
    moved = channels_first and len(sizes) > 1
    number = len(signature)
    signature.append(InputRow(operation.name, sizes if moved or len(sizes) < 2 else (*sizes[1:], sizes[0]), kept))
    if not moved:
        axes = ((BATCH,), *((i,) for i in range(len(sizes))))
        if len(sizes) > 1:  # given with the channels last
            axes = ((BATCH,), (len(sizes) - 1,), *((i,) for i in range(len(sizes) - 1)))
            sizes = (*sizes[1:], sizes[0])
        return Tensor(number, sizes, axes)
    return whole(number, sizes, 0)


def _attribute(translation: Translation, value: Any) -> Any:
    """Return a constant of the program, or a part that is called like a function."""
    if not hasattr(value, "detach"):
        return value
    array = as_numpy(value)
    if array.size <= _LARGEST_LITERAL:
        return constants.listed(translation, array)
    name = f"constant_{len(translation.program.tensors)}"
    translation.program.tensors[name], translation.program.kinds[name] = value, "constant"
    return whole(Weight(tensor=name), array.shape, None)


def _call(translation: Translation, in_place: InPlace) -> Any:
    """Translate a call of a function."""
    operation = translation.operation
    target = operation.target
    packet = getattr(target, "overloadpacket", target)
    name = str(getattr(packet, "__name__", packet))
    handler = _HANDLERS.get(name) or _HANDLERS.get(name.removesuffix("_"))
    args, options = translation.read(operation.args), translation.read(dict(operation.kwargs))
    if handler is None:
        translation.refuse("it has no counterpart in funcconv; replace it in the module, or trace the parts around it")
    try:
        value = handler(translation, *args, **options)
    except (TypeError, AttributeError, ValueError, IndexError, KeyError) as error:  # arguments of another kind
        if isinstance(error, FuncconvError):
            raise
        translation.refuse(f"with these arguments: {type(error).__name__}: {error}")
    return in_place.after(operation, value)


def _last(translation: Translation, value: Any, *, channels_first: bool) -> Tensor:
    """Return an output as the graph returns it: stored as PyTorch sees it, or with its channels last."""
    if not isinstance(value, Tensor):
        what = "depends on the batch size" if isinstance(value, SymbolicSize) else f"is {value!r}"
        translation.refuse(f"an output {what}, and not a tensor")
    if value.batch_axis != 0 or len(value.axes[0]) != 1:
        translation.refuse(f"an output has its batch in the axis {value.batch_axis}; it must be the first axis alone")
    order = list(range(1, value.rank))
    return translation.stored(value, order if channels_first or len(order) < 2 else [*order[1:], order[0]])


def _used_rows(translation: Translation, results: list[Any]) -> set[int]:
    """Return the numbers of the rows that the outputs depend on."""
    first = translation.input_count
    used: set[int] = set()
    todo = [source for source in results if isinstance(source, int)]
    while todo:
        number = todo.pop() - first
        if number >= 0 and number not in used:
            used.add(number)
            todo += [operand for operand in translation.rows[number].operands if isinstance(operand, int)]
    return used


def _structure(output: Any, next_leaf: Callable[[], Any]) -> Any:
    """Return the structure of the module's output, with one value for each tensor."""
    if isinstance(output, Mapping):
        return {key: _structure(item, next_leaf) for key, item in output.items()}
    if isinstance(output, list):
        return [_structure(item, next_leaf) for item in output]
    if isinstance(output, tuple):
        return tuple(_structure(item, next_leaf) for item in output)
    return next_leaf()


def _leaves(output: Any) -> list[Any]:
    """Return the tensors of the module's output, in the order of the graph's."""
    tensors: list[Any] = []

    def visit(item: Any) -> None:
        if isinstance(item, Mapping):
            for key in sorted(item):
                visit(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                visit(part)
        else:
            tensors.append(item)

    visit(output)
    return tensors


def _check_same(outputs: Any, torch_outputs: Any) -> None:
    """Refuse a graph whose results differ from the module's, as if the module draws numbers in evaluation mode."""
    for output, torch_output in zip(jax.tree.leaves(outputs), torch_outputs, strict=True):
        graph_array, torch_array = np.asarray(output, np.float64), np.asarray(torch_output, np.float64)
        largest = np.abs(torch_array).max(initial=0)
        eps = float(jnp.finfo(output.dtype).eps) if jnp.issubdtype(output.dtype, jnp.inexact) else 0.0  # type: ignore[no-untyped-call]
        bound = _ERROR_MARGIN * eps**0.5 * largest
        if graph_array.shape != torch_array.shape:
            difference = f"in shape: {graph_array.shape}"
        elif not np.allclose(graph_array, torch_array, rtol=0, atol=bound, equal_nan=True):
            difference = f"by {np.abs(graph_array - torch_array).max():.2g}"
        else:
            continue
        msg = (
            f"trace_torch: the graph and the module differ {difference}, for the example, whose output has shape "
            f"{torch_array.shape} and values up to {largest:.2g}: the module may draw numbers where it is not in "
            "training; make it compute the same in every call"
        )
        raise FuncconvError(msg)
