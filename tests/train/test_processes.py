"""Processes that train one model: they start alike, stop at one step, and say which of them is gone."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

GUARD = 900  # seconds after which processes that hang are killed; what is measured is never how long they take

WORKER = """
import itertools, json, os, signal, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

number, count, at, runs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(at, count, number, heartbeat_timeout_seconds=10)
import funcconv as fc

x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
arrays = {"x": x, "y": x @ np.arange(4, dtype=np.float32)}


def loss(params, batch, *, key, state):
    return jnp.square(batch["x"] @ params["w"] - batch["y"]).mean()


def train(seed=0, rate=0.1, steps=12, size=16, order=0, kind="Auto", limit=None, at_step=None, do=None, spread=False,
          evaluate=None, own_state=False, measure=None, **options):
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType[kind],))
    partition = {"w": PartitionSpec("data")} if spread else None
    init, step = fc.train.make_step(loss, optax.sgd(rate), mesh=None if own_state else mesh, partition=partition)
    state = init({"w": jax.random.normal(jax.random.key(seed), 4)}, jax.random.key(1))
    where = NamedSharding(mesh, PartitionSpec("data"))
    data = fc.train.batches(arrays, size, jax.random.key(order), sharding=where)
    batches = data if limit is None else itertools.islice(data, limit)

    def log(record):
        if record["step"] == at_step:
            if do == "raise":
                raise OSError("disk full")
            os.kill(os.getpid(), getattr(signal, do))

    if evaluate is not None:
        values = evaluate if isinstance(evaluate, list) else [evaluate] * steps  # of the evaluations, in order
        error = lambda state: {"error": values[int(state.step) // 5 - 1]}
        options |= {"evaluate": error, "monitor": "error", "every": 5}
    state, history = fc.train.fit(step, state, batches, steps=steps, log=log, progress=False, **options)
    found = {"step": int(state.step), "stopped": history.stopped, "digest": fc.train.digest(state.params),
             "position": data.position, "compilations": history.compilations}
    if measure:  # batches of 26, 26 and 12 examples, on 4 devices
        part = {"shard": (number, count)} if measure == "parts" else {"sharding": where}
        held_out = fc.train.batches(arrays, 26, jax.random.key(7), drop_last=False, **part)
        metrics = {"error": lambda state, batch: jnp.square(batch["x"] @ state.params["w"] - batch["y"]),
                   "count": lambda state, batch: fc.train.Sum((batch["y"] > 0).sum())}
        found |= fc.train.evaluate(metrics, state, held_out)
        found["known"] = float(np.square(x @ np.asarray(state.params["w"]) - arrays["y"]).mean())
        found["positive"] = int((arrays["y"] > 0).sum())
    return found


for run in runs:
    try:
        found = train(**run)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found), flush=True)
