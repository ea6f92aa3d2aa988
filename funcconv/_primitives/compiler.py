"""Options for the XLA compiler."""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax

from .forms import library

# Options that XLA marks as experimental, and that not all versions know. They turn on oneDNN, and turn off the two
# libraries (YNNPACK and XNNPACK) that would otherwise get the convolutions. An XLA without oneDNN gets no options:
# without YNNPACK, jaxlib 0.10 compiles some float64 convolutions for minutes on processors without AVX-512.
_ONEDNN_CALLS = "xla_cpu_experimental_onednn_custom_call"
_ONEDNN: dict[str, str | bool] = {
    _ONEDNN_CALLS: True,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_use_xnnpack": False,
}


def compiler_options(platform: str | None = None) -> dict[str, str | bool] | None:
    """Return compiler options that make convolutions fast, for the outermost `jax.jit`.

    On the CPU they turn on oneDNN, if the installed jaxlib has it (0.12 has, 0.10 has not). The first call finds this
    out by compiling a small convolution. With oneDNN, results can differ in their last digits. With jaxlib 0.12, JAX
    warns that it cannot write a program with oneDNN to its persistent compilation cache, and continues.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`. Default: None, the platform of JAX's default backend.

    Returns:
        A dict for `jax.jit(f, compiler_options=...)`, which accepts options on an outermost function only. None if no
        options help: on a GPU or TPU, or with a jaxlib without oneDNN. Use `compiled_with` inside `f`, so that its
        convolutions are traced for these options.

    Raises:
        Nothing.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 1, 8, (3, 3))
        >>> step = jax.jit(jax.grad(lambda p, x: fc.conv(p, x).sum()), compiler_options=fc.compiler_options())
        >>> step(params, jnp.ones((2, 8, 8, 1)))["kernel"].shape
        (3, 3, 1, 8)
    """
    options = _probed() if (platform or jax.default_backend()) == "cpu" else None
    return options and dict(options)


@contextmanager
def compiled_with(options: Mapping[str, str | bool] | None) -> Iterator[None]:
    """Trace the code in a `with` block for the given compiler options.

    Compiler options cannot be read while a function is traced. Inside this block, convolutions use forms that are fast
    with the options; with oneDNN, most are left to it. Use it inside the jitted function: around a call it has an
    effect only if the call traces the function. Results can differ in their last digits.

    Args:
        options: the options that `jax.jit` gets as `compiler_options`, such as the result of `compiler_options()`. None
            means no options.

    Yields:
        Nothing.

    Raises:
        Nothing.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params, options = fc.init_conv(jax.random.key(0), 32, 32, (3, 3), groups=32), fc.compiler_options()
        >>> def loss(params, x):
        ...     with fc.compiled_with(options):
        ...         return fc.conv(params, x, groups=32).sum()
        >>> gradient = jax.jit(jax.grad(loss), compiler_options=options)
        >>> gradient(params, jnp.ones((2, 8, 8, 32)))["kernel"].shape
        (3, 3, 1, 32)
    """
    with library(library_of(options)):
        yield


def library_of(options: Mapping[str, str | bool] | None) -> str | None:
    """Return the library that compiler options turn on for convolutions."""
    return "onednn" if (options or {}).get(_ONEDNN_CALLS) else None


def candidates() -> dict[str, dict[str, str | bool] | None]:
    """Return the sets of compiler options that are worth measuring, by a name for each; the first has none."""
    options = compiler_options()
    return {"none": None} | ({} if options is None else {"oneDNN": options})


@functools.cache
def _probed() -> dict[str, str | bool] | None:
    """Compile a small convolution with oneDNN, and return the options if XLA used it."""
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.default_device(jax.devices("cpu")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns that it cannot write this program to its cache
        shapes = (jnp.zeros(shape, jnp.float32) for shape in ((1, 8, 8, 4), (3, 3, 4, 4)))
        lowered = jax.jit(conv).lower(*shapes)
        try:
            program = lowered.compile(compiler_options=_ONEDNN).as_text()
        except jax.errors.JaxRuntimeError:  # this XLA does not know one of the options
            return None
    return _ONEDNN if "onednn" in str(program) else None
