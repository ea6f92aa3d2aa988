"""Files of weights as other libraries write them: which arrays are read, and what is said about other files."""

import argparse
import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from available import needed
from compare import close
from damage import cuts, flipped_bits
from flax import linen as nn
from flax import nnx, serialization

import funcconv as fc
from funcconv._command_line import main
from funcconv._weight_files.closest_names import closest_names

KEY = jax.random.key(0)
F32 = np.float32


@pytest.fixture
def torch():
    return needed("torch")


@pytest.fixture
def said(caplog):
    """Return the messages that were logged since the last call."""

    def messages():
        logged = [record.getMessage() for record in caplog.records if record.name == "funcconv"]
        caplog.clear()
        return logged

    return messages


def state_dict(seed=0):
    """Return the arrays of a convolution and a batch norm, by the names and in the order of PyTorch."""
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 3, 3, 2), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,)}
    shapes |= {"bn.running_mean": (4,), "bn.running_var": (4,)}
    arrays = {name: rng.uniform(1, 2, shape).astype(F32) for name, shape in shapes.items()}
    return arrays | {"bn.num_batches_tracked": np.asarray(7)}


def tensors(torch, arrays, prefix=""):
    return OrderedDict((prefix + name, torch.tensor(array)) for name, array in arrays.items())


def adam_state(torch):
    """Return the state of an optimizer, whose arrays have the shapes of the weights."""
    weights = [
        torch.nn.Parameter(value) for value in tensors(torch, state_dict()).values() if value.is_floating_point()
    ]
    optimizer = torch.optim.Adam(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer.state_dict()


def same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert isinstance(arrays[name], np.ndarray)
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def refused(path, *parts, key=None):
    with pytest.raises(fc.FuncconvError) as caught:
        fc.interop.read_weights(path, key)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    return str(caught.value)


# PyTorch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pth.tar", "a.ckpt", "a.bin", "a", "a.safetensors", "a.msgpack"])
@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_torch_are_recognized_by_their_content(torch, tmp_path, said, name, new_format):
    torch.save(tensors(torch, state_dict()), tmp_path / name, _use_new_zipfile_serialization=new_format)
    same(fc.interop.read_weights(tmp_path / name), state_dict())
    assert not said()
    same(fc.interop.read_weights(str(tmp_path / name)), state_dict())


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "int8", "uint8", "bool"],
)
def test_dtypes_of_torch_are_kept(torch, tmp_path, dtype):
    numbers = torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.5, 4.0]])
    torch.save({"model": {"w": numbers.to(getattr(torch, dtype)), "b": numbers}}, tmp_path / "a.pt")
    arrays = fc.interop.read_weights(tmp_path / "a.pt")
    expected = numbers.numpy().astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    same(arrays, {"w": expected, "b": numbers.numpy()})
    arrays["w"][0, 0] = 1  # the arrays belong to the caller


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "ema_state_dict", "params", "net", "module"],
)
def test_the_only_state_dict_of_a_checkpoint_is_used(torch, tmp_path, said, key):
    checkpoint = {
        "epoch": 3,
        "arch": "resnet",
        "best_acc1": torch.tensor([0.5]),
        "loss": torch.tensor(0.1),
        "lrs": [0.1, 0.01],
        key: tensors(torch, state_dict()),
        "optimizer": adam_state(torch),
        "adam": adam_state(torch),
        "optimizer_states": [adam_state(torch)],
        "optimizerG_state": {"mean": torch.ones(3, 3)},
        "rng_state": torch.get_rng_state(),
        "shape": torch.Size([2, 3]),
        "best": None,
    }
    torch.save(checkpoint, tmp_path / "last.pth.tar")
    arrays = fc.interop.read_weights(tmp_path / "last.pth.tar")
    same(arrays, state_dict())
    (message,) = said()
    assert f"last.pth.tar: used the entry {key!r}; the file also has epoch, arch" in message
    assert "optimizer_states" in message


