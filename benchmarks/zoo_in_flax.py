"""Networks of `fc.zoo` in Flax, with the same layers, for the suite `zoo`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, epsilon=1e-5)


def _mean(x: Any) -> Any:
    return x.mean(tuple(range(1, x.ndim - 1)))


class ConvNorm(nn.Module):
    """A convolution without a bias, its batch norm and an activation."""

    channels: int
    window: int
    stride: int = 1
    groups: int = 1
    activation: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute."""
        sizes, strides, pad = (self.window,) * 2, (self.stride,) * 2, self.window // 2
        conv = nn.Conv(self.channels, sizes, strides, pad, feature_group_count=self.groups, use_bias=False)
        y = Norm()(conv(x))
        return y if self.activation is None else self.activation(y)


class ResNet(nn.Module):
    """A residual network of basic blocks (18) or bottlenecks (50)."""

    counts: tuple[int, ...]
    bottlenecks: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits."""
        x = ConvNorm(64, 7, 2, activation=nn.relu)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, count in enumerate(self.counts):
            for i in range(count):
                x = self._block(x, 64 << stage, 2 if stage and not i else 1)
        return nn.Dense(1000)(_mean(x))

    def _block(self, x: Any, channels: int, stride: int) -> Any:
        conv, outputs = partial(ConvNorm, activation=nn.relu), channels
        if self.bottlenecks:
            outputs = 4 * channels
            y = conv(channels, 3, stride)(conv(channels, 1)(x))
            y = ConvNorm(outputs, 1)(y)
        else:
            y = ConvNorm(channels, 3)(conv(channels, 3, stride)(x))
        if y.shape != x.shape:
            x = ConvNorm(outputs, 1, stride)(x)
        return nn.relu(x + y)


class MobileNetV2(nn.Module):
    """Inverted residual blocks."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits."""
        conv = partial(ConvNorm, activation=nn.relu6)
        x = conv(32, 3, 2)(x)
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
        for expansion, channels, count, stride in (*stages, (6, 320, 1, 1)):
            for i in range(count):
                wide = expansion * x.shape[-1]
                y = conv(wide, 1)(x) if expansion > 1 else x
                y = conv(wide, 3, 1 if i else stride, wide)(y)
                y = ConvNorm(channels, 1)(y)
                x = x + y if x.shape == y.shape else y
        return nn.Dense(1000)(_mean(conv(1280, 1)(x)))


class LeNet(nn.Module):
    """Two convolutions with mean pools, and three dense layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits."""
        for channels, padding in ((6, 2), (16, 0)):
            x = nn.avg_pool(jnp.tanh(nn.Conv(channels, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = jnp.tanh(nn.Dense(features)(x))
        return nn.Dense(10)(x)


class UNet(nn.Module):
    """Down and up again, with shortcuts between."""

    depth: int = 4

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits of each position."""
        skips = []
        for level in range(self.depth + 1):
            x = self._convs(nn.max_pool(x, (2, 2), (2, 2)) if level else x, 64 << level)
            skips.append(x)
        for level in reversed(range(self.depth)):
            x = nn.ConvTranspose(64 << level, (2, 2), (2, 2))(x)
            x = self._convs(jnp.concatenate([skips[level], x], -1), 64 << level)
        return nn.Conv(2, (1, 1))(x)

    def _convs(self, x: Any, channels: int) -> Any:
        for _ in range(2):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
        return x


class ConvNeXt(nn.Module):
    """Residual blocks of a depthwise convolution, a layer norm and two dense layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits."""
        norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
        for stage, (count, channels) in enumerate(((3, 96), (3, 192), (9, 384), (3, 768))):
            if stage:
                x = nn.Conv(channels, (2, 2), (2, 2), "VALID")(norm()(x))
            else:
                x = norm()(nn.Conv(channels, (4, 4), (4, 4), "VALID")(x))
            for i in range(count):
                y = norm()(nn.Conv(channels, (7, 7), padding=3, feature_group_count=channels)(x))
                y = nn.gelu(nn.Dense(4 * channels)(y), approximate=False)
                scale = self.param(f"scale_{stage}_{i}", nn.initializers.constant(1e-6), (channels,))
                x = x + scale * nn.Dense(channels)(y)
        return nn.Dense(1000)(norm()(_mean(x)))


class WaveNet(nn.Module):
    """Gated residual blocks of dilated causal convolutions."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Compute the logits of each time."""
        x = nn.Conv(32, (2,), padding="CAUSAL")(x)
        skips: Any = 0
        for i in range(30):
            conv = partial(nn.Conv, 32, (2,), padding="CAUSAL", kernel_dilation=2 ** (i % 10))
            y = jnp.tanh(conv()(x)) * jax.nn.sigmoid(conv()(x))
            skips = skips + nn.Conv(256, (1,))(y)
            x = x + nn.Conv(32, (1,))(y) if i < 29 else x
        return nn.Conv(256, (1,))(nn.relu(nn.Conv(256, (1,))(nn.relu(skips))))


MODELS: dict[str, Any] = {
    "lenet()": LeNet(),
    "resnet(18)": ResNet((2, 2, 2, 2), bottlenecks=False),
    "resnet(50)": ResNet((3, 4, 6, 3), bottlenecks=True),
    "mobilenet_v2()": MobileNetV2(),
    'convnext("tiny")': ConvNeXt(),
    "unet()": UNet(),
    "wavenet()": WaveNet(),
}
