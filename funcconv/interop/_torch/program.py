"""The operations of a PyTorch module, as `torch.export` lists them."""

import contextlib
import copy
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..._common.errors import FuncconvError
from ..._common.optional_packages import needs

# Batch norms count their steps by an addition, in training alone.
_IGNORED = {"add", "sym_size"}


@dataclass(frozen=True)
class Program:
    """What a module computes in evaluation mode.

    Attributes:
        module: the module.
        graph_module: the exported program.
        targets: for each placeholder that is a weight, its name in the module.
        tensors: weights by name: parameters, buffers and constants.
        kinds: for each name, `"param"`, `"buffer"`, `"constant"` (a buffer that PyTorch's state dict does not have) or
            `"literal"` (written in `forward`).
        inputs: the names of the placeholders that are inputs.
        examples: the example, with a batch of at least two.
        outputs: the module's outputs for it.
    """

    module: Any
    graph_module: Any
    targets: dict[str, str]
    tensors: dict[str, Any]
    kinds: dict[str, str]
    inputs: tuple[str, ...]
    examples: tuple[Any, ...]
    outputs: Any


def exported(module: Any, examples: Sequence[Any]) -> Program:
    """Export a module in evaluation mode, for a batch of any size.

    Args:
        module: the module; its mode and its weights do not change.
        examples: its inputs, each with the same batch axis in front.

    Returns:
        The program.

    Raises:
        FuncconvError: if PyTorch is not installed, or cannot export the module.
    """
    with needs("torch", "a module of PyTorch"):
        import torch
    _check_examples(torch, module, examples)
    training = {part: part.training for part in module.modules()}
    # torch.export takes a batch of one for a constant.
    inputs = tuple(torch.cat([x, x]) if len(x) == 1 else x.clone() for x in examples)
    batch = torch.export.Dim("batch", min=1)
    try:
        module.eval()
        with warnings.catch_warnings(), _drop_paths_as_dropout(module):
            warnings.simplefilter("ignore")  # PyTorch warns about its own functions
            with torch.no_grad():
                outputs = module(*(x.clone() for x in inputs))
            dynamic = _dynamic(module, inputs, batch)

            def export() -> Any:
                return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)

            program = export()
            _tell_training_code(module, program, export)
    except Exception as error:  # PyTorch and the module may raise anything
        text = " ".join(str(error).split())[:300]
        msg = (
            f"trace_torch: torch.export cannot export the module for a batch of any size: {type(error).__name__}: "
            f"{text}. Call the module on the example first; branches must not depend on values or on the batch size"
        )
        raise FuncconvError(msg) from error
    finally:
        for part, mode in training.items():
            part.training = mode
    return _program(module, program, inputs, outputs)


def _dynamic(module: Any, inputs: tuple[Any, ...], batch: Any) -> dict[str, Any]:
    """Declare for each argument of `forward` that the size of its first axis is the batch size."""
    dynamic: dict[str, Any] = {}
    bound = inspect.signature(module.forward).bind(*inputs)
    for name, value in bound.arguments.items():
        dynamic[name] = tuple({0: batch} for _ in value) if isinstance(value, tuple) else {0: batch}  # *args
    return dynamic


def _check_examples(torch: Any, module: Any, examples: Sequence[Any]) -> None:
    if not isinstance(module, torch.nn.Module):
        msg = f"trace_torch: expected a torch.nn.Module; got {type(module).__name__}. Wrap a function in a module"
        raise FuncconvError(msg)
    for x in examples:
        if not isinstance(x, torch.Tensor) or not x.ndim:
            description = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            msg = f"trace_torch: each example must be a tensor with a batch axis in front; got {description}"
            raise FuncconvError(msg)
    if len({len(x) for x in examples}) != 1 or not len(examples[0]):
        sizes = ", ".join(str(tuple(x.shape)) for x in examples)
        msg = f"trace_torch: all examples must have the same batch size, at least 1; got the shapes {sizes}"
        raise FuncconvError(msg)


def _program(module: Any, program: Any, examples: tuple[Any, ...], outputs: Any) -> Program:
    names = {"PARAMETER": "param", "BUFFER": "buffer", "CONSTANT_TENSOR": "constant"}
    targets, kinds, inputs = {}, {}, []
    first_names: dict[int, str] = {}  # tied weights are one tensor with several names
    for name, parameter in (*module.named_parameters(remove_duplicate=False), *module.named_buffers()):
        first_names.setdefault(id(parameter), name)
    own = dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
    tensors = {}
    for spec in program.graph_signature.input_specs:
        kind = names.get(spec.kind.name)
        if kind is None:
            if spec.kind.name != "USER_INPUT":
                msg = f"trace_torch: {spec.target!r} is a {spec.kind.name.lower()}, which a graph cannot contain"
                raise FuncconvError(msg)
            inputs.append(spec.arg.name)
            continue
        tensor = own.get(spec.target)
        if tensor is None:  # written in `forward`
            tensor, kind = program.constants[spec.target], "literal"
        target = first_names.get(id(tensor), spec.target)
        if kind == "buffer" and spec.persistent is False:
            kind = "constant"
        targets[spec.arg.name], tensors[target], kinds[target] = target, tensor, kind
    return Program(module, program.graph_module, targets, tensors, kinds, tuple(inputs), examples, outputs)