"""


def together(*runs):
    """Run processes, each with its list of arguments of `train`; return their exit codes, results and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    # XLA's flags of this process may ask for other numbers of devices
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(i), str(len(runs)), at, json.dumps(each)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i, each in enumerate(runs)
    ]
    try:
        said = [process.communicate(timeout=GUARD) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    results = [[json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in said]
    return codes, results, [trouble for _, trouble in said]


REFUSED = [  # what the second process does otherwise, and what both say
    ({"seed": 1}, {}, "state/params/w has other values in process 0 than in process 1"),
    ({"seed": 1, "spread": True}, {"spread": True}, "state/params/w has other values"),
    (
        {"rate": 0.25},
        {},
        "the compiled step: .*dense<-1.000000e-01>.* in process 0, .*dense<-2.500000e-01>",
    ),
    ({"steps": 14}, {}, "steps: 12 in process 0, 14 in process 1"),
    ({"size": 8}, {}, "batches: batch_size: 16 in process 0, 8 in process 1"),
    ({"order": 3}, {}, "batches: key: .* in process 0, .* in process 1"),
    ({"checkpoint_every": 3}, {}, "checkpoint_every: 10 in process 0, 3 in process 1"),
    ({"steps": -1}, {}, "steps must be at least 0; got -1"),
    ({"own_state": True}, {"own_state": True}, r"has a state of its own\. Give mesh= to make_step"),
    ({"evaluate": 0.5}, {"evaluate": 0.25}, "error of evaluate: 0.25 in process 0, 0.5 in process 1"),
    ({"measure": "parts"}, {"measure": "parts"}, "the first batch of evaluate/x has other values in process 0 than in"),
]


def test_processes_agree(tmp_path):
    """They refuse what would train several models, end after the same step, and go on as one process would."""
    folder = {"checkpoint": str(tmp_path / "checkpoints")}
    measured = [{"measure": "whole"}, {"measure": "whole", "kind": "Explicit"}]
    both = [{}, {"kind": "Explicit"}, {"spread": True}, *measured]
    best = {"evaluate": [2.0, 1.0, 3.0], "keep": "best", "steps": 15, "spread": True}
    best_folder = {**best, "checkpoint": str(tmp_path / "best")}
    of_best = [{**best, "steps": 10, "keep": 3}, best, best_folder, best_folder]
    first = [*(same for _, same, _ in REFUSED), *both, {}, {"limit": 7}, folder, folder, folder, *of_best]
    second = [
        *(other for other, _, _ in REFUSED),
        *both,
        {"at_step": 3, "do": "SIGTERM"},
        {"limit": 5},
        {**folder, "at_step": 4, "do": "raise"},
        {**folder, "at_step": 8, "do": "SIGINT"},
        folder,
        *of_best[:2],
        {**best_folder, "at_step": 11, "do": "SIGTERM"},
        best_folder,
    ]
    codes, (zero, one), trouble = together(first, second)
    assert codes == [0, 0], (zero, one, trouble)
    assert len(zero) == len(one) == len(first), trouble
    results = iter(zip(zero, one, strict=True))
    for (_, _, said), (here, there) in zip(REFUSED, results, strict=False):
        assert re.search(said, here["error"]), here
        assert here["error"].startswith("FuncconvError")
        assert there["error"].startswith("FuncconvError")
        assert "process 1" in there["error"] or "process 1" in here["error"]
    whole, explicit, spread = next(results), next(results), next(results)
    measured = [next(results) for _ in measured]
    for here, _ in measured:
        np.testing.assert_allclose(here["error"], here["known"], rtol=0, atol=64 * 4 * float(np.finfo(np.float32).eps))
        assert here["count"] == here["positive"]
    for here, there in (whole, explicit, spread, *measured):
        assert here == there
        assert (here["step"], here["stopped"], here["compilations"]) == (12, "", 1)
    interrupted = next(results)
    assert interrupted[0] == interrupted[1]
    assert interrupted[0]["stopped"] == f"interrupted after step {interrupted[0]['step']} (process 1 of 2)"
    assert interrupted[0]["position"] == interrupted[0]["step"] < 12
    here, there = next(results)
    assert here["digest"] == there["digest"]
    assert here["stopped"] == there["stopped"] == "there were no more batches after step 5 (process 1 of 2)"
    here, there = next(results)
    assert there["error"] == "OSError: disk full"
    assert "process 1 ended with OSError: disk full. To resume, " in here["error"]
    interrupted = next(results)
    assert interrupted[0] == interrupted[1]
    assert 8 <= interrupted[0]["step"] < 12, "it went on after the error, and stopped"
    resumed = next(results)
    assert resumed[0] == resumed[1] == whole[0]
    of_best_step = next(results)[0]
    for here, there in results:
        assert here == there
        assert (here["step"], here["digest"]) == (10, of_best_step["digest"])
    assert here["stopped"] == ""


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_process_says_which_one_is_gone(tmp_path, victim):
    """Also where JAX aborts it, since the process that is gone coordinates them."""
    folder = {"checkpoint": str(tmp_path / "checkpoints"), "checkpoint_every": 2, "steps": 200}
    runs = [[folder], [folder]]
    runs[victim] = [{**folder, "at_step": 21, "do": "SIGKILL"}]
    codes, results, trouble = together(*runs)
    other = 1 - victim
    assert codes[victim] == -9, trouble
    assert codes[other] != -9, trouble
    said = trouble[other] + "".join(result["error"] for result in results[other])
    assert f"process {victim} (pid " in said
    assert "is gone. To resume, start all processes again with the same arguments. They go on from the last" in said
    assert f"checkpoint in {folder['checkpoint']}." in said
    assert f"process {victim} was ended by a signal or by JAX. " in trouble[victim]
    again = [{**folder, "steps": 24}, {"steps": 24}]
    (resumed, whole), results_there = together(again, again)[1]
    assert [resumed, whole] == results_there
    assert resumed == whole, "they resumed from the last checkpoint, which is one for both"
    assert resumed["step"] == 24


def test_one_process_exchanges_nothing(compilations):
    from funcconv.train._distributed.processes import of_state

    processes = of_state({"w": jax.numpy.ones(3)})
    before = len(compilations)
    with processes.guard():
        processes.meet(None)
        processes.check({"steps": "1"})
        assert processes.agree("why") == "why"
        assert processes.fail(ValueError()) is None
    assert not processes.together
    assert len(compilations) == before
