"""Coming from and going to other libraries: outputs and gradients are the same, and what does not fit is told."""

from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close, products_of
from flax import linen as nn
from flax import nnx

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
KEY = jax.random.key(0)
F32 = np.float32


@pytest.fixture
def wide(climate_of_a_user):
    """With float64 at hand."""
    del climate_of_a_user
    with jax.enable_x64(True):
        yield


def over(layers, shape):
    x = fc.Input("x", shape)
    return fc.Graph(x, layers(x))


def filled(tree, rng):
    """Return a tree of other numbers, all above zero."""
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.2, 1, a.shape), a.dtype), tree)


# PyTorch ----------------------------------------------------------------------------------------------------


def lenet():
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )
    graph = fc.serial(
        fc.Conv(6, 5, padding=2),
        jnp.tanh,
        fc.avg_pool,
        fc.Conv(16, 5),
        jnp.tanh,
        fc.avg_pool,
        fc.Flatten(),
        fc.Dense(20),
        jax.nn.relu,
        fc.Dense(10),
    )
    return module, over(graph, (28, 28, 1))


def mobile():
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(6 * 8 * 6, 4),
    )
    graph = fc.serial(
        fc.Conv(8, 3, stride=2, padding=1, bias=False),
        fc.BatchNorm(),
        jax.nn.relu6,
        fc.Conv(8, 3, padding=1, groups=8, bias=False),
        fc.BatchNorm(),
        fc.Conv(6, 1),
        jax.nn.relu,
        fc.flatten,
        fc.Dense(4),
    )
    return module, over(graph, (16, 12, 3))


def up_and_down():
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.InstanceNorm2d(4, eps=1e-3, affine=True),
        nn.LayerNorm([4, 12, 16]),
        nn.RMSNorm([4, 12, 16], eps=1e-3),
        nn.Conv2d(4, 2, 1),
    )
    graph = fc.serial(
        fc.Conv(6, 3, stride=2, padding=1),
        fc.GroupNorm(2),
        jax.nn.relu,
        fc.ConvTranspose(4, 4, stride=2, padding=1, groups=2),
        jnp.tanh,
        fc.InstanceNorm(epsilon=1e-3),
        fc.LayerNorm(3),
        fc.RMSNorm(3, epsilon=1e-3),
        fc.Conv(2, 1),
    )
    return module, over(graph, (12, 16, 3))


def wave():
    from torch import nn

    module = nn.Sequential(
        OrderedDict(
            first=nn.Conv1d(2, 8, 3, dilation=2),
            act=nn.Tanh(),
            second=nn.ConvTranspose1d(8, 4, 3, stride=3),
            flat=nn.Flatten(),
            last=nn.Linear(4 * 36, 3, bias=False),
        )
    )
    graph = fc.serial(
        fc.Conv(8, 3, dilation=2),
        jnp.tanh,
        fc.ConvTranspose(4, 3, stride=3),
        fc.Flatten(order="channels_first"),
        fc.Dense(3, bias=False),
    )
    return module, over(graph, (16, 2))


def flat_norm():
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        nn.BatchNorm1d(80),
        nn.ReLU(),
        nn.Linear(80, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2),
    )
    graph = fc.serial(fc.Conv(4, 3), fc.flatten, fc.BatchNorm(), jax.nn.relu, fc.Dense(5), fc.BatchNorm(), fc.Dense(2))
    return module, over(graph, (6, 7, 3))


def solid():
    from torch import nn

    module = nn.Sequential(nn.Conv3d(2, 4, (3, 2, 1)), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, 2))
    graph = fc.serial(fc.Conv(4, (3, 2, 1)), fc.BatchNorm(), jax.nn.relu, fc.Flatten(), fc.Dense(2))
    return module, over(graph, (6, 4, 4, 2))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("declare", [lenet, mobile, up_and_down, wave, flat_norm, solid])