def in_float64(program: Program) -> tuple[Any, Any]:
    """Return the example and the module's outputs for it in float64, computed by a copy of the module."""
    import torch

    module = copy.deepcopy(program.module).double().eval()
    examples = tuple(x.double() if x.is_floating_point() else x for x in program.examples)
    with torch.no_grad():
        return examples, module(*(x.clone() for x in examples))


def outputs_in_evaluation(module: Any, examples: Sequence[Any]) -> Any:
    """Return the outputs of a module in evaluation mode; its own mode is left as it is."""
    import torch

    training = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            return module.eval()(*(x.clone() for x in examples))
    finally:
        for part, mode in training.items():
            part.training = mode


# drop paths -----------------------------------------------------------------------------------------------------


def drop_path_rate(module: Any) -> float | None:
    """Return the rate of a drop path (stochastic depth) of torchvision or timm; None for any other module."""
    kind = type(module).__module__.partition(".")[0], type(module).__name__
    if kind == ("torchvision", "StochasticDepth") and module.mode == "row":
        return float(module.p)
    if kind == ("timm", "DropPath") and module.scale_by_keep:
        return float(module.drop_prob or 0)
    return None


@contextlib.contextmanager
def _drop_paths_as_dropout(module: Any) -> Iterator[None]:
    """Let drop paths call dropout. In evaluation mode they return their input, so that no operation would be listed."""
    import torch

    paths = []
    for part in module.modules():
        rate = drop_path_rate(part)
        if rate is not None and "forward" not in vars(part):
            part.forward = partial(torch.nn.functional.dropout, p=rate, training=False)
            paths.append(part)
    try:
        yield
    finally:
        for part in paths:
            del part.forward


# code that runs in training alone -------------------------------------------------------------------------------


def _tell_training_code(module: Any, evaluated: Any, export: Callable[[], Any]) -> None:
    """Log a message if a module has operations that run in training mode only, such as random noise.

    Batch norms and dropout are the same operations in both modes. The module is exported a second time only if one of
    its parts reads `training` in `forward`; a part with running statistics is taken for a norm.

    Args:
        module: the module.
        evaluated: the program of its evaluation mode.
        export: a function that exports the module in its current mode.
    """
    if not any(_reads_training(part) for part in module.modules()):
        return
    module.train()
    try:
        trained = export()
    except Exception as error:  # a module may refuse an example in training, such as a batch that is too small
        logging.getLogger("funcconv").warning(
            "trace_torch: the module cannot be exported in training mode (%s), so it is not known whether it has "
            "operations there that the graph, which follows the evaluation mode, does not have",
            " ".join(str(error).split())[:200],
        )
        return
    only_in_training = Counter(_operations(trained))
    only_in_training.subtract(_operations(evaluated))
    operations = [
        f"{name} in {path or 'the outermost module'}" for (path, name), n in only_in_training.items() if n > 0
    ]
    if operations:
        listed = "; ".join(operations[:5]) + (f"; and {len(operations) - 5} more" if len(operations) > 5 else "")
        # Not a warning of Python, because nothing is wrong unless the graph is trained.
        logging.getLogger("funcconv").warning(
            "trace_torch: in training mode the module has operations that the graph does not have, because the graph "
            "follows the evaluation mode: %s. Evaluation is right; with train=True the graph leaves them out",
            listed,
        )


def _reads_training(part: Any) -> bool:
    if hasattr(part, "running_mean") or drop_path_rate(part) is not None:
        return False
    if type(part).__module__.startswith("torch.nn."):
        return bool(type(part).__name__ == "MultiheadAttention" and part.dropout)
    code = getattr(type(part).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def _operations(program: Any) -> list[tuple[str, str]]:
    """Return the path of the module and the name of each operation."""
    found = []
    for operation in program.graph_module.graph.nodes:
        if operation.op == "call_function":
            packet = getattr(operation.target, "overloadpacket", operation.target)
            name = str(getattr(packet, "__name__", packet))
            stack = operation.meta.get("nn_module_stack") or {}
            path = list(stack.values())[-1][0] if stack else ""
            name = name.rstrip("_")
            has_dropout = name == "scaled_dot_product_attention" and any(operation.args[4:5])
            if has_dropout or operation.kwargs.get("dropout_p"):
                name += " with dropout"
            if name not in _IGNORED:
                found.append((str(path), name))
    return found
