"""The layers of funcconv and of its peers under the same few names, so that a network is written once.

`on_jax` has a function for each library on JAX that is installed: of a network `net(layers, x)` and a batch of images
`(batch, *spatial, channels)` it returns parameters, a function `predict(params, x)`, and the batch as the library takes
it. PyTorch, which has no such functions, is in `torch_eager.py`.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

import funcconv as fc

Network: TypeAlias = Callable[[Any, Any], Any]
Built: TypeAlias = tuple[Any, Callable[[Any, Any], Any], Any]


class Layers:
    """What is the same in all libraries on JAX, and what most have in common: arrays with channels last."""

    relu = staticmethod(jax.nn.relu)
    tanh = staticmethod(jnp.tanh)

    def mean(self, x: Any) -> Any:
        """Return the mean over all places."""
        return x.mean(tuple(range(1, x.ndim - 1)))

    def flatten(self, x: Any) -> Any:
        """Return one vector for each image."""
        return x.reshape(len(x), -1)

    def concat(self, *xs: Any) -> Any:
        """Return the channels of all."""
        return jnp.concatenate(xs, -1)


class Recorded(Layers):
    """Layers that are created in the first run of a network, and used in the same order in all later runs."""

    def __init__(self, layers: list[Any] | None = None) -> None:
        self.new_layers: list[Any] = []
        self.layers = None if layers is None else iter(layers)

    def layer(self, make: Callable[[Any], Any]) -> Any:
        """Return the next layer, or its parameters."""
        if self.layers is not None:
            return next(self.layers)
        self.new_layers.append(make(jax.random.key(len(self.new_layers))))
        return self.new_layers[-1]


def recorded(layers: type[Recorded], net: Network, x: Any) -> Built:
    """Run a network once, for its parameters."""
    first = layers()
    jax.block_until_ready(net(first, x))
    return first.new_layers, lambda params, x: net(layers(params), x), x


class Funcconv(Recorded):
    """The ops of funcconv."""

    implementation: str | None = None

    def conv(self, x: Any, channels: int, window: int, groups: int = 1, **options: Any) -> Any:
        """Convolve."""
        sizes = (window,) * (x.ndim - 2)
        params = self.layer(lambda key: fc.init_conv(key, x.shape[-1], channels, sizes, groups=groups))
        return fc.conv(params, x, groups=groups, implementation=self.implementation, **options)

    def conv_transpose(self, x: Any, channels: int, window: int) -> Any:
        """Convolve back, with a stride as wide as the window."""
        sizes = (window,) * (x.ndim - 2)
        params = self.layer(lambda key: fc.init_conv_transpose(key, x.shape[-1], channels, sizes))
        return fc.conv_transpose(params, x, stride=window, implementation=self.implementation)

    def max_pool(self, x: Any) -> Any:
        """Pool by two."""
        return fc.pool(x, spatial=x.ndim - 2)

    def dense(self, x: Any, features: int) -> Any:
        """Multiply by a matrix."""
        return fc.dense(self.layer(lambda key: fc.init_dense(key, x.shape[-1], features)), x)


class ThroughLax(Funcconv):
    """The same with the convolutions of `jax.lax`, and its pool."""

    implementation = "lax"

    def max_pool(self, x: Any) -> Any:
        """Pool by two."""
        window = (1, *(2,) * (x.ndim - 2), 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def _flax(net: Network, x: Any) -> Built:
    from flax import linen as nn

    class Inline(Layers):
        def conv(self, x: Any, channels: int, window: int, stride: int = 1, dilation: int = 1, **options: Any) -> Any:
            padding, groups = options.get("padding", 0), options.get("groups", 1)
            sizes = (window,) * (x.ndim - 2)
            strides, dilations = (stride,) * len(sizes), (dilation,) * len(sizes)
            layer = nn.Conv(channels, sizes, strides, padding, kernel_dilation=dilations, feature_group_count=groups)
            return layer(x)

        def conv_transpose(self, x: Any, channels: int, window: int) -> Any:
            sizes = (window,) * (x.ndim - 2)
            return nn.ConvTranspose(channels, sizes, sizes)(x)

        def max_pool(self, x: Any) -> Any:
            sizes = (2,) * (x.ndim - 2)
            return nn.max_pool(x, sizes, sizes)

        def dense(self, x: Any, features: int) -> Any:
            return nn.Dense(features)(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return net(Inline(), x)

    model = Model()
    return jax.jit(model.init)(jax.random.key(0), x), model.apply, x


def _haiku(net: Network, x: Any) -> Built:
    import haiku as hk

    class Inline(Layers):
        def conv(self, x: Any, channels: int, window: int, stride: int = 1, dilation: int = 1, **options: Any) -> Any:
            axes, groups = x.ndim - 2, options.get("groups", 1)
            kind = (hk.Conv1D, hk.Conv2D, hk.Conv3D)[axes - 1]
            padding = _pairs(options.get("padding", 0), axes)
            return kind(channels, window, stride, dilation, padding, feature_group_count=groups)(x)

        def conv_transpose(self, x: Any, channels: int, window: int) -> Any:
            kind = (hk.Conv1DTranspose, hk.Conv2DTranspose, hk.Conv3DTranspose)[x.ndim - 3]
            return kind(channels, window, window)(x)

        def max_pool(self, x: Any) -> Any:
            sizes = (*(2,) * (x.ndim - 2), 1)
            return hk.max_pool(x, sizes, sizes, "VALID")

        def dense(self, x: Any, features: int) -> Any:
            return hk.Linear(features)(x)

    model = hk.without_apply_rng(hk.transform(lambda x: net(Inline(), x)))
    return jax.jit(model.init)(jax.random.key(0), x), model.apply, x


def _equinox(net: Network, x: Any) -> Built:
    import equinox as eqx

    class Mapped(Recorded):
        """Channels come first, and layers take one example."""

        def conv(self, x: Any, channels: int, window: int, **options: Any) -> Any:
            axes = x.ndim - 2
            options["padding"] = _pairs(options.get("padding", 0), axes)
            make = partial(eqx.nn.Conv, axes, x.shape[1], channels, window, **options)
            return jax.vmap(self.layer(lambda key: make(key=key)))(x)

        def conv_transpose(self, x: Any, channels: int, window: int) -> Any:
            make = partial(eqx.nn.ConvTranspose, x.ndim - 2, x.shape[1], channels, window, window)
            return jax.vmap(self.layer(lambda key: make(key=key)))(x)

        def max_pool(self, x: Any) -> Any:
            axes = x.ndim - 2
            return jax.vmap((eqx.nn.MaxPool1d, eqx.nn.MaxPool2d, eqx.nn.MaxPool3d)[axes - 1](2, 2))(x)

        def dense(self, x: Any, features: int) -> Any:
            return jax.vmap(self.layer(lambda key: eqx.nn.Linear(x.shape[1], features, key=key)))(x)

        def mean(self, x: Any) -> Any:
            return x.mean(tuple(range(2, x.ndim)))

        def concat(self, *xs: Any) -> Any:
            return jnp.concatenate(xs, 1)

    modules, _, x = recorded(Mapped, net, jnp.moveaxis(x, -1, 1))
    arrays, rest = eqx.partition(modules, eqx.is_array)
    return arrays, lambda arrays, x: net(Mapped(eqx.combine(arrays, rest)), x), x


def _pairs(padding: Any, axes: int) -> Any:
    return ((padding, padding),) * axes if isinstance(padding, int) else padding


def on_jax() -> dict[str, Callable[[Network, Any], Built]]:
    """Return the libraries that are installed."""
    peers = {"flax": _flax, "haiku": _haiku, "equinox": _equinox}
    ours = {"funcconv": partial(recorded, Funcconv), "lax": partial(recorded, ThroughLax)}
    return ours | {name: build for name, build in peers.items() if importlib.util.find_spec(name)}
