"""Operations that change a tensor in place. A graph has no memory, so they become new values."""

from collections.abc import Sequence
from typing import Any

from .translation import Translation


class InPlace:
    """Tracks which results share memory, so that later operations read the changed values.

    Args:
        translation: the translation.
        operations: the operations of the program, in order.
    """

    def __init__(self, translation: Translation, operations: Sequence[Any]) -> None:
        self._translation = translation
        self._position = {operation: i for i, operation in enumerate(operations)}
        self._memory: dict[Any, Any] = {}  # by operation: the first operation whose memory it may share
        self._sharing: dict[Any, list[Any]] = {}  # by the first operation: all that may share its memory
        self._tensors: dict[Any, Any] = {}  # by operation that changed a tensor in place: the one that made the tensor

    def after(self, operation: Any, value: Any) -> Any:
        """Record what an operation shares or changes, from its declaration in PyTorch.

        Args:
            operation: the operation.
            value: its result.

        Returns:
            The result.
        """
        schema = getattr(operation.target, "_schema", None)
        if schema is None or not operation.args or not hasattr(operation.args[0], "op"):
            if getattr(operation.target, "__name__", "") == "getitem":
                self._share(operation)
            return value
        alias = schema.arguments[0].alias_info
        # In evaluation mode PyTorch's dropout returns its argument itself.
        is_view = (alias is not None and not alias.is_write) or schema.name == "aten::dropout"
        if is_view:
            self._share(operation)
        elif alias is not None and alias.is_write:
            self._change(operation, value)
        return value

    def note(self, operation: Any) -> None:
        """Record what an operation on constants shares. PyTorch has computed its result and made changes in place.

        Args:
            operation: the operation.
        """
        schema = operation.target._schema
        if schema.arguments and operation.args and hasattr(operation.args[0], "op"):
            alias = schema.arguments[0].alias_info
            if alias is not None:
                self._share(operation)
                if alias.is_write:
                    source = operation.args[0]
                    self._tensors[operation] = self._tensors.get(source, source)

    def _change(self, operation: Any, value: Any) -> None:
        """Set the new value of a tensor that an operation changes. Raise an error if a view of it is read again."""
        source = operation.args[0]
        weight = self._translation.program.targets.get(self._memory.get(source, source).name)
        if weight is not None:
            self._translation.refuse(
                f"it changes {weight!r} of the module in place, which a graph cannot do. Return the new value instead"
            )
        tensor = self._tensors[operation] = self._tensors.get(source, source)
        for other in self._share(operation):
            last_read = max((self._position[user] for user in other.users), default=-1)
            if self._tensors.get(other, other) is tensor:
                self._translation.values[other] = value
            elif last_read > self._position[operation]:
                self._translation.refuse(
                    f"it changes a tensor in place that shares memory with {other.name!r}, which is read "
                    "later. Copy it first"
                )

    def _share(self, operation: Any) -> list[Any]:
        """Record that a result may share the memory of the first argument; return all earlier results that share it."""
        source = operation.args[0]
        first = self._memory[operation] = self._memory.get(source, source)
        sharing = self._sharing.setdefault(first, [first])
        sharing.append(operation)
        return sharing[:-1]
