"""A law: whatever the step computes, it computes the same on one device, on several, and in several processes."""

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import mesh_features
import numpy as np
import pytest
from compare import close
from jax.sharding import AxisType
from mesh_features import FEATURES

import funcconv as fc

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices"),
    pytest.mark.usefixtures("climate_of_a_user"),
]
GUARD = 900  # seconds after which processes that hang are killed
TERMS = mesh_features.EXAMPLES * 6 * 6  # the largest sums are over examples and positions

alone = cache(mesh_features.trained)


def mesh_of(shape, kind):
    names = ("data", "model")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def check(actual, feature):
    expected = jax.tree.leaves(alone(feature))
    masks = [leaf for path, leaf in jax.tree.leaves_with_path(alone(feature)) if "mask" in str(path)]
    for leaf, known in zip(actual, expected, strict=True):
        if any(known is mask for mask in masks):
            assert leaf == known
        else:
            close(leaf, known, np.float32, terms=TERMS, steps=mesh_features.STEPS)


@pytest.mark.parametrize(("devices", "kind"), [(1, AxisType.Explicit), (2, AxisType.Auto), (4, AxisType.Explicit)])
@pytest.mark.parametrize("feature", FEATURES)
def test_devices_do_not_change_a_step(feature, devices, kind):
    check(jax.tree.leaves(mesh_features.trained(feature, mesh_of((devices,), kind))), feature)


def test_the_features_are_seen():
    """A mask is not zero, a norm is clipped, a moving average moves: else the law would say nothing."""
    metrics = {feature: alone(feature)["metrics"] for feature in FEATURES}
    assert metrics["dropout"]["mask"] > 0 < metrics["accumulate"]["mask"]
    assert metrics["batch norm"]["mask"] == 0
    assert all(each["grad_norm"] > 0.01 for each in metrics.values())
    clipped, free = (alone(feature)["state"]["params"] for feature in ("clip", "batch norm"))
    assert not np.allclose(clipped["conv1"]["kernel"], free["conv1"]["kernel"])


def test_processes_do_not_change_a_step(tmp_path):
    """Two processes with two devices each, compared with one device in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    tests = Path(mesh_features.__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, mesh_features.__file__]
    processes = [
        subprocess.Popen(
            [*command, str(number), "2", address, str(tmp_path / "results.npz")],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        trouble = [process.communicate(timeout=GUARD)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], trouble
    with np.load(tmp_path / "results.npz") as results:
        for feature in FEATURES:
            check([results[f"{feature} {i}"] for i in range(len(jax.tree.leaves(alone(feature))))], feature)


# checkpoints ------------------------------------------------------------------------------------------------------

PLACES = {  # the shape of the mesh, the type of its axes, and where the largest kernel is spread
    "no mesh": (None, None, None),
    "one device": ((1,), AxisType.Auto, None),
    "four devices": ((4,), AxisType.Explicit, None),
    "two by two": ((2, 2), AxisType.Auto, {"dense1/kernel": jax.P(None, "model")}),
    "another partition": ((2, 2), AxisType.Explicit, {"dense1/kernel": jax.P(("data", "model"))}),
}


def begun(place):
    shape, kind, partition = PLACES[place]
    mesh = None if shape is None else mesh_of(shape, kind)
    return mesh, *mesh_features.training("average, scale and frozen", mesh, partition)


def fitted(place, steps, folder, **options):
    mesh, step, state = begun(place)
    spread = None if mesh is None else jax.NamedSharding(mesh, jax.P("data"))
    data = fc.train.batches(mesh_features.batch(), 8, jax.random.key(0), sharding=spread)
    return fc.train.fit(step, state, data, steps=steps, checkpoint=folder, progress=False, **options)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a run of two steps at a place, and its state."""

    @cache
    def of(place):
        folder = tmp_path_factory.mktemp("run")
        return folder, fitted(place, 2, folder)

    return of


@pytest.mark.parametrize("there", PLACES)
@pytest.mark.parametrize("here", PLACES)
def test_a_checkpoint_of_one_mesh_opens_on_another(saved, here, there):
    folder, state = saved(here)
    _, _, like = begun(there)
    restored = fc.train.restore(folder, like)
    assert fc.train.digest(restored) == fc.train.digest(state)
    for leaf, other in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)


def test_a_run_goes_on_on_another_mesh(saved, tmp_path):
    expected = jax.tree.leaves(mesh_features.values(fitted("no mesh", 4, tmp_path / "whole")))
    folder, _ = saved("four devices")
    with pytest.warns(UserWarning, match=r"mesh: \{'data': 4\} then, \{'data': 2, 'model': 2\} now"):
        resumed = fitted("two by two", 4, folder)
    for leaf, known in zip(jax.tree.leaves(mesh_features.values(resumed)), expected, strict=True):
        close(np.asarray(leaf), np.asarray(known), np.float32, terms=TERMS, steps=4)
