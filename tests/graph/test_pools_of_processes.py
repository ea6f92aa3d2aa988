"""A pool of processes takes a graph, computes it, and returns an equal one."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
TESTS = Path(__file__).parents[1]


def test_spawned_and_forked_processes_compute_a_graph():
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "pools.py")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [m for m in ("spawn", "fork") if m in multiprocessing.get_all_start_methods()]
