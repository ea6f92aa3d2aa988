"""Convolutions that users of JAX and other libraries reported as slow, with the shapes of their reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc


@dataclass(frozen=True)
class Reported:
    """One report: a convolution, or its transpose, and what of it was slow."""

    source: str  # the issue of the project that got the report
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    of: str = "value"  # "value", "gradients" by both operands, or "kernel gradient"
    op: Callable[..., Any] = fc.conv
    options: dict[str, Any] = field(default_factory=dict)
    layers: int = 1
    dtype: str = "float32"

    def arrays(self) -> tuple[Any, Any]:
        """Return a random kernel and image."""
        rng = np.random.default_rng(0)
        return tuple(
            jnp.asarray(rng.normal(size=shape).astype(np.float32), self.dtype) for shape in (self.kernel, self.image)
        )

    def compute(self, implementation: str | None, kernel: Any, x: Any) -> Any:
        """Compute what was slow."""
        value = partial(self._value, implementation)
        if self.of == "value":
            return value(kernel, x)
        argnums = 0 if self.of == "kernel gradient" else (0, 1)
        return jax.grad(lambda *arrays: jnp.square(value(*arrays).astype(jnp.float32)).sum(), argnums)(kernel, x)

    def _value(self, implementation: str | None, kernel: Any, x: Any) -> Any:
        for _ in range(self.layers):
            x = self.op({"kernel": kernel}, x, implementation=implementation, **self.options)
        return x


_DEPTHWISE_1D = {"padding": "SAME", "dilation": 32, "groups": 64}
_FILTERS = {"stride": 256}
_TRANSPOSED_3D = {"stride": 2, "padding": 1, "output_padding": 1}

CASES = {
    "four depthwise layers, 1-d, gradients": Reported(
        "jax 13800", (32, 1024, 512), (5, 1, 512), "gradients", options={"padding": "SAME", "groups": 512}, layers=4
    ),
    "depthwise 1-d, dilation 32": Reported("jax 26266", (32, 1024, 64), (7, 1, 64), options=_DEPTHWISE_1D),
    "depthwise 1-d, dilation 32, gradients": Reported(
        "jax 26266", (32, 1024, 64), (7, 1, 64), "gradients", options=_DEPTHWISE_1D
    ),
    "depthwise 3x3": Reported("jax 23713", (1, 124, 124, 256), (3, 3, 1, 256), options={"padding": 1, "groups": 256}),
    "depthwise 3x3, gradients": Reported(
        "jax 23713", (1, 124, 124, 256), (3, 3, 1, 256), "gradients", options={"padding": 1, "groups": 256}
    ),
    "filter bank": Reported("jax 23783", (4, 65536, 1), (1024, 1, 512), options=_FILTERS),
    "filter bank, transposed": Reported(
        "jax 23783", (4, 253, 512), (1024, 1, 512), op=fc.conv_transpose, options=_FILTERS
    ),
    "filter bank, transposed, gradients": Reported(
        "jax 23783", (4, 253, 512), (1024, 1, 512), "gradients", op=fc.conv_transpose, options=_FILTERS
    ),
    "transposed 3-d, kernel gradient": Reported(
        "jax 31662", (1, 32, 32, 32, 64), (3, 3, 3, 1, 64), "kernel gradient", fc.conv_transpose, _TRANSPOSED_3D
    ),
    "transposed 3-d, kernel gradient, bfloat16": Reported(
        "jax 31662",
        (1, 32, 32, 32, 64),
        (3, 3, 3, 1, 64),
        "kernel gradient",
        fc.conv_transpose,
        _TRANSPOSED_3D,
        dtype="bfloat16",
    ),
    "patches of 16, gradients": Reported(
        "jax 23085", (3, 224, 224, 3), (16, 16, 3, 768), "gradients", options={"stride": 16}
    ),
    "1x1 in two groups": Reported("keras 20471", (4, 64, 64, 512), (1, 1, 256, 128), options={"groups": 2}),
    "transposed from one position": Reported(
        "tensorflow 19611", (200, 1, 1, 1, 50), (28, 28, 1, 1, 50), op=fc.conv_transpose
    ),
}
