"""Attributions of a network of PyTorch are those that captum computes."""

from typing import Any

import jax
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc

torch, captum = needed("torch"), needed("captum.attr")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.once
attribution = fc.attribution
BATCH, SHAPE, LABELS = 3, (2, 12, 11), [1, 3, 0]


@pytest.fixture(scope="module")
def networks():
    """Return a module, its inputs, the traced graph, and its parameters and state."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4)),
    )
    module = module.double().eval()
    for weights in module.parameters():  # so that attributions are as large as 1
        weights.data.normal_(0, 0.5)
    module[1].running_mean.normal_(0, 0.3)
    module[1].running_var.uniform_(0.5, 1.5)
    images = torch.randn(BATCH, *SHAPE, dtype=torch.float64)
    graph, params, state = fc.interop.trace_torch(module, images, layout="NHWC")
    return module, images, graph, {"params": params, "state": state}


def own(method: str, networks: Any, **options: Any) -> Any:
    """Return our attributions, compiled, with channels first."""
    _, images, graph, trees = networks
    x = np.moveaxis(images.numpy(), 1, -1)
    of = lambda y: y[np.arange(BATCH), np.array(LABELS)]  # noqa: E731
    compute = jax.jit(
        lambda params, state, x: getattr(attribution, method)(graph, params, x, of=of, state=state, **options)
    )
    result = compute(trees["params"], trees["state"], x)
    return jax.tree.map(lambda leaf: np.moveaxis(leaf, -1, 1) if leaf.ndim == 4 else np.asarray(leaf), result)


@pytest.mark.parametrize(
    ("method", "theirs", "options"),
    [
        ("gradient", "Saliency", {"abs": False}),
        ("guided", "GuidedBackprop", {}),
        ("deconvolution", "Deconvolution", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks on ReLU")  # what captum does
def test_gradients_and_rules(networks, method, theirs, options):
    module, images, *_ = networks
    expected = getattr(captum, theirs)(module).attribute(images.clone().requires_grad_(), target=LABELS, **options)
    assert expected.abs().max() > 0.1
    close(own(method, networks), expected.detach().numpy())


@pytest.mark.parametrize("steps", [1, 9])
def test_integrated_gradients(networks, steps):
    module, images, *_ = networks
    integrated = captum.IntegratedGradients(module)
    expected, gap = integrated.attribute(
        images, 0.2, LABELS, n_steps=steps, method="gausslegendre", return_convergence_delta=True
    )
    result = own("integrated_gradients", networks, baseline=0.2, steps=steps)
    close(result.attributions, expected.numpy(), np.float32)  # in which captum computes the points
    close(result.gap, gap.numpy(), np.float32)


@pytest.mark.parametrize("layer", [4, 6, 7])
def test_grad_cam(networks, layer):
    module, images, *_ = networks
    at = str(layer)  # the name of the module's node
    cam = captum.LayerGradCam(module, module[layer])
    expected = cam.attribute(images, LABELS, relu_attributions=True)
    close(own("grad_cam", networks, at=at, upsample=False), expected[:, 0].detach().numpy())
    large = captum.LayerAttribution.interpolate(expected, SHAPE[1:], "bilinear")
    close(own("grad_cam", networks, at=at), large[:, 0].detach().numpy())


@pytest.mark.parametrize(("window", "stride"), [((3, 4), (2, 4)), ((5, 2), (5, 1))])
def test_occlusion(networks, window, stride):
    module, images, *_ = networks
    with torch.no_grad():
        expected = captum.Occlusion(module).attribute(
            images, (SHAPE[0], *window), (SHAPE[0], *stride), target=LABELS, baselines=0.5
        )
    result = own("occlusion", networks, window=window, stride=stride, fill=0.5, batch_size=4)
    for channel in range(SHAPE[0]):
        close(result, expected[:, channel].numpy(), np.float32)  # in which captum averages
