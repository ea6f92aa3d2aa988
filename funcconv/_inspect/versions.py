"""What a bug report needs to say about the machine and its software."""

import importlib.metadata
import os
import platform
from collections import Counter

import jax

from .._common.device import processor

_PACKAGES = ("funcconv", "jax", "jaxlib", "flax", "optax", "numpy")

# Options of JAX that change numbers, errors or speed, with their defaults.
_JAX_OPTIONS = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_platforms": None,
}


def versions() -> str:
    """Return five lines for a bug report: versions, devices, processor, options and operating system.

    Print the text and paste it into the report. It has no names of users, hosts or folders, except what you have
    written into `XLA_FLAGS`.

    Returns:
        A text of five lines:
        the versions of funcconv, Python, JAX, jaxlib, flax, optax and NumPy;
        the devices that JAX uses: their number, kind and platform;
        the processor, the number of its cores, and its vector instructions;
        `XLA_FLAGS`, and the options of JAX that differ from their defaults;
        the operating system.
        Facts that cannot be found out are "unknown", and missing packages are "not installed".

    Example:
        >>> import funcconv as fc
        >>> for line in fc.versions().splitlines():
        ...     print(line.partition(":")[0])
        versions
        devices
        processor
        options
        system
    """
    lines = {
        "versions": _versions(),
        "devices": _devices(),
        "processor": _processor(),
        "options": _options(),
        "system": platform.platform() or "unknown",
    }
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in lines.items())


def _versions() -> str:
    versions = {name: _version(name) for name in _PACKAGES}
    own = f"funcconv {versions.pop('funcconv')}, Python {platform.python_version()}"
    return ", ".join([own, *(f"{name} {version}" for name, version in versions.items())])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    try:
        counts = Counter((device.platform, device.device_kind) for device in jax.devices())
    except Exception as error:  # a report is wanted above all where no device works
        return f"unknown ({type(error).__name__}: {error})"
    return ", ".join(f"{count} x {kind} ({platform_name})" for (platform_name, kind), count in counts.items())


def _processor() -> str:
    """Return the name of the processor and its vector instructions, as far as the system tells them."""
    name, features = processor()
    return f"{name}, {os.cpu_count() or 'unknown'} cores, vector instructions: {' '.join(features) or 'unknown'}"


def _options() -> str:
    options = []
    for name, default in _JAX_OPTIONS.items():
        value = getattr(jax.config, name, default)  # not every version of JAX has all options
        value = getattr(value, "value", value)  # of an enum
        if value != default:
            options.append(f"{name}={value}")
    return f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}; {', '.join(options) or 'defaults of JAX'}"
