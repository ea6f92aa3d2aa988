"""What a result file says about the machine."""

import datetime
import os
import platform
from typing import Any

import jax

from funcconv._common.device import cores, described_device, processor


def about(device: Any) -> dict[str, Any]:
    """Return the version of JAX, the device, the processor, the number of cores, the options and the date."""
    name, instructions = processor()
    return {
        "jax": jax.__version__,
        "device": device.device_kind,
        "platform": device.platform,
        "machine": platform.machine(),
        "processor": name,
        "cores": cores(),
        "instructions": instructions,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def place(device: Any) -> str:
    """Return the platform for the name of a file, with the limit of the vector instructions if `XLA_FLAGS` has one."""
    limit = described_device().get("max_isa") if device.platform == "cpu" else None
    return f"{device.platform}-{limit.lower()}" if limit else device.platform
