"""Options for the XLA compiler."""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError
from .forms import library

# Options that XLA marks as experimental, and that not all versions know. XLA computes large convolutions with the
# library YNNPACK (XNNPACK in older versions) unless it is turned off, also if oneDNN is turned on.
_ONEDNN_CALLS, _YNN_FUSIONS = "xla_cpu_experimental_onednn_custom_call", "xla_cpu_experimental_ynn_fusion_type"
_ONEDNN: dict[str, str | bool] = {_ONEDNN_CALLS: True}
_NO_YNN: dict[str, str | bool] = {_YNN_FUSIONS: "", "xla_cpu_use_xnnpack": False}
_ONEDNN_ALONE = _ONEDNN | _NO_YNN


def compiler_options(platform: str | None = None, *, libraries: str | None = None) -> dict[str, str | bool] | None:
    """Return compiler options that make convolutions fast, for the outermost `jax.jit`.

    On the CPU they turn on oneDNN, if the installed jaxlib contains it (0.12 does, 0.10 does not). The first call
    compiles a small convolution to find out. With oneDNN, results can differ in their last digits. With jaxlib 0.12,
    JAX warns that it cannot write a program with oneDNN to its persistent compilation cache, and continues.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`. Default: None, the platform of JAX's default backend.
        libraries: `"onednn"` turns off XLA's other libraries for convolutions, so that oneDNN computes nearly all of
            them. Inference becomes faster, but many training steps become slower. Default: None, oneDNN in addition to
            the other libraries. With the default, three networks took 0.8 to 1.0 times the processor time that they
            take without options.

    Returns:
        A dict for `jax.jit(f, compiler_options=...)`, which accepts options on an outermost function only. None if no
        options help: on a GPU or TPU, or with a jaxlib without oneDNN. Use `compiled_with` inside `f`, so that its
        convolutions are traced for these options.

    Raises:
        FuncconvError: if `libraries` is neither None nor `"onednn"`.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 1, 8, (3, 3))
        >>> step = jax.jit(jax.grad(lambda p, x: fc.conv(p, x).sum()), compiler_options=fc.compiler_options())
        >>> step(params, jnp.ones((2, 8, 8, 1)))["kernel"].shape
        (3, 3, 1, 8)
    """
    if libraries not in (None, "onednn"):
        msg = f"compiler_options: libraries must be None or 'onednn'; got {libraries!r}"
        raise FuncconvError(msg)
    name = "oneDNN" if libraries is None else "oneDNN without YNN"
    return candidates(platform).get(name)


def candidates(platform: str | None = None) -> dict[str, dict[str, str | bool] | None]:
    """Return the sets of compiler options that are worth measuring, by a name for each; the first has none.

    All of them are accepted by this XLA. An XLA without oneDNN gets no options: without YNNPACK, jaxlib 0.10 compiles
    some float64 convolutions for minutes on processors without AVX-512.
    """
    named = {"oneDNN": _ONEDNN, "YNN off": _NO_YNN, "oneDNN without YNN": _ONEDNN_ALONE}
    is_cpu = (platform or jax.default_backend()) == "cpu"
    has_onednn = is_cpu and _accepted(tuple(_ONEDNN.items()))
    return {"none": None} | {
        name: dict(options) for name, options in named.items() if has_onednn and _accepted(tuple(options.items()))
    }


@contextmanager
def compiled_with(options: Mapping[str, str | bool] | None) -> Iterator[None]:
    """Trace the code in a `with` block for the given compiler options.

    Compiler options cannot be read while a function is traced. Inside this block, convolutions use forms that are fast
    with the options; with oneDNN alone (`libraries="onednn"`), most are left to it. Results can differ in their last
    digits.

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
    """Return the libraries that these compiler options turn on: `"onednn"`, `"onednn and ynn"` or None."""
    options = options or {}
    if not options.get(_ONEDNN_CALLS):
        return None
    # Where YNNPACK is on too, it takes the large convolutions from oneDNN, and is slow for depthwise kernels.
    return "onednn" if options.get(_YNN_FUSIONS) == "" else "onednn and ynn"


@functools.cache
def _accepted(options: tuple[tuple[str, str | bool], ...]) -> bool:
    """Return whether XLA accepts options, and uses oneDNN if they turn it on, by compiling a small convolution."""
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    with jax.default_device(jax.devices("cpu")[0]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns that it cannot write a program with oneDNN to its cache
        shapes = (jnp.zeros(shape, jnp.float32) for shape in ((1, 8, 8, 4), (3, 3, 4, 4)))
        lowered = jax.jit(conv).lower(*shapes)
        try:
            program = lowered.compile(compiler_options=dict(options)).as_text()
        except jax.errors.JaxRuntimeError:  # this XLA does not know one of the options
            return False
    return _ONEDNN_CALLS not in dict(options) or "onednn" in str(program)