def test_a_torch_module_and_its_graph_compute_the_same(declare, train, rng):
    torch = needed("torch")
    torch.manual_seed(0)
    module, graph = declare()
    module.double()
    for name, buffer in module.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    module.train(train)
    for submodule in module.modules():
        if isinstance(submodule, torch.nn.Dropout):
            submodule.eval()
    params, state = fc.interop.from_torch(graph, module.state_dict(), pairing="order")
    x = rng.normal(size=(4, *graph._signature[0].shape))
    first = torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)), requires_grad=True)
    out = module(first)
    torch.sin(out).sum().backward()

    def s(params, x):
        y, after = graph.apply(params, state, x, train=train)
        return jnp.sin(y).sum(), (y, after)

    (by_params, by_x), (y, after) = jax.jit(jax.grad(s, argnums=(0, 1), has_aux=True))(params, x)
    expected = out.detach().numpy()
    close(y, np.moveaxis(expected, 1, -1) if expected.ndim > 2 else expected, ulps=128)
    close(by_x, np.moveaxis(first.grad.numpy(), 1, -1), ulps=256)
    theirs = {name: p.grad for name, p in module.named_parameters()}
    theirs |= {name: tensor for name, tensor in module.named_buffers() if name.endswith(("mean", "var"))}
    expected_gradients, _ = fc.interop.from_torch(graph, theirs, pairing="order")
    jax.tree.map(lambda a, b: close(a, b, ulps=512), by_params, expected_gradients)
    _, expected_state = fc.interop.from_torch(graph, module.state_dict(), pairing="order")
    jax.tree.map(lambda a, b: close(a, b, ulps=128), after, expected_state)


@pytest.mark.parametrize("declare", [lenet, mobile, up_and_down, wave, flat_norm, solid])
def test_to_torch_and_back_is_where_one_was(declare, rng):
    torch = needed("torch")
    module, graph = declare()
    params, state = filled(graph.init(KEY), rng), filled(graph.init_state(), rng)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in module.state_dict()))
    names = dict(zip(graph.entries, modules, strict=True))
    arrays = fc.interop.to_torch(graph, params, state, names=names)
    assert arrays.keys() == module.state_dict().keys()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    again, state_again = fc.interop.from_torch(graph, module.state_dict(), names=names)
    jax.tree.map(np.testing.assert_array_equal, (again, state_again), (params, state))