def test_a_state_dict_deeper_in_a_checkpoint_is_used(torch, tmp_path, said):
    checkpoint = {"ema": {"decay": 0.9, "updates": 5, "state_dict": tensors(torch, state_dict())}, "step": 3}
    torch.save(checkpoint, tmp_path / "a.pt")
    same(fc.interop.read_weights(tmp_path / "a.pt"), state_dict())
    assert "used the entry 'ema/state_dict'; the file also has step" in said()[0]
    for key in ("ema", "ema/state_dict", "ema.state_dict", "/ema/state_dict/"):
        same(fc.interop.read_weights(tmp_path / "a.pt", key), state_dict())


def test_several_state_dicts_are_listed(torch, tmp_path):
    checkpoint = {
        "model": tensors(torch, state_dict()),
        "ema": {"state_dict": tensors(torch, state_dict(1)), "decay": 0.9},
        "models": [{"w": torch.ones(3)}],
        "optimizer": adam_state(torch),
    }
    path = tmp_path / "a.pt"
    torch.save(checkpoint, path)
    text = refused(
        path, "3 dicts", "key='model': 7 arrays", "key='ema/state_dict': 7 arrays", "key='models/0': 1 array"
    )
    assert "optimizer" not in text
    same(fc.interop.read_weights(path, key="model"), state_dict())
    same(fc.interop.read_weights(path, key="ema"), state_dict(1))
    same(fc.interop.read_weights(path, key="models/0"), {"w": np.ones(3, F32)})
    assert list(fc.interop.read_weights(path, "."))[-2:] == ["ema.state_dict.bn.num_batches_tracked", "models.0.w"]
    same(
        fc.interop.read_weights(path, "model.conv"),
        {"weight": state_dict()["conv.weight"], "bias": state_dict()["conv.bias"]},
    )
    refused(path, "no entry 'emma'; did you mean 'ema'?", "key='models/0'", key="emma")
    refused(path, "no entry 'model/x'", key="model/x")
    refused(path, "is an array of shape (4,)", key="model/conv.bias")
    refused(path, "'ema/decay' is a value of type float", key="ema/decay")
    refused(path, "key must be the path of an entry", key="")
    refused(path, "key must be the path of an entry", key=3)


def test_a_tree_of_modules_is_read_by_the_key_above_them(torch, tmp_path):
    layer = {"kernel": torch.ones(2, 3), "bias": torch.zeros(3)}
    torch.save({"params": {"conv": layer, "dense": layer}, "step": 3}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "key='params/conv': 2 arrays", "key='params': 4 arrays")
    assert list(fc.interop.read_weights(tmp_path / "a.pt", "params")) == [
        "conv.kernel",
        "conv.bias",
        "dense.kernel",
        "dense.bias",
    ]


