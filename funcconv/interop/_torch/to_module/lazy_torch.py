"""The package PyTorch, which is optional and imported when it is first used."""

import importlib
from typing import Any


class _Lazy:
    """A module that is imported when one of its attributes is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


torch: Any = _Lazy("torch")
functional: Any = _Lazy("torch.nn.functional")
