"""What is installed and what this processor can do. A test that needs more is skipped, and says what to install."""

import functools

import jax
import jax.numpy as jnp
import pytest

INSTALL = {
    "grain": "pip install grain",
    "jax2onnx": "pip install 'funcconv[onnx]'",
    "lineax": "pip install 'funcconv[curvature]'",
    "matfree": "pip install 'funcconv[curvature]'",
    "matplotlib": "pip install 'funcconv[draw]'",
    "onnx": "pip install 'funcconv[onnx]'",
    "onnxruntime": "pip install 'funcconv[onnx]'",
    "rich": "pip install 'funcconv[draw]'",
    "safetensors": "pip install safetensors",
    "tensorboardX": "pip install 'funcconv[tensorboard]'",
    "torch": "pip install torch==2.13.0",
}


def needed(module):
    """Return a module, or skip the test or the file that asks for it."""
    package = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"{package} is not installed: {INSTALL[package]}")


@functools.cache
def computes_float16():
    """Return whether XLA can compile float16 here. For processors without F16C (before 2012) it fails."""
    try:
        jax.jit(lambda x: x + 1)(jnp.ones(2, jnp.float16)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return False
    return True
