"""Weight norm and spectral norm in PyTorch: state dicts of both kinds of names, traced modules, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc

torch = needed("torch")
pytestmark = pytest.mark.once

NAMES = {"conv1": "0", "conv_transpose1": "2", "dense1": "4"}


def normalizing(kind, *, old):
    """Return a function of PyTorch that normalizes the weight of a module, and the layer that does the same."""
    functions = torch.nn.utils if old else torch.nn.utils.parametrizations
    return (functions.weight_norm, fc.WeightNorm) if kind == "weight" else (functions.spectral_norm, fc.SpectralNorm)


def network(kind, *, old=False):
    """Return a module with normalized kernels after two steps of training, and its graph."""
    normalize, layer = normalizing(kind, old=old)
    nn = torch.nn
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight norm is deprecated
        module = nn.Sequential(
            normalize(nn.Conv2d(4, 6, (3, 2), groups=2)),
            nn.Tanh(),
            normalize(nn.ConvTranspose2d(6, 4, (2, 3), stride=2, groups=2)),
            nn.Flatten(),
            normalize(nn.Linear(112, 5, bias=False)),
        ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)  # so that lengths are not those of the directions
        for _ in range(2):
            module(torch.ones(1, 4, 4, 4, dtype=torch.float64))
    x = fc.Input("x", (4, 4, 4))
    layers = fc.serial(
        layer(fc.Conv(6, (3, 2), groups=2)),
        jnp.tanh,
        layer(fc.ConvTranspose(4, (2, 3), stride=2, groups=2)),
        fc.Flatten(),
        layer(fc.Dense(5, bias=False)),
    )
    return module, fc.Graph(x, layers(x))


@pytest.fixture
def image(rng):
    return torch.from_numpy(rng.normal(size=(3, 4, 4, 4)))


def evaluated(module, image, *, train=False):
    return module.train(train)(image).detach().numpy()


def channels_last(image):
    return np.moveaxis(image.numpy(), 1, -1)


@pytest.mark.parametrize("how", [{}, {"names": NAMES}, {"pairing": "order"}])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_state_dicts_in_both_directions(kind, old, how, image):
    module, graph = network(kind, old=old)
    arrays = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    params, state = fc.interop.from_torch(graph, arrays, **how)
    close(graph.apply(params, state, channels_last(image))[0], evaluated(module, image), ulps=256)
    back = fc.interop.to_torch(graph, params, state, names=NAMES, parametrizations=not old)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    by_path = fc.interop.from_torch(graph, fc.interop.to_torch(graph, params, state, parametrizations=not old))
    jax.tree.map(np.testing.assert_array_equal, by_path, (params, state))


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_training_goes_on_as_in_torch(kind, image):
    module, graph = network(kind)
    params, state = fc.interop.from_torch(graph, module.state_dict())
    weights = np.random.default_rng(0).normal(size=(3, 5))

    def loss(params):
        y, new_state = graph.apply(params, state, channels_last(image), train=True)
        return (weights * y).sum(), (y, new_state)

    gradient, (y, new_state) = jax.grad(loss, has_aux=True)(params)
    theirs = module.train()(image)
    (torch.from_numpy(weights) * theirs).sum().backward()
    close(y, theirs.detach().numpy(), ulps=256)
    arrays = fc.interop.to_torch(graph, gradient, new_state, names=NAMES)
    for name, parameter in module.named_parameters():
        close(arrays[name], parameter.grad.numpy(), ulps=2**12)
    for name, buffer in module.named_buffers():
        close(arrays[name], buffer.numpy(), ulps=256)


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_the_module_of_a_graph_has_the_names_of_torch(kind, image):
    module, graph = network(kind)
    params, state = fc.interop.from_torch(graph, module.state_dict(), names=NAMES)
    own = fc.interop.to_torch_module(graph, params, state)
    entries = {path: entry for entry, path in NAMES.items()}
    theirs = {f"{entries[name[0]]}{name[1:]}": tensor for name, tensor in module.state_dict().items()}
    own.load_state_dict(theirs)
    x = torch.from_numpy(np.ascontiguousarray(channels_last(image)))
    for train in (False, True, False):
        close(own.train(train)(x).detach().numpy(), evaluated(module, image, train=train), ulps=256)


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_traced_modules_have_layers(kind, image):
    module, graph = network(kind)
    traced, params, state = fc.interop.trace_torch(module, image)
    _, layer = normalizing(kind, old=False)
    assert [type(row.op) for row in traced.rows if row.params] == [layer] * 3
    assert fc.Graph.from_json(traced.to_json()) == traced
    for train in (False, True, False):
        y, state = traced.apply(params, state, image.numpy(), train=train)
        close(y, evaluated(module, image, train=train), ulps=256)
    for name, tensor in module.state_dict().items():
        close(fc.interop.to_torch(traced, params, state)[name], tensor.numpy(), ulps=256)
    # A graph of one's own takes the weights by their use.
    own = fc.interop.from_torch(graph, module, image)
    close(graph.apply(*own, channels_last(image))[0], evaluated(module, image), ulps=256)


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_a_weight_that_is_used_in_another_way_too_is_traced(kind, image):
    normalize, layer = normalizing(kind, old=False)

    class Net(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.conv, self.factor = normalize(torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)), factor

        def forward(self, x):
            first = self.conv(x) if self.factor is None else x
            return torch.nn.functional.conv2d(first, self.conv.weight * (self.factor or 2), padding=1)

    for factor in (None, 3.0):
        module = Net(factor).double().eval()
        traced, params, state = fc.interop.trace_torch(module, image)
        assert sum(isinstance(row.op, layer) for row in traced.rows) == (factor is None)
        close(traced.apply(params, state, image.numpy())[0], evaluated(module, image), ulps=256)
        arrays = fc.interop.to_torch(traced, params, state)
        assert arrays.keys() == module.state_dict().keys()


@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_traced_modules_keep_old_names(kind, image):
    module, _ = network(kind, old=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch.export: the module sets its weight
        traced, params, state = fc.interop.trace_torch(module, image)
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    own = fc.interop.from_torch(traced, arrays)
    close(traced.apply(*own, image.numpy())[0], evaluated(module.eval(), image), ulps=256)
    for parametrizations in (True, False):
        back = fc.interop.to_torch(traced, params, state, parametrizations=parametrizations)
        assert back.keys() == arrays.keys()


def test_64_bits_stay_without_x64():
    module, graph = network("spectral")
    with jax.enable_x64(False):
        params, state = fc.interop.from_torch(graph, module.state_dict())
        back = fc.interop.to_torch(graph, params, state, names=NAMES)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy())
        assert back[name].dtype == np.float64


def test_vectors_that_have_not_begun(image):
    module, graph = network("spectral")
    params, _ = fc.interop.from_torch(graph, module.state_dict())
    state, x = graph.init_state(), channels_last(image)
    y, _ = graph.apply(params, state, x)
    tensors = {
        name: torch.from_numpy(array) for name, array in fc.interop.to_torch(graph, params, state, names=NAMES).items()
    }
    module.load_state_dict(tensors)
    close(evaluated(module, image), y, ulps=256)
    own = fc.interop.to_torch_module(graph, params, state)
    close(own(torch.from_numpy(np.ascontiguousarray(x))).detach().numpy(), y, ulps=256)


def net(layer, shape=(4, 4, 4)):
    x = fc.Input("x", shape)
    return fc.Graph(x, layer(x))


def test_what_does_not_fit_is_refused():
    nn, utils = torch.nn, torch.nn.utils.parametrizations
    conv = nn.Conv2d(4, 4, 3)
    for module, layer, text in (
        # Lengths along another axis, or of the whole kernel.
        (
            utils.weight_norm(nn.Conv2d(4, 4, 3), dim=1),
            fc.WeightNorm(fc.Conv(4, 3)),
            r"scale is \(4,\), .*\(1, 4, 1, 1\)",
        ),
        (utils.weight_norm(nn.Conv2d(4, 4, 3), dim=None), fc.WeightNorm(fc.Conv(4, 3)), r"scale is \(4,\), .* is \(\)"),
        (utils.spectral_norm(nn.Conv2d(4, 6, 3), dim=1), fc.SpectralNorm(fc.Conv(6, 3)), r"left is \(6,\), .*\(4,\)"),
        # A graph without the norm, or with another one.
        (utils.weight_norm(nn.Conv2d(4, 4, 3)), fc.Conv(4, 3), "has parametrizations.weight.original0"),
        (utils.spectral_norm(nn.Conv2d(4, 4, 3)), fc.WeightNorm(fc.Conv(4, 3)), "has parametrizations.weight.original"),
        (conv, fc.SpectralNorm(fc.Conv(4, 3)), "conv1/kernel is .* missing"),
        (utils.orthogonal(nn.Conv2d(4, 4, 3)), fc.Conv(4, 3), "has parametrizations.weight.original"),
    ):
        with pytest.raises(fc.FuncconvError, match=text):
            fc.interop.from_torch(net(layer), nn.Sequential(module).state_dict(), names={"conv1": "0"})
    for layer in (fc.SpectralNorm(fc.Conv(4, 3), norm="conv"), fc.WeightNorm(fc.LocalConv(4, 3))):
        graph = net(layer)
        with pytest.raises(
            fc.FuncconvError, match=r"to_torch: PyTorch has no module for the layer (Spectral|Weight)Norm"
        ):
            fc.interop.to_torch(graph, graph.init(jax.random.key(0)), graph.init_state())
    graph = net(fc.SpectralNorm(fc.Conv(4, 3)))
    with pytest.raises(fc.FuncconvError, match=r"the graph has a state .conv1., but state is None"):
        fc.interop.to_torch(graph, graph.init(jax.random.key(0)))


def test_lengths_along_other_axes_are_traced_without_a_layer(image):
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(4, 4, 3), dim=1).double()
    traced, params, state = fc.interop.trace_torch(torch.nn.Sequential(module), image)
    assert not any(isinstance(row.op, fc.WeightNorm) for row in traced.rows)
    close(traced.apply(params, state, image.numpy())[0], evaluated(module, image), ulps=256)
