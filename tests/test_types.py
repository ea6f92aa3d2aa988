"""The annotations hold: every op runs with them enforced, in a process of its own."""

import subprocess
import sys
from pathlib import Path

CHECK = """
from jaxtyping import install_import_hook
with install_import_hook("funcconv", "beartype.beartype"):
    import funcconv
import conftest, jax, numpy as np
from cases import CASES
for case in CASES:
    params, x = case.draw(np.random.default_rng(0), batch=(2,))
    jax.eval_shape(case.op, params, x)
    jax.eval_shape(lambda x: case.op(params, x), x)
    node = funcconv.Input("x", case.x)
    graph = funcconv.Graph(node, funcconv.node(case.op, node, params="p"))
    graph.init(jax.random.key(0), p=params)
try:
    funcconv.conv({"kernel": np.ones((2, 1, 1))}, np.ones((3, 1)), flip="no")
except Exception as error:
    assert "TypeCheckError" in type(error).__name__, error
else:
    raise AssertionError("nothing is enforced")
print("enforced on", len(CASES))
"""


def test_annotations_hold():
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("enforced on ")
