"""Options for XLA's compiler."""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax

from ._lowering import library

# In order of preference; the options are XLA's own, marked experimental there, and not known to all its versions.
_YNNPACK, _ONEDNN_CALLS = "xla_cpu_experimental_ynn_fusion_type", "xla_cpu_experimental_onednn_custom_call"
_ONEDNN: dict[str, str | bool] = {_YNNPACK: "", _ONEDNN_CALLS: True, "xla_cpu_use_xnnpack": False}
_PRODUCTS_AND_SUMS = ",".join(f"LIBRARY_FUSION_TYPE_{what}" for what in ("DOT", "REDUCE", "INDIVIDUAL_DOT"))
_NO_CONVOLUTIONS: dict[str, str | bool] = {_YNNPACK: _PRODUCTS_AND_SUMS}  # for these it gathers all windows


def compiler_options(platform: str | None = None) -> dict[str, str | bool] | None:
    """Return the options with which XLA compiles convolutions and products best, for the outermost `jax.jit`.

    On the CPU that is oneDNN where the installed jaxlib can use it, which is tried once, and otherwise YNNPACK for
    products and sums alone, and XLA's own code on all cores for convolutions. Values may then differ in their last
    digits from those without. With jaxlib 0.12 JAX warns that it cannot write a program with oneDNN to its persistent
    compilation cache, and goes on.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`; None is that of JAX's default backend.

    Returns:
        Options for `jax.jit(f, compiler_options=...)`, which takes them on an outermost function only; None where
        nothing helps. `compiled_with` tells what is traced of them.

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
    """Try what the installed XLA can do on a small convolution."""
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.default_device(jax.devices("cpu")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that what is tried here cannot be cached
        lowered = jax.jit(conv).lower(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4)))
        for options, needed in ((_ONEDNN, "onednn"), (_NO_CONVOLUTIONS, "")):
            try:
                if needed in str(lowered.compile(compiler_options=options).as_text()):
                    return options
            except jax.errors.JaxRuntimeError:  # an option that this XLA does not know
                continue
    return None
