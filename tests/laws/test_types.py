"""The annotations hold: every op runs with them enforced, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

CHECK = """
from jaxtyping import install_import_hook
with install_import_hook("funcconv", "beartype.beartype"):
    import funcconv
import conftest, jax, numpy as np
from cases import CASES
for i, case in enumerate(CASES):
    params, x = case.draw(np.random.default_rng(0), batch=(2,))
    jax.eval_shape(case.op, params, x)
    if i % 8:
        continue
    jax.eval_shape(lambda x: case.op(params, x), x)  # with parameters of NumPy
    node = funcconv.Input("x", case.x)
    graph = funcconv.Graph(node, funcconv.node(case.op, node, params="p"))
    graph.init(jax.random.key(0), p=params)
    str(funcconv.summary(graph, params={"p": params})), funcconv.receptive_field(graph, params={"p": params})
    funcconv.to_text(graph), funcconv.to_mermaid(graph), funcconv.draw_autodiff(case.op, params, x)
from networks import problem
model, loss, params = problem()
key = jax.random.key(0)
h = funcconv.hessian(lambda params: loss(model(params)), params)
for operator in (h, funcconv.gauss_newton(model, loss, params), funcconv.fisher(model, params)):
    jax.eval_shape(lambda: (operator.shifted(0.1).mv(params), operator.diag(), operator.trace(), operator.dense()))
    jax.eval_shape(lambda: (operator.diag("hutchinson", key=key), operator.density(key)))
    jax.eval_shape(lambda: (operator.block("trunk").diag(), operator.block("trunk", "dense1").mv(params["dense1"])))
    jax.eval_shape(lambda: (operator.log_det(key), operator.inv_sqrt_mv(params), operator.exp_mv(params, -1)))
over_data = funcconv.fisher(lambda w, x: x * w, 1.0, "gaussian", batches=[np.ones((3, 1)), np.ones((2, 1))], weight=len)
over_data.density(key), over_data.log_det(key), over_data.exp_mv(1.0), over_data.diag("hutchinson", key=key)
operator.deflated(operator.eigsh(1, residuals=True)[1]), over_data.shifted(1).dense()
operator.eigsh(1), operator.to_scipy(), operator.to_lineax(), funcconv.hvp(lambda x: x * x, 1.0, 2.0)
jax.eval_shape(funcconv.value_and_grad_in_batches(lambda w, x: (w * x).mean(), 2), 1.0, np.ones(3))
jax.eval_shape(funcconv.per_example_grad(lambda w, x: w * x), 1.0, np.ones(3))
import optax
init, step = funcconv.train.make_step(lambda w, x, *, key, state: (w * x).mean(), optax.sgd(0.1), ema=0.9, clip=1.0)
with jax.numpy_dtype_promotion("standard"):
    data = funcconv.train.batches(np.ones(8, np.float32), 4, key)
    state, history = funcconv.train.fit(step, init(np.float32(1), key), data, steps=3, progress=False)
funcconv.plot.history(history)
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
        [sys.executable, "-c", CHECK], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("enforced on ")
