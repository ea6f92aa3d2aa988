"""The same networks in PyTorch, run eagerly: what its user runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from .libraries import Network


class Layers:
    """The layers of PyTorch, made in a first run: channels come first, and last in memory where PyTorch knows that."""

    relu, tanh = staticmethod(torch.relu), staticmethod(torch.tanh)

    def __init__(self) -> None:
        self.modules: list[Any] = []
        self.at = 0
        self.recording = True

    def layer(self, make: Callable[[], Any]) -> Any:
        """Return the next layer."""
        if self.recording:
            self.modules.append(make())
        self.at += 1
        return self.modules[self.at - 1]

    def conv(self, x: Any, channels: int, window: int, padding: Any = 0, **options: Any) -> Any:
        """Convolve; a padding of pairs is put before."""
        if not isinstance(padding, int):
            x = nn.functional.pad(x, [n for pair in reversed(padding) for n in pair])
            padding = 0
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[x.ndim - 3]
        return self.layer(lambda: kind(x.shape[1], channels, window, padding=padding, device=x.device, **options))(x)

    def conv_transpose(self, x: Any, channels: int, window: int) -> Any:
        """Convolve back, with a stride as wide as the window."""
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[x.ndim - 3]
        return self.layer(lambda: kind(x.shape[1], channels, window, window, device=x.device))(x)

    def max_pool(self, x: Any) -> Any:
        """Pool by two."""
        f = nn.functional
        return (f.max_pool1d, f.max_pool2d, f.max_pool3d)[x.ndim - 3](x, 2)

    def dense(self, x: Any, features: int) -> Any:
        """Multiply by a matrix."""
        return self.layer(lambda: nn.Linear(x.shape[1], features, device=x.device))(x)

    def mean(self, x: Any) -> Any:
        """Return the mean over all places."""
        return x.mean(tuple(range(2, x.ndim)))

    def flatten(self, x: Any) -> Any:
        """Return one vector for each image."""
        return x.flatten(1)

    def concat(self, *xs: Any) -> Any:
        """Return the channels of all."""
        return torch.cat(xs, 1)


_IN_MEMORY = {4: torch.channels_last, 5: torch.channels_last_3d}


class Queued:
    """A result that a GPU may still have to compute."""

    def block_until_ready(self) -> None:
        """Wait for it, when JAX waits for a list of results."""
        torch.cuda.synchronize()


def programs(net: Network, x: Any, *, channels_last: bool, device: str = "cpu") -> dict[str, Callable[[], Any]]:
    """Return a training step, inference and a product with the Hessian."""
    torch.backends.cudnn.benchmark = True  # measures the forms of cuDNN, as XLA does
    images = torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy()).to(device)
    layers = Layers()
    with torch.no_grad():
        net(layers, images)
    layers.recording = False
    model = nn.ModuleList(layers.modules)
    if channels_last and images.ndim in _IN_MEMORY:
        model = model.to(memory_format=_IN_MEMORY[images.ndim])
        images = images.to(memory_format=_IN_MEMORY[images.ndim])
    params = list(model.parameters())
    vector = [torch.randn_like(p) for p in params]
    optimizer = torch.optim.SGD(params, 1e-6)

    def predict() -> Any:
        layers.at = 0
        return net(layers, images)

    def loss() -> Any:
        return torch.square(predict() - 1).mean()

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    def inference() -> None:
        with torch.inference_mode():
            predict()

    def product() -> None:
        gradient = torch.autograd.grad(loss(), params, create_graph=True)
        torch.autograd.grad(gradient, params, vector)

    tasks = {"training step": step, "inference": inference, "HVP": product}
    return tasks if device == "cpu" else {name: _queued(task) for name, task in tasks.items()}


def _queued(task: Callable[[], None]) -> Callable[[], Queued]:
    def call() -> Queued:
        task()
        return Queued()

    return call
