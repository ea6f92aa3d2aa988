"""The five lines of a bug report."""

import platform

import flax
import jax
import jaxlib
import numpy as np
import optax
import pytest

import funcconv as fc
from funcconv._common import device as _device

NAMES = ["versions", "devices", "processor", "options", "system"]


def lines():
    text = fc.versions()
    found = dict(line.split(": ", 1) for line in text.split("\n"))
    assert list(found) == NAMES
    assert all(found.values())
    return found


def test_versions_and_devices():
    found = lines()
    for package in (jax, jaxlib, flax, optax, np):
        name = package.__name__
        assert f"{name} {package.__version__}" in found["versions"]
    assert f"Python {platform.python_version()}" in found["versions"]
    device = jax.devices()[0]
    assert f"{jax.device_count()} x {device.device_kind} ({device.platform})" in found["devices"]
    assert platform.system() in found["system"] or "macOS" in found["system"]


@pytest.mark.parametrize(("option", "value"), [("jax_debug_nans", True), ("jax_default_matmul_precision", "highest")])
def test_options_in_force(monkeypatch, option, value):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag=3\n--other")
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        assert f"{option}={value}" in lines()["options"]
        assert "'--some_flag=3\\n--other'" in lines()["options"]
    finally:
        jax.config.update(option, before)
    assert f"{option}={value}" not in lines()["options"]


def test_vector_features(monkeypatch, tmp_path):
    text = (
        "processor : 0\nmodel name\t: A Fast One @ 3 GHz\nflags : fpu avx avx2 fma\n\nprocessor : 1\nflags : avx512f\n"
    )
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(_device, "_CPU_INFO", tmp_path / "cpuinfo")
    assert lines()["processor"].startswith("A Fast One @ 3 GHz, ")
    assert lines()["processor"].endswith("vector instructions: avx fma avx2")


def test_it_never_fails(monkeypatch, tmp_path):
    def refuse(*_, **__):
        msg = "no\ndevice"
        raise RuntimeError(msg)

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(_device, "_CPU_INFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "processor", str)
    monkeypatch.setattr(platform, "machine", str)
    monkeypatch.setattr(platform, "platform", str)
    found = lines()
    assert found["devices"] == "unknown (RuntimeError: no device)"
    assert found["processor"].startswith("unknown, ")
    assert found["system"] == "unknown"