def flattening(order):
    """Return a module that flattens an image in this order, and a graph that flattens with its channels last."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4 * 5 * 3, 2), nn.Conv2d(2, 3, 3)  # registered in another order

        def forward(self, x):
            y = self.first(x).tanh()
            return self.last(order(y))

    graph = fc.serial(fc.Conv(3, 3), jnp.tanh, fc.flatten, fc.Dense(2))
    return Net().double(), over(graph, (6, 7, 2))


FLATTENED = {
    "view": lambda y: y.view(y.size(0), -1),
    "flatten": lambda y: y.flatten(1),
    "permuted": lambda y: y.permute(0, 2, 3, 1).flatten(1),
    "permuted otherwise": lambda y: y.permute(0, 3, 2, 1).reshape(y.shape[0], -1),
}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", FLATTENED)
def test_the_order_of_a_flattened_image(name, rng):
    """A module with an example, a traced graph with a state dict: each has the rows where the module has them."""
    torch = needed("torch")
    module, graph = flattening(FLATTENED[name])
    x = torch.tensor(rng.normal(size=(3, 2, 6, 7)))
    expected = module(x).detach().numpy()
    traced, *_ = fc.interop.trace_torch(module, x)
    params, _ = fc.interop.from_torch(traced, module.state_dict())
    close(traced(params, x.numpy()), expected, ulps=256)
    again = fc.interop.to_torch(traced, params)
    assert all(np.array_equal(again[key], value.numpy()) for key, value in module.state_dict().items())
    if name == "permuted otherwise":
        with pytest.raises(fc.FuncconvError, match=r"differ by|different results"):
            fc.interop.from_torch(graph, module, x)
        return
    params, _ = fc.interop.from_torch(graph, module, x)
    close(graph(params, np.moveaxis(x.numpy(), 1, -1)), expected, ulps=256)
    order = "channels_last" if name == "permuted" else "channels_first"
    by_names = {"conv1": "first", "dense1": "last"}
    same, _ = fc.interop.from_torch(graph, module.state_dict(), names=by_names, flatten_order=order)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    again = fc.interop.to_torch(graph, params, names=by_names, flatten_order=order)
    assert list(again) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert all(np.array_equal(again[key], value.numpy()) for key, value in module.state_dict().items())


def equal_layers():
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)  # registered in another order than they are called

        def forward(self, x):
            return self.b(self.a(x).exp())

    return Net().double(), over(fc.serial(fc.Conv(3, 1), jnp.exp, fc.Conv(3, 1)), (4, 5, 3))


@pytest.mark.usefixtures("wide")
def test_layers_of_equal_shape_are_paired_by_use(rng):
    torch = needed("torch")
    module, graph = equal_layers()
    x = torch.tensor(rng.normal(size=(3, 3, 4, 5)))
    params, state = fc.interop.from_torch(graph, module, x)
    assert state == {}
    y = graph(params, np.moveaxis(x.numpy(), 1, -1))
    close(np.moveaxis(np.asarray(y), -1, 1), module(x).detach().numpy(), ulps=256)
    with pytest.raises(fc.FuncconvError, match=r"(?s)several modules.*conv1: a, b.*Three solutions: pass the module"):
        fc.interop.from_torch(graph, module.state_dict())
    with pytest.raises(fc.FuncconvError, match="a module needs an example"):
        fc.interop.from_torch(graph, module)
    with pytest.raises(fc.FuncconvError, match="with these weights, graph and module differ by"):
        fc.interop.from_torch(graph, module, x, names={"conv1": "b", "conv2": "a"})
    same, _ = fc.interop.from_torch(graph, module, x, names={"conv1": "a", "conv2": "b"})
    jax.tree.map(np.testing.assert_array_equal, same, params)
    module.auxiliary = torch.nn.Linear(2, 2)  # which it does not use
    again, _ = fc.interop.from_torch(graph, module, x)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    del module.auxiliary
    arrays = {
        key.replace("a.", "conv1.").replace("b.", "conv2."): tensor for key, tensor in module.state_dict().items()
    }
    by_name, _ = fc.interop.from_torch(graph, arrays)
    jax.tree.map(np.testing.assert_array_equal, by_name, params)
    asked, _ = fc.interop.from_torch(graph, arrays, pairing="order")  # also where the names are equal
    np.testing.assert_array_equal(asked["conv1"]["bias"], params["conv2"]["bias"])
    in_order, _ = fc.interop.from_torch(graph, module.state_dict(), pairing="order")
    np.testing.assert_array_equal(in_order["conv1"]["bias"], params["conv2"]["bias"])


def test_names_may_repeat():
    graph = over(fc.serial(fc.Conv(3, 1), fc.Conv(3, 1)), (4, 4, 3))
    params = graph.init(KEY)
    tied = {"conv1": ["a", "c"], "conv2": "b"}
    arrays = fc.interop.to_torch(graph, params, names=tied)
    assert list(arrays) == ["a.weight", "c.weight", "a.bias", "c.bias", "b.weight", "b.bias"]
    again, _ = fc.interop.from_torch(graph, arrays, names=tied)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(fc.FuncconvError, match=r"'a.weight' and 'c.weight' differ, but are one entry"):
        fc.interop.from_torch(graph, arrays | {"c.weight": arrays["c.weight"] + 1}, names=tied)
    one = {"conv1": "a", "conv2": "a"}
    both, _ = fc.interop.from_torch(graph, {key: arrays[key] for key in ("a.weight", "a.bias")}, names=one)
    np.testing.assert_array_equal(both["conv2"]["kernel"], params["conv1"]["kernel"])
    assert list(fc.interop.to_torch(graph, both, names=one)) == ["a.weight", "a.bias"]
    with pytest.raises(fc.FuncconvError, match=r"two entries are 'a.weight' in PyTorch, but differ"):
        fc.interop.to_torch(graph, params, names=one)


def test_a_scale_of_each_channel_is_the_parameter_of_its_name(rng):
    """It is called as its entry, and has its axis of channels first in PyTorch; the order of a matrix is not known."""

    def block(shape):
        x = fc.Input("x", (5, 6, 3))
        y = fc.Conv(3, 1, name="conv")(x)
        return fc.Graph(x, fc.node(jnp.multiply, y, init=lambda *_: jnp.ones(shape), name="scale", batched=False))

    def whole(shape):
        x = fc.Input("x", (5, 6, 3))
        return fc.Graph(x, fc.Graph(x, block(shape)(x), name="block")(x))

    weights = {"block.conv.weight": rng.normal(size=(3, 3, 1, 1)).astype(F32), "block.conv.bias": np.ones(3, F32)}
    weights["block.scale"] = rng.normal(size=(3, 1, 1)).astype(F32)
    params, _ = fc.interop.from_torch(whole((1, 1, 3)), weights)
    assert np.array_equal(params["block"]["scale"], weights["block.scale"].reshape(1, 1, 3))
    back = fc.interop.to_torch(whole((1, 1, 3)), params)
    assert list(back) == list(weights)
    assert all(np.array_equal(back[name], array) for name, array in weights.items())
    with pytest.raises(fc.FuncconvError, match=r"block/scale is \(1, 1, 3\), that of .* is \(1, 3, 1\)"):
        fc.interop.from_torch(whole((1, 1, 3)), weights | {"block.scale": np.ones((1, 1, 3), F32)})
    with pytest.raises(fc.FuncconvError, match="no module for the layer multiply of the entry 'block/scale'"):
        fc.interop.from_torch(whole((5, 6, 3)), weights)


def test_to_torch_needs_the_state():
    graph = over(fc.serial(fc.Conv(3, 1), fc.BatchNorm()), (4, 4, 3))
    with pytest.raises(fc.FuncconvError, match=r"the graph has a state \(batch_norm1\), but state is None"):
        fc.interop.to_torch(graph, graph.init(KEY))


SMALL = {"a.weight": np.ones((4, 3, 3, 3)), "a.bias": np.ones(4), "b.weight": np.ones((2, 64)), "b.bias": np.ones(2)}


@pytest.mark.parametrize(
    ("weights", "names", "said"),
    [
        ({k: v for k, v in SMALL.items() if k[0] == "a"}, None, "2 entries and the other side 1 modules:\n  conv1  a"),
        (SMALL | {"a.weight": np.ones((4, 3, 3, 2))}, None, r"conv1/kernel is \(3, 3, 3, 4\), that of 'a' is \(3, 2"),
        (SMALL | {"a.gain": np.ones(1)}, None, r"'a' has gain, which Conv\(4, 3\) does not have"),
        (SMALL, {"conv1": "a", "dense2": "b"}, "the graph has no entry 'dense2'\n  the entry 'dense1' has no name"),
        (SMALL, {"conv1": "a", "dense1": "c"}, "there is no module 'c'\n  the module 'b' belongs to no entry"),
        (SMALL | {"b.weight": np.ones((2, 64, 1))}, None, r"dense1/kernel is \(64, 2\), that of 'b' is \(1, 64, 2\)"),
        ({k: v for k, v in SMALL.items() if k != "b.bias"}, None, r"dense1/bias is \(2,\), that of 'b' is missing"),
    ],
)
def test_what_does_not_fit_is_told(weights, names, said):
    graph = over(fc.serial(fc.Conv(4, 3), fc.Flatten(), fc.Dense(2)), (6, 6, 3))
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.from_torch(graph, weights, names=names)


# Flax -------------------------------------------------------------------------------------------------------


def flax_network(transpose_kernel):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            x = nn.Conv(4, (3, 3), strides=2, padding=1)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
            x = nn.ConvTranspose(3, (4, 4), strides=(2, 2), transpose_kernel=transpose_kernel)(x)
            x = nn.GroupNorm(3, epsilon=1e-5)(x)
            return nn.Dense(2)(x.reshape(len(x), -1))

    graph = fc.serial(
        fc.Conv(4, 3, stride=2, padding=1),
        fc.BatchNorm(unbiased=False),
        jax.nn.relu,
        fc.ConvTranspose(3, 4, stride=2, padding="SAME"),
        fc.GroupNorm(3),
        fc.Flatten(),
        fc.Dense(2),
    )
    return Network(), over(graph, (8, 6, 3))


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_linen_module_and_its_graph_compute_the_same(transpose_kernel, rng):
    module, graph = flax_network(transpose_kernel)
    x = rng.normal(size=(4, 8, 6, 3)).astype(F32)
    variables = module.init(KEY, x)
    variables = {"params": filled(variables["params"], rng), "batch_stats": filled(variables["batch_stats"], rng)}
    names = {
        "conv1": "Conv_0",
        "batch_norm1": "BatchNorm_0",
        "conv_transpose1": "ConvTranspose_0",
        "group_norm1": "GroupNorm_0",
        "dense1": "Dense_0",
    }
    params, state = fc.interop.from_linen(graph, variables, names=names, transpose_kernel=transpose_kernel)
    for train in (False, True):
        expected, new_variables = module.apply(variables, x, train=train, mutable=["batch_stats"])
        y, after = graph.apply(params, state, x, train=train)
        close(y, expected, F32, terms=products_of(params) + 2 * 4 * 4 * 3 + 2 * 8 * 6)  # and two sums of each norm
        jax.tree.map(partial(close, dtype=F32), after["batch_norm1"], new_variables["batch_stats"]["BatchNorm_0"])


def with_all():
    layers = fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.Dropout(0.5), fc.Flatten(), fc.Dense(2))
    trunk_input = fc.Input("x", (6, 6, 2))
    trunk = fc.Graph(trunk_input, layers(trunk_input), name="trunk")
    a, b = fc.Input("a", (6, 6, 2)), fc.Input("b", (6, 6, 2))
    return fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b))


def test_a_graph_is_a_linen_module(rng):
    graph = with_all()
    a, b = rng.normal(size=(2, 4, 6, 6, 2)).astype(F32)
    module = fc.interop.to_linen(graph)
    variables = module.init({"params": KEY}, a, b)
    params, state = variables["params"], variables["batch_stats"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, graph.init(KEY))
    close(module.apply(variables, a, b), graph.apply(params, state, a, b)[0], F32, ulps=0)
    y, new_variables = module.apply(variables, a, b, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
    assert y.shape == (4, 2)
    after = new_variables["batch_stats"]["trunk"]["batch_norm1"]["mean"]
    assert not np.allclose(after, state["trunk"]["batch_norm1"]["mean"])
    assert hash(module) == hash(fc.interop.to_linen(with_all()))


def test_a_graph_is_an_nnx_module(rng):
    graph = with_all()
    a, b = rng.normal(size=(2, 4, 6, 6, 2)).astype(F32)
    module = fc.interop.to_nnx(graph, rngs=nnx.Rngs(0, dropout=1))
    pure = nnx.to_pure_dict(nnx.state(module, nnx.Param))["params"]
    assert jax.tree.map(jnp.shape, pure) == jax.tree.map(jnp.shape, graph.init(KEY))
    before = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))["batch_stats"]
    close(module(a, b), graph.apply(pure, before, a, b)[0], F32, ulps=0)

    @nnx.jit
    def step(module, a, b):
        return nnx.grad(lambda module: jnp.square(module(a, b, train=True)).mean())(module)

    gradient = nnx.to_pure_dict(step(module, a, b))["params"]
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, pure)
    after = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))["batch_stats"]
    assert not np.allclose(after["trunk"]["batch_norm1"]["var"], before["trunk"]["batch_norm1"]["var"])


def test_nnx_weights_come_in(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), padding="VALID", rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.out = nnx.Linear(64, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
            return self.out(x.reshape(len(x), -1))

    module = Net(nnx.Rngs(0))
    graph = over(fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.Flatten(), fc.Dense(3)), (6, 6, 2))
    params, state = fc.interop.from_nnx(graph, module, names={"conv1": "conv", "batch_norm1": "norm", "dense1": "out"})
    x = rng.normal(size=(4, 6, 6, 2)).astype(F32)
    close(graph.apply(params, state, x)[0], module(x), F32, terms=products_of(params))


class Attributes(nn.Module):
    """Attributes in another order than they are used in."""

    def setup(self):
        self.a, self.c, self.b = nn.Dense(6), nn.Dense(6), nn.Dense(6)

    def __call__(self, x):
        return self.a(jnp.tanh(self.c(jnp.tanh(self.b(x)))))


class Deep(nn.Module):
    """More layers than one digit counts."""

    @nn.compact
    def __call__(self, x):
        for _ in range(12):
            x = jnp.tanh(nn.Dense(6)(x))
        return x


class Prepared(nn.Module):
    """Layers that are declared in another order than they are used in."""

    @nn.compact
    def __call__(self, x):
        first, second, third = nn.Dense(6), nn.Dense(6), nn.Dense(6)
        return second(jnp.tanh(third(jnp.tanh(first(x)))))


class Rematerialized(nn.Module):
    """A block of layers in one call of a program."""

    @nn.compact
    def __call__(self, x):
        return jax.jit(lambda x: x)(nn.remat(Attributes)()(x))


class Branches(nn.Module):
    """Branches that are computed from right to left, and normalized."""

    @nn.compact
    def __call__(self, x, *, train=False):
        right = nn.Dense(6, name="r")(x)
        left = nn.BatchNorm(use_running_average=not train, name="z")(nn.Dense(6, name="s")(x))
        return nn.BatchNorm(use_running_average=not train, name="y")(jnp.concatenate([left, right], -1)[..., 3:9])


def branches():
    x = fc.Input("x", (6,))
    left, right = fc.BatchNorm()(fc.Dense(6)(x)), fc.Dense(6)(x)
    both = fc.node(lambda a, b: jnp.concatenate([a, b], -1)[..., 3:9], left, right)
    return fc.Graph(x, fc.BatchNorm()(both))


@pytest.mark.parametrize(
    ("module", "graph"),
    [
        (Attributes(), over(fc.serial(fc.Dense(6), jnp.tanh, fc.Dense(6), jnp.tanh, fc.Dense(6)), (6,))),
        (Prepared(), over(fc.serial(fc.Dense(6), jnp.tanh, fc.Dense(6), jnp.tanh, fc.Dense(6)), (6,))),
        (Rematerialized(), over(fc.serial(fc.Dense(6), jnp.tanh, fc.Dense(6), jnp.tanh, fc.Dense(6)), (6,))),
        (Deep(), over(fc.serial(*[layer for _ in range(12) for layer in (fc.Dense(6), jnp.tanh)]), (6,))),
        (Branches(), branches()),
    ],
    ids=lambda case: type(case).__name__,
)
def test_linen_weights_are_paired_by_use(module, graph, rng):
    x = rng.normal(size=(4, 6)).astype(F32)
    variables = jax.tree.map(jnp.copy, module.init(KEY, x))
    params, state = fc.interop.from_linen(graph, variables, apply=module.apply)
    close(graph.apply(params, state, x)[0], module.apply(variables, x), terms=12 * 7)
    with pytest.raises(fc.FuncconvError, match=r"more than one module has the shapes of an entry:\n  dense1, dense2"):
        fc.interop.from_linen(graph, variables)


def test_weights_of_equal_names_are_paired(rng):
    graph = over(fc.serial(fc.Dense(6, name="b"), jnp.tanh, fc.Dense(6, name="a")), (6,))
    params = filled(graph.init(KEY), rng)
    params_again, _ = fc.interop.from_linen(graph, {"params": params})
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    again, _ = fc.interop.from_nnx(graph, fc.interop.to_nnx(graph, rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, params)


def test_shapes_that_leave_no_choice_pair_weights(rng):
    class Net(nn.Module):
        def setup(self):
            self.b, self.a = nn.Dense(5), nn.Dense(3)

        def __call__(self, x):
            return self.a(self.b(x))

    x = rng.normal(size=(4, 6)).astype(F32)
    variables = jax.tree.map(jnp.copy, Net().init(KEY, x))
    graph = over(fc.serial(fc.Dense(5), fc.Dense(3)), (6,))
    close(graph(fc.interop.from_linen(graph, variables)[0], x), Net().apply(variables, x))


def test_nnx_attributes_are_paired_by_use(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense1, self.dense2 = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
            self.a, self.b = nnx.BatchNorm(6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, scale=1):
            return self.a(self.dense1(self.drop(jnp.tanh(self.b(self.dense2(x)))))) * scale

    graph = over(fc.serial(fc.Dense(6), fc.BatchNorm(), jnp.tanh, fc.Dense(6), fc.BatchNorm()), (6,))
    module, x = Net(nnx.Rngs(0)), rng.normal(size=(4, 6)).astype(F32)
    module(x + 1)  # moves the statistics
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    params, state = fc.interop.from_nnx(graph, module)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    assert not module.drop.deterministic
    module.eval()
    close(graph.apply(params, state, x)[0], module(x))
    again, _ = fc.interop.from_nnx(graph, module, call=lambda module, x: module(x, scale=1))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(fc.FuncconvError, match=r"compute different results(.|\n)*Pass call=.* or names="):
        fc.interop.from_nnx(graph, module, call=lambda module, x: module(x, scale=2))
    with pytest.raises(fc.FuncconvError, match=r"cannot be evaluated \(TypeError: "):
        fc.interop.from_nnx(graph, module, call=lambda module: module)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": (6, 5), "b": (6, 3)}, r"no module fits the entry 'dense2', with kernel \(5, 3\)(.|\n)*'b' has kernel"),
        ({"a": (6, 5)}, r"the graph has 2 entries and the other side 1 modules:\n  dense1  a\n  dense2  -"),
    ],
)
def test_flax_weights_that_do_not_fit_are_listed(shapes, said):
    graph = over(fc.serial(fc.Dense(5, bias=False), fc.Dense(3, bias=False)), (6,))
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.from_linen(graph, {"params": {name: {"kernel": np.ones(shape)} for name, shape in shapes.items()}})


def test_a_linen_module_is_a_node(rng):
    theirs = fc.interop.from_flax_module(nn.Conv(4, (3, 3), padding="VALID"))
    graph = over(fc.serial(fc.Conv(2, 3), theirs, jnp.tanh, fc.Flatten(), fc.Dense(2)), (8, 8, 1))
    params, x = graph.init(KEY), rng.normal(size=(2, 3, 8, 8, 1)).astype(F32)
    assert graph.entries == ("conv1", "Conv1", "dense1")
    inside = jnp.tanh(fc.conv(params["Conv1"], fc.conv(params["conv1"], x)))
    close(graph(params, x), fc.dense(params["dense1"], inside.reshape(2, 3, -1)), F32, terms=products_of(params))
    with pytest.raises(fc.FuncconvError, match="can have only parameters; BatchNorm also has batch_stats"):
        over(fc.interop.from_flax_module(nn.BatchNorm(use_running_average=True)), (4, 4, 2)).init(KEY)
    with pytest.raises(fc.FuncconvError, match=r"must be a flax\.linen\.Module; got function"):
        fc.interop.from_flax_module(with_all)


# exported programs ------------------------------------------------------------------------------------------


def test_an_exported_network_is_differentiated_twice(rng):
    layers = fc.serial(fc.Conv(4, 3, groups=2), fc.BatchNorm(), jnp.tanh, fc.max_pool, fc.flatten, fc.Dense(2))
    graph = over(layers, (8, 8, 2))
    params, state = graph.init(KEY), filled(graph.init_state(), rng)
    x = rng.normal(size=(5, 8, 8, 2)).astype(F32)
    f = fc.interop.load_exported(fc.interop.export(graph, state=state, orders=2))
    close(f(params, x), graph.apply(params, state, x)[0], F32, terms=products_of(params))

    def products(net):
        def s(params, x):
            return jnp.sin(net(params, x)).sum()

        gradient = jax.grad(s)
        inner = jax.grad(
            lambda params, v: sum(
                jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient(params, x)), jax.tree.leaves(v), strict=True)
            )
        )
        return gradient(params, x), inner(params, params)

    own_products, expected = products(f), products(lambda params, x: graph.apply(params, state, x)[0])
    # A gradient sums over 5 examples and 6 x 6 positions. The value, the gradient and the gradient of that follow one
    # another, each through three layers with parameters.
    jax.tree.map(lambda a, b: close(a, b, F32, terms=5 * 6 * 6, steps=3 * 3), own_products, expected)


@pytest.mark.parametrize("batch", ["b", 5, None])
def test_weights_become_a_part_of_the_program(batch, rng):
    graph = over(fc.serial(fc.Conv(4, 3), jnp.tanh), (8, 8, 2))
    params = graph.init(KEY)
    f = fc.interop.load_exported(fc.interop.export(graph, params, batch=batch, platforms=("cpu",)))
    x = rng.normal(size=(*([] if batch is None else [5]), 8, 8, 2)).astype(F32)
    close(f(x), graph(params, x), F32, terms=products_of(params))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"orders": -1}, "orders must be an integer of at least 0; got -1"),
        ({"platforms": ("gpu",)}, "unknown platform 'gpu'"),
        ({"batch": "b +"}, "cannot be exported"),
    ],
)
def test_options_of_an_export(options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.export(over(fc.Conv(4, 3), (8, 8, 2)), **options)
    with pytest.raises(fc.FuncconvError, match="has a state, but state is None"):
        fc.interop.export(over(fc.BatchNorm(), (8, 8, 2)))
    with pytest.raises(fc.FuncconvError, match="not an exported program"):
        fc.interop.load_exported(b"\x00" * 100)
