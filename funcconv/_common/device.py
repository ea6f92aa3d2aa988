"""What identifies the device on which programs run."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

# Vector instructions, on which depend the programs that XLA generates for a CPU, as Linux names them.
_VECTOR_FEATURES = ("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "sve2")
_CPU_INFO = Path("/proc/cpuinfo")  # which Linux alone has
_LIMIT = re.compile(r"--xla_cpu_max_isa=(\S+)")  # an option of XLA that makes it compile for an older processor


def described_device() -> dict[str, Any]:
    """Return what the speed of programs depends on: of a CPU, its name, instructions and cores; else JAX's name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return {"platform": device.platform, "kind": device.device_kind}
    name, features = processor()
    limit = _LIMIT.findall(os.environ.get("XLA_FLAGS", ""))
    return {
        "platform": "cpu",
        "kind": name,
        "features": features,
        "cores": cores(),
        "max_isa": limit[-1] if limit else None,
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def processor() -> tuple[str, list[str]]:
    """Return the name of the processor, or "unknown", and its vector instructions as far as the system tells them."""
    facts = _cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = set((facts.get("flags") or facts.get("Features") or "").split())  # of x86, and of Arm
    return name, [feature for feature in _VECTOR_FEATURES if feature in flags]


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing on other systems."""
    try:
        text = _CPU_INFO.read_text(errors="replace")
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        # Linux repeats the facts for each core; the first are kept.
        facts.setdefault(name.strip(), value.strip())
    return facts
