"""What can happen to files and to the processes that write them: flipped bits, cuts, a full disk, a kill."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
CACHE = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")


def flipped_bits(data: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of a bit, drawn at random, and the data with that bit flipped, `count` times."""
    for bit in rng.choice(8 * len(data), min(count, 8 * len(data)), replace=False).tolist():
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def cuts(data: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[int, bytes]]:
    """Yield a length, drawn at random, and that many of the first bytes, `count` times; also none of them."""
    for length in {0, *rng.choice(len(data), min(count, len(data)), replace=False).tolist()}:
        yield length, data[:length]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes: writing more fails as on a full disk, also from C++."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores the signal, so that writing fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def child(code: str, folder: Path, *, cached: bool = False) -> subprocess.Popen[str]:
    """Start a Python process that runs `code` in `folder`, with this package; its streams are pipes of text.

    If `cached`, it compiles as the tests do, and shares their cache. Do not kill it while it compiles.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    options = {f"JAX_{name.upper()}": str(getattr(jax.config, f"jax_{name}")) for name in CACHE} if cached else {}
    options |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if cached else {}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=options | os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"},
    )


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait for the first line that a process prints, then for some seconds, and kill it as SIGKILL does."""
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    time.sleep(seconds)
    process.kill()
    process.communicate()
