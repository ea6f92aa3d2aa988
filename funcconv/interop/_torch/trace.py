"""PyTorch modules as graphs: `torch.fx` lists the operations of a module, and each becomes one node.

Inside the graph, arrays have their channels last. The handlers translate PyTorch's axes. Operations that depend on
PyTorch's order of the numbers, such as `view`, are computed on an array with its channels first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.optional_packages import needs
from ..._graph.declare.function import node
from ..._graph.declare.node import Input
from ..._graph.use.graph import Graph
from .._matching import copied
from . import functions, modules, shapes
from . import ops as ops
from .translation import Arrays, Translation, Value
from .weights import as_numpy

_HANDLERS: dict[str, Callable[..., Any]] = modules.HANDLERS | functions.HANDLERS | shapes.HANDLERS

_ALIASES = {  # other names of functions, without "_" at the end, which PyTorch adds for those that work in place
    "div": "truediv",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "clip": "clamp",
    "log_sigmoid": "logsigmoid",
    "view": "reshape",
    "swapaxes": "transpose",
    "concat": "cat",
    "upsample": "interpolate",
}
for _axes in (1, 2, 3):
    _ALIASES |= {f"{_name}{_axes}d": _name for _name in ("max_pool", "avg_pool")}
    _ALIASES |= {f"{_name}{_axes}d": _name for _name in ("adaptive_max_pool", "adaptive_avg_pool")}
    _ALIASES[f"dropout{_axes}d"] = "dropout_of_channels"

# The result may share the memory of the input. Dropout returns its input itself in evaluation mode.
_MAY_SHARE_MEMORY = {
    *("identity", "contiguous", "detach", "dropout", "dropout_of_channels"),
    *("reshape", "flatten", "permute", "transpose", "chunk", "split", "getitem"),
}

# The two programs add the same numbers in different orders, and errors grow through the layers. A wrong translation
# differs in the first digits; so half of the digits, with a margin, is a safe bound.
_ERROR_MARGIN = 30


def trace_torch(module: Any, example: Any, *, layout: str = "NCHW") -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Convert a PyTorch module to a graph, and copy its weights.

    `torch.fx` traces the module. Each operation becomes one node. The graph is then compared with the module on the
    example.

    Args:
        module: a `torch.nn.Module` that `torch.fx` can trace, which means that no branch depends on the values of
            tensors. It is traced in evaluation mode; its own mode does not matter and is restored. Whether dropout is
            active and batch norms use the batch is decided by `train=` of `graph.apply`.
        example: a tensor with one batch axis, `(batch, channels, *spatial)`, or for a module with several inputs a
            tuple of tensors.
        layout: the axes of the graph's inputs and outputs: `"NCHW"` for channels first, as the module has them, or
            `"NHWC"` for channels last. Default: `"NCHW"`.

    Returns:
        `(graph, params, state)`. `state` holds the running statistics of batch norms; it is `{}` if there are none.
        Evaluate the network by `graph.apply(params, state, x)`. Nodes have the names that `torch.fx` gives them:
        `layer1_0_conv` for `layer1.0.conv`.

    Raises:
        FuncconvError: if PyTorch is not installed, if `torch.fx` cannot trace the module, if an operation has no
            counterpart (the message names it), or if the results of graph and module differ on the example.

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
    examples = example if isinstance(example, tuple) else (example,)
    traced, torch_outputs = _trace(module, examples)
    graph, params, state = _translate(Translation(traced, channels_first=channels_first))

    def as_own(tensor: Any) -> np.ndarray:
        array = as_numpy(tensor)
        return array if channels_first or array.ndim < 3 else np.moveaxis(array, 1, -1)

    outputs, _ = jax.jit(graph.apply)(params, state, *map(as_own, examples))
    _check_same(outputs, jax.tree.map(as_own, torch_outputs))
    return graph, params, state


def _trace(module: Any, examples: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return the operations of a module, with the shapes of their results, and the module's outputs."""
    with needs("torch", "a module of PyTorch"):
        from torch import fx, no_grad
        from torch.fx.passes.shape_prop import ShapeProp
    training = {part: part.training for part in module.modules()}
    try:
        module.eval()
        traced = fx.symbolic_trace(module)
        # Copies, because a module may change its input in place.
        ShapeProp(traced).propagate(*(tensor.clone() for tensor in examples))
        with no_grad():
            return traced, module(*(tensor.clone() for tensor in examples))
    except Exception as error:  # PyTorch and the module may raise anything
        text = str(error).splitlines()[0][:200]
        msg = f"trace_torch: torch.fx cannot trace the module: {type(error).__name__}: {text}"
        raise FuncconvError(msg) from error
    finally:
        for part, mode in training.items():
            part.training = mode


