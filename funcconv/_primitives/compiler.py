"""Options for XLA's compiler."""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax

from .forms import library

# XLA's own options, which it marks as experimental and not all its versions know. They turn on oneDNN, and turn off the
# two libraries that would take convolutions away from it. An XLA without oneDNN gets no options: with YNN off,
# jaxlib 0.10 compiles some float64 convolutions for minutes on processors without AVX-512.
_ONEDNN_CALLS = "xla_cpu_experimental_onednn_custom_call"
_ONEDNN: dict[str, str | bool] = {
    _ONEDNN_CALLS: True,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_use_xnnpack": False,
}


def compiler_options(platform: str | None = None) -> dict[str, str | bool] | None:
    """Return the options with which XLA compiles convolutions best, for the outermost `jax.jit`.

    On the CPU these turn on oneDNN, if the installed jaxlib can use it (0.12 can, 0.10 cannot). This is tried once, on
    a small convolution. Results may differ in their last digits from those without options. With jaxlib 0.12, JAX
    warns that it cannot write a program with oneDNN to its persistent compilation cache, and continues.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`. Default: the platform of JAX's default backend.

    Returns:
        Options for `jax.jit(f, compiler_options=...)`, which accepts them on an outermost function only. None if no
        options help: on a GPU or TPU, and with a jaxlib without oneDNN. Use `compiled_with` where `f` is traced.

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
    """Say, where a function is traced, with which of `compiler_options` it will be compiled.

    XLA's options cannot be seen while a program is made for it. With this, convolutions take forms that are fast with
    them: with oneDNN most are left to it. It is a part of what is traced, so it belongs inside of the function that is
    jitted; around a call it has an effect only if that call traces. Values differ in their last digits, if at all.

    Args:
        options: what `jax.jit` is given as `compiler_options`; None is for none.

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
    token = library.set("onednn" if (options or {}).get(_ONEDNN_CALLS) else None)
    try:
        yield
    finally:
        library.reset(token)


@functools.cache
def _probed() -> dict[str, str | bool] | None:
    """Compile a small convolution with oneDNN, and return the options if XLA used it."""
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.default_device(jax.devices("cpu")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns that it cannot cache this program
        shapes = (jnp.zeros(shape, jnp.float32) for shape in ((1, 8, 8, 4), (3, 3, 4, 4)))
        lowered = jax.jit(conv).lower(*shapes)
        try:
            program = lowered.compile(compiler_options=_ONEDNN).as_text()
        except jax.errors.JaxRuntimeError:  # this XLA does not know one of the options
            return None
    return _ONEDNN if "onednn" in str(program) else None
