"""Models of torchvision and timm compute the same as graphs, in both modes, and their weights survive a round trip.

All models of `benchmarks/torch_models.txt` run with `pytest -m slow -rA tests/interop/test_torch_models.py`.
It lists which are accepted (passed), refused (skipped, with the reason) and wrong (failed); with `--durations=0` also
the time of each. `TORCH_MODELS=FILE` takes another list.
"""

import gc
import os
from pathlib import Path

import jax
import pytest
from available import needed
from torch_models import Comparison, import_torchvision, random_model

import funcconv as fc

needed("torch")

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("climate_of_a_user")]

LIST = Path(os.environ.get("TORCH_MODELS", Path(__file__).parents[2] / "benchmarks" / "torch_models.txt"))
# Errors of rounding grow through the layers. These bounds leave room for hundreds of layers, in float32 and in float64.
# A wrong translation differs in the first digits.
OUTPUTS, TRAINING = 1e-4, 1e-7

# Small models of different kinds, with residuals, depthwise and partial convolutions, squeeze and excitation, branches
# that are joined, weights that are standardized in `forward`, gates, layer norms, and outputs that are interpolated.
MODELS = {
    "timm/convnextv2_atto": 64,
    "timm/resnet18": 32,
    "timm/fasternet_t0": 64,
    "timm/nf_resnet26": 64,
    "timm/starnet_s050": 64,
    "timm/test_mambaout": 64,
    "timm/test_byobnet": 32,
    "timm/test_convnext2": 32,
    "timm/test_efficientnet": 32,
    "timm/test_resnet": 32,
    "torchvision/squeezenet1_1": 32,
    "torchvision/lraspp_mobilenet_v3_large": 64,
}
WITH_GRADIENTS = ("timm/fasternet_t0", "timm/test_efficientnet", "torchvision/squeezenet1_1")


@pytest.fixture(autouse=True)
def memory_of_a_model_is_given_back():
    yield
    jax.clear_caches()
    gc.collect()


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    import_torchvision()
    comparison = Comparison(random_model(name), MODELS[name])
    assert comparison.outputs() < OUTPUTS
    assert comparison.training(gradients=name in WITH_GRADIENTS) < TRAINING
    comparison.check_round_trip()


def listed():
    """Return the names and the sizes of the images in the list."""
    lines = [line.split() for line in LIST.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [pytest.param(name, int(*size or ["64"]), id=name) for name, *size in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), listed())
def test_model_of_the_list(name, size):
    """A model passes if it is accepted and right, fails if it is wrong, and is skipped if it is refused."""
    import_torchvision()
    model = random_model(name)
    try:
        comparison = Comparison(model, size)
    except fc.FuncconvError as error:
        pytest.skip(f"refused: {error}")
    difference = comparison.outputs()
    # Random weights can enlarge rounding errors in PyTorch too. Both libraries round, in other places.
    assert difference < OUTPUTS or difference < 4 * comparison.rounding()
    comparison.check_round_trip()
    difference = comparison.training(gradients=True, traced_in_float64=True)
    assert difference < (OUTPUTS if comparison.casts_to_float32() else TRAINING)