def test_names_that_become_equal_are_refused(torch, tmp_path):
    torch.save({1: torch.ones(2), "1": torch.zeros(2)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "two entries have the name '1'")
    torch.save({"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "two arrays have the name 'a.b'", key=".")


def test_arrays_beside_a_state_dict_are_not_dropped(torch, tmp_path):
    torch.save({"state_dict": tensors(torch, state_dict()), "mean": torch.ones(3)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "key='state_dict': 7 arrays", "key='.': 8 arrays")
    same(fc.interop.read_weights(tmp_path / "a.pt", "state_dict"), state_dict())


def test_the_state_of_an_optimizer_is_read_only_by_its_key(torch, tmp_path):
    torch.save({"epoch": 3, "optimizer": adam_state(torch)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "no weights", "epoch (a value of type int)", "optimizer (the state of an optimizer)")
    assert "state.0.exp_avg" in fc.interop.read_weights(tmp_path / "a.pt", "optimizer")


def test_dicts_of_scalars_and_integers_are_weights_too(torch, tmp_path):
    torch.save({"scale": torch.tensor(2.0), "steps": torch.tensor([1, 2])}, tmp_path / "a.pt")
    same(fc.interop.read_weights(tmp_path / "a.pt"), {"scale": np.asarray(2, F32), "steps": np.asarray([1, 2])})
    linear = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
    torch.save({"model": linear, "epoch": 3, "optimizer": adam_state(torch)}, tmp_path / "a.pt")
    same(fc.interop.read_weights(tmp_path / "a.pt"), {"weight": np.ones((1, 1), F32), "bias": np.ones(1, F32)})
    torch.save({"model": linear, "ema": linear}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "key='model': 2 arrays", "key='ema': 2 arrays")


@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("module.", "module."),
        ("_orig_mod.", "_orig_mod."),
        ("model.", "model."),
        ("module._orig_mod.", "module._orig_mod."),
        ("_orig_mod.module.model.", "_orig_mod.module.model."),
        ("model.model.", "model."),  # the second one is the module's
        ("mod.", ""),
        ("modules.", ""),
    ],
)
def test_shared_prefixes_are_removed(torch, tmp_path, said, prefix, removed):
    torch.save({"state_dict": tensors(torch, state_dict(), prefix)}, tmp_path / "a.pt")
    arrays = fc.interop.read_weights(tmp_path / "a.pt")
    same(arrays, {prefix.removeprefix(removed) + name: array for name, array in state_dict().items()})
    assert any(f"removed the prefix {removed!r}" in message for message in said()) == bool(removed)


def test_prefixes_of_some_names_stay(torch, tmp_path, said):
    names = tensors(torch, state_dict(), "module.") | {"n_averaged": torch.tensor(3)}
    torch.save(names, tmp_path / "a.pt")
    arrays = fc.interop.read_weights(tmp_path / "a.pt")
    assert list(arrays) == list(names)
    assert not said()
    torch.save({"module.": torch.ones(2), "module.a": torch.ones(2)}, tmp_path / "a.pt")
    assert list(fc.interop.read_weights(tmp_path / "a.pt")) == ["module.", "module.a"]


def test_parameters_tied_weights_and_views(torch, tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    values = {"a": weight, "b": weight, "turned": weight.detach().T, "conjugate": torch.tensor([1 + 2j, 0]).conj()}
    torch.save(values, tmp_path / "a.pt")
    arrays = fc.interop.read_weights(tmp_path / "a.pt")
    numbers = np.arange(6, dtype=F32).reshape(2, 3)
    same(arrays, {"a": numbers, "b": numbers, "turned": numbers.T, "conjugate": np.asarray([1 - 2j, 0], np.complex64)})


def test_weights_of_other_devices_are_read_on_the_cpu(torch, tmp_path):
    """The names of devices have the length of `cuda:0`, so that the file keeps its structure."""
    torch.save({"w": torch.arange(3.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    assert content.count(b"\x03\0\0\0cpu") == 1
    (tmp_path / "a.pt").write_bytes(content.replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0"))
    same(fc.interop.read_weights(tmp_path / "a.pt"), {"w": np.arange(3, dtype=F32)})


@pytest.mark.parametrize("kind", ["quantized", "sparse", "csr", "meta", "nested"])
@pytest.mark.filterwarnings("ignore:::.*")  # PyTorch calls most of these kinds experimental
def test_tensors_that_cannot_be_arrays_are_named(torch, tmp_path, kind):
    make = {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "meta": lambda: torch.empty(3, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    torch.save({"state_dict": {"a": torch.ones(3), "strange": make[kind]()}}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "the array 'strange' cannot be read", "to_dense()")


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


@pytest.mark.parametrize("new_format", [True, False])
def test_no_code_of_a_file_is_run(torch, tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # for calls that do not say what they want
    path = tmp_path / "a.pt"
    contents = {"mkdir": RunsCode(), "argparse.Namespace": argparse.Namespace(lr=1), "Conv2d": torch.nn.Conv2d(1, 2, 3)}
    for name, value in contents.items():
        torch.save(
            {"state_dict": tensors(torch, state_dict()), "more": value}, path, _use_new_zipfile_serialization=new_format
        )
        refused(path, name, "No code was run", "weights_only=False", "'weights.pt'")
    assert not (tmp_path / "it_ran").exists()
    with torch.serialization.safe_globals([argparse.Namespace]):  # a decision of the user
        torch.save({"model": tensors(torch, state_dict()), "args": contents["argparse.Namespace"]}, path)
        same(fc.interop.read_weights(path), state_dict())


def test_other_objects_of_torch_are_refused_with_an_explanation(torch, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.ones(3), path)
    refused(path, "must contain a dict of arrays; it contains an array of shape (3,)")
    torch.save([1, 2], path)
    refused(path, "no weights", "a list with no arrays")
    torch.save({"epoch": 3, "hparams": {"lr": 0.1}}, path)
    refused(path, "no weights", "epoch (a value of type int)", "hparams (a dict with no arrays)")
    torch.save({}, path)
    refused(path, "no weights")
    torch.save({"model": None, "ema": tensors(torch, state_dict())}, path)
    refused(path, "'model' is a value of type NoneType", key="model")
    torch.save(tensors(torch, state_dict()), path, pickle_protocol=4)
    refused(path, "pickle protocol", "weights.pt")
    cycle = {"weights": {"w": torch.ones(3)}}
    cycle["self"] = cycle
    torch.save(cycle, path)
    refused(path, "contain themselves")
    refused(path, "contain themselves", key=".")


@pytest.mark.filterwarnings("ignore:::.*")  # TorchScript is deprecated
def test_programs_are_refused(torch, tmp_path):
    module = torch.nn.Conv2d(1, 2, 3)
    torch.jit.script(module).save(tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "TorchScript", "torch.jit.load")
    torch.export.save(torch.export.export(module, (torch.ones(1, 1, 4, 4),)), tmp_path / "a.pt2")
    refused(tmp_path / "a.pt2", "torch.export")


@pytest.mark.parametrize("new_format", [True, False])
def test_incomplete_files_of_torch_are_refused(torch, tmp_path, rng, new_format):
    path = tmp_path / "a.pt"
    torch.save({"model": tensors(torch, state_dict())}, path, _use_new_zipfile_serialization=new_format)
    for _, content in cuts(path.read_bytes(), rng, 40):
        path.write_bytes(content)
        refused(path, "cannot be read")


def test_flipped_bits_in_files_of_torch_change_no_weight(torch, tmp_path, rng):
    path = tmp_path / "a.pt"
    torch.save({"model": tensors(torch, state_dict())}, path)
    refusals = 0
    for _, content in flipped_bits(path.read_bytes(), rng, 100):
        path.write_bytes(content)
        try:
            same(fc.interop.read_weights(path), state_dict())  # as the bit is in the padding
        except fc.FuncconvError:
            refusals += 1
    assert refusals
    torch.save({"w": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(4000)) + 2000] ^= 1
    path.write_bytes(content)
    refused(path, "CRC-32", "damaged")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.zeros(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    same(fc.interop.read_weights(path), {"w": np.zeros(3, F32)})


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(zip_with("a/data.pkl"))
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(tmp_path / "a.bin", "pip install torch")


# safetensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a"])
def test_safetensors_with_names_of_torch(tmp_path, said, name):
    save = needed("safetensors.numpy").save_file
    arrays = {"module." + key: array for key, array in state_dict().items()}
    arrays["module.half"] = np.ones((2, 3), ml_dtypes.bfloat16)
    save({key: array for key, array in arrays.items() if array.dtype != ml_dtypes.bfloat16}, tmp_path / name)
    loaded = fc.interop.read_weights(tmp_path / name)
    assert {key: array.dtype for key, array in loaded.items()} == {key: a.dtype for key, a in state_dict().items()}
    for key, array in state_dict().items():
        np.testing.assert_array_equal(loaded[key], array)
    assert "removed the prefix 'module.'" in said()[0]
    fc.interop.save_safetensors(tmp_path / name, arrays)
    loaded = fc.interop.read_weights(tmp_path / name)
    assert loaded["half"].dtype == ml_dtypes.bfloat16
    assert set(fc.interop.read_weights(tmp_path / name, "module.bn")) == {
        key.removeprefix("bn.") for key in state_dict() if key.startswith("bn.")
    }


def test_own_files_are_read_by_path(tmp_path, said):
    params = {"conv1": {"kernel": np.ones((3, 3, 1, 2), F32)}, "dense1": {"kernel": np.ones((2, 2), F32)}}
    fc.interop.save_safetensors(tmp_path / "a", params)
    assert sorted(fc.interop.read_weights(tmp_path / "a")) == ["conv1/kernel", "dense1/kernel"]
    assert "load_safetensors reads it as nested dicts" in said()[0]


# Flax and orbax ---------------------------------------------------------------------------------------------


class Module(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), padding="VALID", name="stem")(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


def flax_network():
    """Return a Linen module, its variables, and a graph with other names that computes the same."""
    variables = Module().init(KEY, jnp.ones((1, 5, 5, 2), F32))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf + 0.5, F32), variables)
    x = fc.Input("x", (5, 5, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(), fc.Flatten(), fc.Dense(3))(x))
    return Module(), variables, graph


PATHS = [
    "params/BatchNorm_0/bias",
    "params/BatchNorm_0/scale",
    "params/Dense_0/bias",
    "params/Dense_0/kernel",
    "params/stem/bias",
    "params/stem/kernel",
    "batch_stats/BatchNorm_0/mean",
    "batch_stats/BatchNorm_0/var",
]


def train_state(variables):
    """Return what a Flax TrainState with batch statistics has, as plain dicts."""
    optimizer = serialization.to_state_dict(optax.adam(0.1).init(variables["params"]))
    return {"step": 7, "opt_state": jax.tree.map(np.asarray, optimizer), **variables}


def write(folder, name, tree):
    """Write a tree as a msgpack file, or as a folder of orbax if the name has no ending."""
    if name.endswith(".msgpack"):
        (folder / name).write_bytes(serialization.to_bytes(tree))
    else:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as writer:
            writer.save(folder / name, tree)
    return folder / name


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
@pytest.mark.parametrize("name", ["a.msgpack", "orbax"])
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_variables_of_flax_are_read(tmp_path, rng, said, name, with_optimizer):
    module, variables, graph = flax_network()
    path = write(tmp_path, name, train_state(variables) if with_optimizer else variables)
    arrays = fc.interop.read_weights(path)
    assert sorted(arrays) == sorted(PATHS)
    assert all(array.dtype == F32 for array in arrays.values())
    messages = said()
    assert bool(messages) == with_optimizer
    if with_optimizer:
        assert "used the entries params and batch_stats; the file also has" in messages[0]
        assert "opt_state" in messages[0]
    params, state = fc.interop.from_linen(graph, arrays)
    x = rng.normal(size=(2, 5, 5, 2)).astype(F32)
    close(graph.apply(params, state, x)[0], module.apply(variables, x))


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
@pytest.mark.parametrize("name", ["a.msgpack", "orbax"])
def test_a_moving_average_of_flax_is_chosen_by_key(tmp_path, name):
    _, variables, graph = flax_network()
    average = jax.tree.map(lambda leaf: leaf + 1, variables["params"])
    path = write(tmp_path, name, {**train_state(variables), "ema_params": average})
    refused(path, "ema_params beside params", "key='params': 6 arrays", "key='ema_params': 6 arrays")
    arrays = fc.interop.read_weights(path, "ema_params")
    assert sorted(arrays) == sorted(PATHS)  # with the statistics beside it
    np.testing.assert_array_equal(arrays["params/stem/bias"], average["stem"]["bias"])
    assert sorted(fc.interop.read_weights(path, "params/stem")) == ["bias", "kernel"]
    refused(path, "no entry 'ema_param'; did you mean 'ema_params'?", key="ema_param")
    params, _ = fc.interop.from_linen(graph, arrays)
    np.testing.assert_array_equal(params["conv1"]["bias"], average["stem"]["bias"])


def test_half_precision_of_flax_is_kept(tmp_path):
    tree = {"params": {"a": {"kernel": np.ones((2, 3), ml_dtypes.bfloat16), "bias": np.ones(3, np.float16)}}}
    arrays = fc.interop.read_weights(write(tmp_path, "a.msgpack", tree))
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "params/a/bias": "float16",
        "params/a/kernel": "bfloat16",
    }
    arrays["params/a/bias"][0] = 2  # the arrays belong to the caller


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
def test_a_state_of_nnx_is_read_without_its_boxes(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "nnx", nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))
    assert sorted(fc.interop.read_weights(tmp_path / "nnx")) == ["bias", "kernel"]


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
def test_a_folder_of_a_manager_of_orbax(tmp_path, said):
    import orbax.checkpoint as ocp

    _, variables, _ = flax_network()
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        manager.save(5, args=ocp.args.StandardSave(variables))
        manager.wait_until_finished()
        arrays = fc.interop.read_weights(tmp_path / "manager")
        assert sorted(arrays) == sorted(PATHS)
        assert said()[0].endswith("read the checkpoint in 5/default")
        manager.save(7, args=ocp.args.StandardSave(variables))
        manager.wait_until_finished()
    refused(tmp_path / "manager", "2 checkpoints of orbax", "5/default", "7/default")
    assert sorted(fc.interop.read_weights(tmp_path / "manager" / "7")) == sorted(PATHS)


def test_a_run_of_funcconv_is_read_as_variables(tmp_path, said):
    x = fc.Input("x", (5, 5, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm())(x))
    init, _ = fc.train.make_step(lambda *_, **__: 0, optax.adam(0.1), ema=0.9)
    state = init(graph.init(KEY), KEY, graph.init_state())
    fc.train.save(tmp_path / "run", state)
    arrays = fc.interop.read_weights(tmp_path / "run")
    assert sorted(arrays) == sorted(
        [
            "params/conv1/kernel",
            "params/conv1/bias",
            "params/batch_norm1/scale",
            "params/batch_norm1/bias",
            "batch_stats/batch_norm1/mean",
            "batch_stats/batch_norm1/var",
        ]
    )
    assert "used the entries params and model" in said()[0]
    assert sorted(fc.interop.read_weights(tmp_path / "run", "ema")) == sorted(arrays)


# Other files ------------------------------------------------------------------------------------------------


def tar_with(*names):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def zip_with(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "text")
    return content.getvalue()


def archive_of_arrays():
    content = io.BytesIO()
    np.savez(content, a=np.ones(3))
    return content.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n"
INDEX = {"metadata": {}, "weight_map": {"a": "w-1-of-2.bin", "b": "w-1-of-2.bin", "c": "w-2-of-2.bin"}}


OTHERS = {
    "empty": (b"", ["empty"]),
    "web page": (b"\n\n<!DOCTYPE html>\n<html><title>Sign in</title>", ["web page", "'Sign in'", "/resolve/"]),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied", ["web page"]),
    "Git LFS": (LFS, ["pointer of Git LFS", "102,530,333 bytes", "git lfs pull"]),
    "index": (json.dumps(INDEX).encode(), ["index of weights", "w-1-of-2.bin, w-2-of-2.bin"]),
    "JSON": (b"[1, 2]", ["JSON"]),
    "deep JSON": (b"[" * 10_000, ["JSON"]),
    "gzip": (gzip.compress(b"weights"), ["compressed by gzip", "gunzip"]),
    "tar": (tar_with("net/model.pth", "readme.txt"), ["tar archive", "tar -xf", "net/model.pth, readme.txt"]),
    "old torch": (
        tar_with("pickle", "storages", "tensors", "sys_info"),
        ["before version 0.1.10", "weights_only=False"],
    ),
    "zip": (zip_with("net/model.txt"), ["zip archive", "net/model.txt", "extract"]),
    "empty zip": (zip_with(), ["zip archive that torch.save did not write"]),
    "npz": (archive_of_arrays(), ["npz", "numpy.load"]),
    "npy": (b"\x93NUMPY\x01\0", ["numpy.load"]),
    "HDF5": (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
    "zeros": (b"\0" * 1000, ["begins with the bytes 00 00"]),
    "cut zip": (b"PK\x03\x04" + b"\0" * 100, ["not a complete zip archive", "download"]),
    "text": (b"hello", ["68 65 6c 6c 6f"]),
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.msgpack", "a"])
@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds(tmp_path, name, kind):
    content, parts = OTHERS[kind]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "cannot be read", *parts)


@pytest.mark.parametrize(
    "content", [pickle.dumps({"a": 1}, 2), pickle.dumps([1], 5), b"\x80\x02"], ids=["2", "5", "cut"]
)
def test_pickles_of_others(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", "a pickle, but not of torch.save", "runs code")


@pytest.mark.parametrize(
    "content", [b"\x81\xa1a", b"\xde\0\x01\xa1a\xc1", b"\x81\xa1a\xc7\x05\x01abcde"], ids=["cut", "code", "array"]
)
def test_damaged_msgpack(tmp_path, content):
    (tmp_path / "a.msgpack").write_bytes(content)
    refused(tmp_path / "a.msgpack", "not a msgpack file of Flax")


def test_damaged_safetensors(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    fc.interop.save_safetensors(path, state_dict())
    for _, content in cuts(path.read_bytes(), rng, 40):
        path.write_bytes(content)
        refused(path, "cannot be read")


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
def test_paths_of_no_file(tmp_path):
    refused(tmp_path / "missing.pt", "No such file")
    with pytest.raises(fc.FuncconvError, match="empty"):
        fc.interop.read_weights("")
    with pytest.raises(fc.FuncconvError, match="must be a string"):
        fc.interop.read_weights(3)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is a folder, but not a checkpoint of orbax", "Formats that are read")
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"")
    (tmp_path / "folder" / "notes.txt").write_bytes(b"")
    refused(tmp_path / "folder", "Pass the path of a file in it: model.safetensors")


# Names ------------------------------------------------------------------------------------------------------


def test_names_of_one_side_are_listed_completely():
    left = [f"layer{i}/conv/kernel" for i in range(30)] + ["head/kernel"]
    right = [f"layer{i}.conv.kernel" for i in range(2)] + ["layers2.conv.kernel", "heads.kernel"]
    text = closest_names(left, right, right_side="the file")
    assert "only the graph has 29 of the names:" in text
    assert "only the file has 2 of the names:" in text
    assert "  head/kernel (closest: heads.kernel" in text
    assert "  layer2/conv/kernel (closest: layers2.conv.kernel" in text
    assert all(f"  {name}" in text for name in left[2:])
    assert "layer0/" not in text
    assert closest_names(["a/b"], ["a.b"]) == ""
    assert closest_names(["abc"], ["xyz"]) == (
        "only the graph has 1 of the names:\n  abc\nonly the other side has 1 of the names:\n  xyz"
    )


def test_flax_modules_of_other_names_are_listed_with_the_closest():
    _, variables, graph = flax_network()
    less = {"params": {name: arrays for name, arrays in variables["params"].items() if name != "Dense_0"}}
    with pytest.raises(fc.FuncconvError, match=r"only the graph has 3 of the names(.|\n)*only the other side has 2"):
        fc.interop.from_linen(graph, less)


# The command line -------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = fc.Input("x", (6, 6, 3))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, (3, 2)), fc.BatchNorm())(x))
    (tmp_path / "net.json").write_text(graph.to_json())
    return graph


NAMES = ("--name", "conv1=conv", "--name", "batch_norm1=bn")


def converted(capsys, *arguments):
    """Return the parameters and the state that `convert` writes, and the lines that it prints."""
    assert main(["convert", arguments[0], "out.safetensors", "--graph", "net.json", *arguments[1:]]) == 0
    captured = capsys.readouterr()
    assert not captured.out
    return fc.interop.load("out.safetensors")[1], fc.interop.load_state("out.safetensors"), captured.err


@pytest.mark.parametrize("name", ["a.pt", "a.pth.tar", "a.ckpt", "a.bin", "weights"])
def test_convert_reads_checkpoints(torch, network, capsys, name):
    checkpoint = {"state_dict": tensors(torch, state_dict(), "module."), "optimizer": adam_state(torch)}
    torch.save(checkpoint, name)
    params, state, said = converted(capsys, name, *NAMES)
    expected = fc.interop.from_torch(network, state_dict(), names={"conv1": "conv", "batch_norm1": "bn"})
    jax.tree.map(np.testing.assert_array_equal, (params, state), expected)
    assert "used the entry 'state_dict'" in said
    assert "removed the prefix 'module.'" in said


def test_convert_takes_a_key(torch, network, capsys):
    torch.save({"model": tensors(torch, state_dict()), "ema": tensors(torch, state_dict(1))}, "a.pt")
    assert main(["convert", "a.pt", "out.safetensors", "--graph", "net.json", *NAMES]) == 2
    assert "key='ema': 7 arrays" in capsys.readouterr().err
    params, _, said = converted(capsys, "a.pt", "--key", "ema", *NAMES)
    np.testing.assert_array_equal(params["conv1"]["bias"], state_dict(1)["conv.bias"])
    assert not said
    del network


def test_convert_reads_safetensors_with_names_of_torch(network, capsys):
    fc.interop.save_safetensors("a.safetensors", {f"model.{name}": array for name, array in state_dict().items()})
    params, state, said = converted(capsys, "a.safetensors", *NAMES)
    expected = fc.interop.from_torch(network, state_dict(), names={"conv1": "conv", "batch_norm1": "bn"})
    jax.tree.map(np.testing.assert_array_equal, (params, state), expected)
    assert "removed the prefix 'model.'" in said
    assert main(["convert", "out.safetensors", "b.safetensors", "--key", "conv1"]) == 2
    assert "Omit --key" in capsys.readouterr().err


def test_convert_keeps_a_prefix_that_the_graph_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, inner_x = fc.Input("x", (6, 6, 3)), fc.Input("x", (6, 6, 3))
    inner = fc.Graph(inner_x, fc.serial(fc.Conv(4, (3, 2)), fc.BatchNorm())(inner_x), name="model")
    graph = fc.Graph(x, inner(x))
    (tmp_path / "net.json").write_text(graph.to_json())
    fc.interop.save_safetensors("a.safetensors", {f"model.{name}": array for name, array in state_dict().items()})
    names = [option for pair in ("conv1=model.conv", "batch_norm1=model.bn") for option in ("--name", f"model/{pair}")]
    params, _, said = converted(capsys, "a.safetensors", *names)
    np.testing.assert_array_equal(params["model"]["conv1"]["bias"], state_dict()["conv.bias"])
    assert not said


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
@pytest.mark.parametrize("name", ["a.msgpack", "orbax", "a.bin"])
def test_convert_reads_flax_modules(tmp_path, monkeypatch, capsys, rng, name):
    monkeypatch.chdir(tmp_path)
    module, variables, graph = flax_network()
    (tmp_path / "net.json").write_text(graph.to_json())
    written = write(tmp_path, "a.msgpack" if "." in name else name, train_state(variables))
    written.rename(tmp_path / name)
    params, state, said = converted(capsys, name)
    x = rng.normal(size=(2, 5, 5, 2)).astype(F32)
    close(graph.apply(params, state, x)[0], module.apply(variables, x))
    assert "used the entries params and batch_stats" in said
    names = [
        option for pair in ("conv1=stem", "batch_norm1=BatchNorm_0", "dense1=Dense_0") for option in ("--name", pair)
    ]
    jax.tree.map(np.testing.assert_array_equal, converted(capsys, name, *names)[:2], (params, state))


def test_convert_lists_all_entries(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = fc.Input("x", (4,))
    graph = fc.Graph(x, fc.serial(*(fc.Dense(4) for _ in range(40)))(x))
    (tmp_path / "net.json").write_text(graph.to_json())
    modules = {f"Dense_{i}": {"kernel": np.ones((4, 4), F32), "bias": np.ones(4, F32)} for i in range(39)}
    write(tmp_path, "a.msgpack", {"params": modules})
    assert main(["convert", "a.msgpack", "b.safetensors", "--graph", "net.json"]) == 2
    said = capsys.readouterr().err
    assert all(f"dense{i} " in said for i in range(1, 41))
    assert all(f"Dense_{i} " in said for i in range(39))
    assert said.count("\n") == 1


def test_help_lists_the_formats(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (".pt, .pth, .pth.tar, .ckpt or .bin", ".safetensors", ".msgpack", "orbax", "--key"):
        assert part in text
