"""The README: every block of Python in it runs, and it has exactly two set-up commands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]


def test_there_are_two_commands():
    commands = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]
    assert len(commands) == 2
    assert "examples/siamese_mnist.py" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("block", range(len(PYTHON)))
@pytest.mark.usefixtures("climate_of_a_user")
def test_python_runs(block):
    """Each block goes on where the ones before it have ended, and asserts what it says."""
    namespace = {}
    for body in PYTHON[: block + 1]:
        exec(compile(body, "README.md", "exec"), namespace)
    assert "assert" in PYTHON[block]
