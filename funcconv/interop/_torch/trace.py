"""PyTorch modules as graphs: `torch.export` lists the operations of a module, and each becomes a node."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.flatten import InputRow, check_rows
from ..._graph.use.graph import Graph
from ..._graph.use.structure import from_parts
from ..._weight_files.arrays import as_numpy
from .._matching import copied
from .entries import Entries
from .operations import translate
from .program import Program, exported, in_float64
from .tensors import Tensor, Weight
from .translation import SymbolicSize, Translation

# The two programs add the same numbers in different orders, and errors grow through the layers. A wrong translation
# differs in the first digits; so the first half of the digits must agree.
_ERROR_MARGIN = 30


def trace_torch(module: Any, example: Any, *, layout: str = "NCHW") -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Convert a PyTorch module to a graph, and copy its weights.

    `torch.export` lists the operations of the module in evaluation mode, for a batch of any size. Convolutions, linear
    maps, norms, pools, dropout, and the drop paths of torchvision and timm become layers, as do weight norms and
    spectral norms of `torch.nn.utils.parametrizations`; each other operation becomes a node. The graph
    is then compared with the module on the example.

    Args:
        module: a `torch.nn.Module` that `torch.export` accepts, which means that no branch depends on the values of
            tensors. Its mode does not matter and is restored. In the graph, `graph.apply(..., train=True)` makes
            dropout and drop paths active, batch norms use the batch, and spectral norms update their vectors.
        example: a tensor `(batch, channels, *spatial)`, or any tensor with a batch axis in front; for a module with
            several inputs a tuple of tensors. The batch size does not matter.
        layout: the axes of the graph's inputs and outputs: `"NCHW"` for channels first, as the module has them, or
            `"NHWC"` for channels last, where an array has at least one spatial axis. Default: `"NCHW"`.

    Returns:
        `(graph, params, state)`. Evaluate the network by `graph.apply(params, state, x)`. Nodes and entries have the
        names of the modules: `layer1/0/conv1` for `layer1.0.conv1`. A weight that is in no layer is an entry under its
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

    _check_same(graph, params, state, program, as_own)
    return graph, params, state


def _graph(program: Program, *, channels_first: bool) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """Return the graph of a program, its parameters and its state."""
    translation = Translation(program)
    signature: list[InputRow] = []
    values = translate(translation, program.graph_module, None, signature, channels_first=channels_first)
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


def _last(translation: Translation, value: Any, *, channels_first: bool) -> Tensor:
    """Return an output of the graph, with the axes of PyTorch or with its channels last."""
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


def leaves_of_outputs(output: Any) -> list[Any]:
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


def _check_same(graph: Graph, params: Any, state: Any, program: Program, as_own: Callable[[Any], Any]) -> None:
    """Raise an error if graph and module differ, for example because the module draws numbers in evaluation mode."""

    def differs(trees: Any, examples: Any, torch_outputs: Any) -> str | None:
        # This program runs once, so fast compilation matters more than a fast program.
        fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        outputs, _ = jax.jit(graph.apply, compiler_options=fast)(*trees, *map(as_own, examples))
        return differences(jax.tree.leaves(outputs), [as_own(tensor) for tensor in leaves_of_outputs(torch_outputs)])

    difference = differs((params, state), program.examples, program.outputs)
    if difference is None:
        return
    # A network may enlarge the errors of rounding more than that. In float64 they are too small to be enlarged so much.
    with jax.enable_x64(True):  # noqa: FBT003
        examples, outputs = in_float64(program)
        difference = differs(jax.tree.map(_wide, (params, state)), examples, outputs)
    if difference is not None:
        msg = (
            f"trace_torch: the graph and the module differ {difference} on the example. The module may draw random "
            "numbers in evaluation mode. Change it so that every call computes the same"
        )
        raise FuncconvError(msg)


def _wide(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def differences(outputs: Any, torch_outputs: Any) -> str | None:
    """Return how the outputs of graph and module differ; None if by no more than rounding."""
    for output, torch_output in zip(outputs, torch_outputs, strict=True):
        graph_array, torch_array = np.asarray(output, np.float64), np.asarray(torch_output, np.float64)
        largest = np.abs(torch_array).max(initial=0)
        eps = float(jnp.finfo(output.dtype).eps) if jnp.issubdtype(output.dtype, jnp.inexact) else 0.0  # type: ignore[no-untyped-call]
        bound = _ERROR_MARGIN * eps**0.5 * largest
        if graph_array.shape != torch_array.shape:
            return f"in shape: {graph_array.shape} and {torch_array.shape}"
        if not np.allclose(graph_array, torch_array, rtol=0, atol=bound, equal_nan=True):
            return f"by {np.abs(graph_array - torch_array).max():.2g}, where values are up to {largest:.2g}"
    return None
