"""What a module computes in training mode alone, which a graph of its evaluation mode does not have."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

# Batch norms count their steps by an addition, in training alone.
_IGNORED = {"add", "sym_size"}


def warn_of_training_code(module: Any, evaluated: Any, export: Callable[[], Any]) -> None:
    """Warn if a module has operations in training mode that it does not have in evaluation mode, such as drop path.

    Batch norms and dropout are the same operations in both modes. The module is exported a second time only if one of
    its parts reads `training` in `forward`; a part with running statistics is taken for a norm.

    Args:
        module: the module.
        evaluated: the program of its evaluation mode.
        export: exports the module in its present mode.
    """
    if not any(_reads_training(part) for part in module.modules()):
        return
    module.train()
    try:
        trained = export()
    except Exception:  # a module may refuse an example in training, such as a batch that is too small
        return
    only_in_training = Counter(_operations(trained))
    only_in_training.subtract(_operations(evaluated))
    found = [f"{name} in {path or 'the outermost module'}" for (path, name), n in only_in_training.items() if n > 0]
    if found:
        listed = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        warnings.warn(
            f"trace_torch: in training mode the module has operations that the graph does not have, because the graph "
            f"follows the evaluation mode: {listed}. Evaluation is right; with train=True the graph leaves these out",
            stacklevel=4,  # the line of the user's that calls trace_torch
        )


def _reads_training(part: Any) -> bool:
    if type(part).__module__.startswith("torch.nn.") or hasattr(part, "running_mean"):
        return False
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
            if name.rstrip("_") not in _IGNORED:
                found.append((str(path), name.rstrip("_")))
    return found
