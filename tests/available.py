"""What is installed and what this processor can do. A test that needs more is skipped, and says what to install."""

import functools

import jax
import jax.numpy as jnp
import pytest

INSTALL = {
    "PIL": "pip install '.[images]'",
    "captum": "pip install captum==0.9.0",
    "datasets": "pip install datasets",
    "grain": "pip install grain",
    "jax2onnx": "pip install '.[onnx]'",
    "lineax": "pip install '.[curvature]'",
    "matfree": "pip install '.[curvature]'",
    "matplotlib": "pip install '.[draw]'",
    "onnx": "pip install '.[onnx]'",
    "onnxruntime": "pip install '.[onnx]'",
    "rich": "pip install '.[draw]'",
    "safetensors": "pip install safetensors",
    "tensorboardX": "pip install '.[tensorboard]'",
    "tensorflow": "pip install tensorflow",
    "timm": "pip install timm==1.0.31",
    "torch": "pip install torch==2.13.0",
    "torchvision": "pip install torchvision==0.28.0",
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
