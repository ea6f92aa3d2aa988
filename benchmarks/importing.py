"""What importing takes, over importing what a script imports anyway: fresh processes, in turns, by the median."""

import subprocess
import sys
import tempfile

from .tables import Table
from .timing import medians


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return the table. Bytecode is at hand, as it is from the second import on of what is installed."""
    scripts = {"funcconv": "import funcconv", "jax, flax, optax": "import jax, flax, optax", "jax": "import jax"}
    with tempfile.TemporaryDirectory() as folder:

        def run(script: str) -> None:
            command = [sys.executable, "-X", f"pycache_prefix={folder}", "-c", script]
            subprocess.run(["env", "-u", "PYTHONDONTWRITEBYTECODE", *command], check=True)

        ways = {name: lambda script=script: run(script) for name, script in scripts.items()}
        seconds = medians(ways, rounds=3 if quick else 15, patience=120)
    theirs = seconds["jax, flax, optax"]
    table = {name: {"seconds": value, "over jax, flax, optax": value / theirs} for name, value in seconds.items()}
    return {"import": table}