def _translate(translation: Translation) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Translate the operations of a module one after the other; return the graph, its parameters and its state."""
    outputs: Any = None
    for operation in translation.operations:
        translation.operation = operation
        if operation.op == "placeholder":
            translation.values[operation] = _input(translation)
        elif operation.op == "get_attr":
            translation.refuse("a weight or buffer outside of a layer")
        elif operation.op == "output":
            outputs = _output(translation, translation.read(operation.args[0]))
        else:
            result = _module(translation) if operation.op == "call_module" else _function(translation)
            translation.values[operation] = result
    graph = Graph(tuple(translation.inputs), outputs)
    used = set(graph.entries)  # the results of some operations are never read
    weights = {entry: arrays for entry, arrays in translation.weights.items() if entry in used}
    params = {entry: _copied(arrays) for entry, (arrays, _) in weights.items()}
    state = {entry: _copied(statistics) for entry, (_, statistics) in weights.items() if statistics}
    return graph, params, state


def _input(translation: Translation) -> Value:
    shape, name = translation.shape(), translation.operation.name
    if len(shape) < 2:  # no spatial axes
        declared = Input(name, shape)
    else:
        declared = Input(name, shape if translation.channels_first else (*shape[1:], shape[0]))
    translation.inputs.append(declared)
    is_moved = translation.channels_first and len(shape) > 1
    return Value(node(ops.to_last, declared, batched=False) if is_moved else declared, shape)


def _output(translation: Translation, output: Any) -> Any:
    """Return the nodes of the module's output, in its structure."""
    if isinstance(output, list | tuple):
        return tuple(_output(translation, item) for item in output)
    if isinstance(output, dict):
        return {name: _output(translation, item) for name, item in output.items()}
    if not isinstance(output, Value):
        translation.refuse(f"the output {output!r} is not a tensor")
    is_moved = translation.channels_first and len(output.shape) > 1
    return node(ops.to_first, output.node, batched=False) if is_moved else output.node


def _module(translation: Translation) -> Any:
    """Translate a call of a module."""
    operation = translation.operation
    module = translation.modules[operation.target]
    kind = type(module).__name__
    describe = modules.DESCRIPTIONS.get(kind)
    if describe is None:
        translation.refuse(f"a module {kind} has no counterpart")
    name, options = describe(module)
    if getattr(module, "inplace", False):
        options["inplace"] = True
    return _call(translation, name, options | translation.read(operation.kwargs))


def _function(translation: Translation) -> Any:
    """Translate a call of a function, or of a method, which `torch.fx` gives by its name."""
    target = translation.operation.target
    name = str(getattr(target, "__name__", target))
    return _call(translation, name, translation.read(translation.operation.kwargs))


def _call(translation: Translation, name: str, options: dict[str, Any]) -> Any:
    """Translate a call by the name of the function."""
    args = translation.read(translation.operation.args)
    inplace = bool(options.pop("inplace", False)) or name.endswith("_")
    name = name.rstrip("_")
    name = _ALIASES.get(name, name)
    if name in _MAY_SHARE_MEMORY:
        translation.share_memory()
    if name in functions.ELEMENTWISE and args:
        inplace = inplace or args[1:] == (True,)  # F.relu(x, True)
        if options or args[1:] not in ((), (True,), (False,)):
            translation.refuse(f"its options {options or args[1:]}")
        result = translation.apply(functions.ELEMENTWISE[name], args[0])
    elif name not in _HANDLERS:
        translation.refuse("it has no counterpart")
    else:
        try:
            result = _HANDLERS[name](translation, *args, **options)
        except TypeError as error:  # an argument that the handler does not have
            translation.refuse(str(error))
    if inplace and isinstance(result, Value):
        translation.change_in_place(result)
    return result


def _copied(arrays: Arrays) -> Arrays:
    return {name: copied(array) for name, array in arrays.items()}  # PyTorch may go on training


def _check_same(outputs: Any, torch_outputs: Any) -> None:
    """Refuse a graph whose results differ from the module's, as if the module runs code that `torch.fx` cannot see."""
    for output, torch_output in zip(jax.tree.leaves(outputs), jax.tree.leaves(torch_outputs), strict=True):
        graph_array, torch_array = np.asarray(output, np.float64), np.asarray(torch_output, np.float64)
        largest = np.abs(torch_array).max(initial=0)
        bound = _ERROR_MARGIN * float(jnp.finfo(output.dtype).eps) ** 0.5 * largest  # type: ignore[no-untyped-call]
        if graph_array.shape != torch_array.shape:
            difference = f"in shape: {graph_array.shape}"
        elif not np.allclose(graph_array, torch_array, rtol=0, atol=bound, equal_nan=True):
            difference = f"by {np.abs(graph_array - torch_array).max():.2g}"
        else:
            continue
        msg = (
            f"trace_torch: the graph and the module differ {difference}, for the example, whose output has shape "
            f"{torch_array.shape} and values up to {largest:.2g}: torch.fx does not see all that "
            "the module does, or it draws numbers where it is not in training"
        )
        raise FuncconvError(msg)
