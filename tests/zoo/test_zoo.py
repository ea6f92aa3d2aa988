"""The ready-made networks: their published sizes, their table in the documentation, and torchvision's outputs."""

import functools
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close
from torch_models import import_torchvision, random_model

import funcconv as fc
from funcconv._graph.declare.training_layers.batch_norm import BatchNorm
from funcconv._graph.declare.training_layers.dropout import Dropout, DropPath

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
NETWORKS = {name: value for name, value in vars(fc.zoo).items() if inspect.isfunction(value)}
TORCHVISION = {
    **{f"vgg{depth}": f"vgg({depth})" for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": f"vgg({depth}, batch_norm=True)" for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": f"resnet({depth})" for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": "resnext(50)",
    "resnext101_32x8d": "resnext(101, group_width=8)",
    "resnext101_64x4d": "resnext(101, groups=64)",
    "wide_resnet50_2": "wide_resnet(50)",
    "wide_resnet101_2": "wide_resnet(101)",
    **{f"densenet{depth}": f"densenet({depth})" for depth in (121, 161, 169, 201)},
    "mobilenet_v2": "mobilenet_v2()",
    **{f"efficientnet_b{i}": f'efficientnet("b{i}")' for i in range(8)},
    **{f"convnext_{size}": f'convnext("{size}")' for size in ("tiny", "small", "base", "large")},
}
FAST = {"vgg11", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"}
OTHERS = ("lenet()", "unet()", "wavenet()", "siamese()")
SMALL = {  # one of each kind, as small as it can be
    "lenet": {"classes": 3, "input_shape": (12, 12, 1)},
    "vgg": {"depth": 11, "classes": 3, "input_shape": (32, 32, 1)},
    "resnet": {"depth": 18, "classes": 3, "input_shape": (16, 16, 1)},
    "resnext": {"depth": 50, "groups": 2, "group_width": 32, "classes": 3, "input_shape": (16, 16, 1)},
    "wide_resnet": {"depth": 50, "width": 1, "classes": 3, "input_shape": (16, 16, 1)},
    "densenet": {"depth": 121, "classes": 3, "input_shape": (32, 32, 1)},
    "mobilenet_v2": {"width": 0.25, "classes": 3, "input_shape": (16, 16, 1)},
    "efficientnet": {"size": "b0", "classes": 3, "input_shape": (16, 16, 1)},
    "convnext": {"size": "tiny", "classes": 3, "input_shape": (32, 32, 1)},
    "unet": {"depth": 2, "channels": 4, "batch_norm": True, "input_shape": (8, 12, 1)},
    "wavenet": {"classes": 3, "layers": 3, "stacks": 2, "channels": 4, "skip_channels": 8, "input_shape": (20, 2)},
    "siamese": {"features": 5, "padding": "SAME", "input_shape": (12, 12, 1)},
}


LARGE = ("vgg", "resnext", "wide_resnet", "densenet", "mobilenet_v2", "efficientnet")  # also the smallest of its kind
SLOW = [pytest.mark.slow]


def called(call, **options):
    """Return the graph of a call such as `"resnet(18)"`, with more options."""
    name, _, rest = call.partition("(")
    separator = ", " if rest != ")" else ""
    return eval(f"{name}({rest[:-1]}{separator}**options)", NETWORKS | {"options": options})


def params_of(graph):
    """Return the shapes of the parameters."""
    return jax.eval_shape(graph.init, jax.eval_shape(jax.random.key, 0))


@functools.cache
def figures(call):
    """Return the number of multiply-adds, and the receptive field of the last image as the page writes it."""
    shape, _ = rows_of_the_page()[call]
    summary = fc.summary(called(call, input_shape=shape))
    image = [row for row in summary.rows if len(row.shape) > 2][-1]  # batch, spatial axes, channels
    field, *_ = next(iter(image.receptive_field.values()))
    return summary.flops // 2, str(field.size) if field.stride else "whole image"


@functools.cache
def rows_of_the_page():
    """Return the shape of an input and the cells, by call."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    rows = {row[0].strip("`"): row[1:] for row in cells if row and re.fullmatch(r"`\w+\(.*\)`", row[0])}
    return {call: (tuple(map(int, shape.split("x"))), numbers) for call, (shape, *numbers) in rows.items()}


def test_the_page_lists_all_variants():
    assert list(rows_of_the_page()) == [OTHERS[0], *TORCHVISION.values(), *OTHERS[1:]]


def some(names):
    """Return names as cases, of which only some are not slow."""
    return [pytest.param(name, marks=SLOW * (name not in FAST and name not in OTHERS)) for name in names]


@pytest.mark.once
@pytest.mark.parametrize("name", some([*TORCHVISION, *OTHERS]))
def test_the_page_has_the_right_numbers(name):
    call = TORCHVISION.get(name, name)
    _, (parameters, products, field) = rows_of_the_page()[call]
    assert parameters == f"{sum(leaf.size for leaf in jax.tree.leaves(params_of(called(call)))):,}"
    assert figures(call) == (pytest.approx(1e9 * float(products.removesuffix(" G")), rel=5e-3), field)


def entries_of_torch(module):
    """Return how many numbers each module of PyTorch has, and the options of batch norms."""
    sizes, norms = {}, {}
    for name, parameter in module.named_parameters():
        layer, _, own = name.rpartition(".")
        entry = name if own == "layer_scale" else layer
        sizes[entry] = sizes.get(entry, 0) + parameter.numel()
    for name, layer in module.named_modules():
        if hasattr(layer, "running_mean"):
            norms[name] = (layer.eps, layer.momentum)
    rates = [layer.p for layer in module.modules() if type(layer).__name__ in ("Dropout", "StochasticDepth")]
    return sizes, norms, rates


def entries_of(graph):
    """Return the same of a graph."""
    drawn = params_of(graph)
    sizes, norms = {}, {}
    for path in graph.entries:
        entry = functools.reduce(lambda tree, name: tree[name], path.split("/"), drawn)
        sizes[path.replace("/", ".")] = sum(leaf.size for leaf in jax.tree.leaves(entry))
    for row in graph.rows:
        if isinstance(row.op, BatchNorm):
            norms[row.params.replace("/", ".")] = (row.op.epsilon, pytest.approx(1 - row.op.momentum))
    rates = [row.op.rate for row in graph.rows if isinstance(row.op, Dropout | DropPath)]
    return sizes, norms, rates


@pytest.mark.once
@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.filterwarnings("ignore:.*weight initialization.*")
def test_entries_are_those_of_torchvision(name):
    torchvision, torch = import_torchvision(), needed("torch")
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None)
    own, expected = entries_of(called(TORCHVISION[name])), entries_of_torch(module)
    assert own[:2] == expected[:2]
    assert rows_of_the_page()[TORCHVISION[name]][1][0] == f"{sum(own[0].values()):,}"
    # Where the size changes, torchvision has a stochastic depth that it does not use.
    assert set(own[2]) <= set(expected[2])
    assert len(own[2]) > 0 or not expected[2]


@pytest.mark.once
@pytest.mark.parametrize("name", TORCHVISION)
def test_the_page_has_the_published_parameters(name):
    weights = next(iter(import_torchvision().models.get_model_weights(name)))
    (*sides, _), (parameters, *_) = rows_of_the_page()[TORCHVISION[name]]
    assert sides == weights.transforms().crop_size * 2
    assert parameters == f"{weights.meta['num_params']:,}"


@pytest.mark.once
@pytest.mark.parametrize("name", some(TORCHVISION))
def test_multiply_adds_are_the_published_ones(name):
    weights = next(iter(import_torchvision().models.get_model_weights(name)))
    products, _ = figures(TORCHVISION[name])
    assert abs(products / 1e9 - weights.meta["_ops"]) <= 0.001


# In float64, PyTorch needs seconds for each depthwise convolution.
@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        ("vgg11", 32, "float32"),
        ("resnet18", 33, "float32"),
        ("resnet50", 32, "float64"),
        ("resnext50_32x4d", 32, "float32"),
        ("densenet121", 40, "float64"),
        ("mobilenet_v2", 33, "float32"),
        ("efficientnet_b0", 33, "float32"),
        ("convnext_tiny", 36, "float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight initialization.*")
def test_outputs_are_those_of_torchvision(name, size, dtype):
    torch = needed("torch")
    model = random_model(f"torchvision/{name}").to(getattr(torch, dtype)).eval()
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale"):  # as small as it begins, the result would hardly depend on its block
            parameter.data.normal_()
    images = torch.randn(2, 3, size, size, dtype=getattr(torch, dtype))
    graph = called(TORCHVISION[name], input_shape=(size, size, 3))
    params, state = fc.interop.from_torch(graph, model.state_dict())
    outputs, _ = jax.jit(graph.apply)(params, state, images.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        expected = model(images).numpy()
    close(outputs, expected, dtype, terms=4096, steps=len(graph.entries))


def small(name):
    return NETWORKS[name](**SMALL[name])


def test_all_networks_are_there():
    assert set(SMALL) == set(NETWORKS) == {call.partition("(")[0] for call in [*TORCHVISION.values(), *OTHERS]}


@pytest.mark.parametrize("name", SMALL)
def test_options_are_keywords(name):
    _, *options = inspect.signature(NETWORKS[name]).parameters.values()
    assert all(option.kind is option.KEYWORD_ONLY for option in options)


@pytest.mark.parametrize("name", SMALL)
def test_equal_calls_give_equal_graphs_and_files(name):
    graph = small(name)
    assert graph == small(name)
    assert fc.Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW * (name in LARGE)) for name in SMALL])
def test_gradients_in_training_are_finite(name, rng):
    graph = small(name)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), params_of(graph))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), graph.init_state())
    xs = [rng.normal(size=(2, *SMALL[name]["input_shape"])).astype(np.float32) for _ in graph.inputs]

    def loss(params):
        y, new = graph.apply(params, state, *xs, key=jax.random.key(0), train=True)
        return jnp.square(y).mean(), new

    gradient, new = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, new)))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("shape", [(40, 2), (8, 9, 10, 1)])
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "efficientnet"])
def test_images_have_any_number_of_axes(name, shape):
    graph = NETWORKS[name](**SMALL[name] | {"input_shape": shape})
    assert graph.shapes()[graph.nodes[-1]].shape == (3,)


def test_initial_weights_have_the_published_variances():
    def drawn(graph, *path):
        """Return one array; the compiler leaves out the others."""
        entry = jax.jit(lambda key: functools.reduce(lambda tree, name: tree[name], path, graph.init(key)))
        return entry(jax.random.key(0))

    kernel = drawn(small("resnet"), "layer2", "0", "conv1", "kernel")  # 64 to 128 channels
    assert abs(kernel.std() / np.sqrt(2 / (9 * 128)) - 1) < 0.02
    kernel = drawn(small("convnext"), "features", "5", "0", "block", "3", "kernel")
    assert abs(kernel.std() / 0.02 - 1) < 0.02
    assert np.all(drawn(small("convnext"), "features", "5", "0", "layer_scale") == 1e-6)
    kernel = drawn(small("efficientnet"), "classifier", "1", "kernel")
    assert abs(np.abs(kernel).max() * np.sqrt(3) - 1) < 0.02


def test_wavenet_is_causal_and_sees_what_its_formula_says():
    options = SMALL["wavenet"] | {"window": 3}
    graph = fc.zoo.wavenet(**options)
    (field,) = fc.receptive_field(graph)["signal"]
    assert field.size == 1 + (3 - 1) * (1 + 2 * (2**3 - 1))
    assert field.interval(10)[1] == 10


def test_siamese_is_symmetric(rng):
    graph = small("siamese")
    params = graph.init(jax.random.key(0))
    a, b = rng.normal(size=(2, 3, 12, 12, 1))
    close(graph(params, a, b), graph(params, b, a))
    assert graph.subgraph("embedding").inputs == ("left",)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fc.zoo.resnet(20), ["resnet: depth must be one of 18, 34, 50, 101, 152", "got 20"]),
        (lambda: fc.zoo.resnext(18), ["resnext: depth must be one of 50, 101, 152", "got 18"]),
        (lambda: fc.zoo.vgg([16]), ["vgg: depth", "got [16]"]),
        (lambda: fc.zoo.efficientnet("b8"), ["efficientnet: size", "'b7'", "got 'b8'"]),
        (lambda: fc.zoo.vgg(11, input_shape=(16, 16, 3)), ["pool: a window of 2 does not fit", "1 positions"]),
        (lambda: fc.zoo.unet(input_shape=(30, 32, 1)), ["multiples of 2**depth = 16", "(30, 32, 1)"]),
        (lambda: fc.zoo.lenet(0), ["features must be a positive integer"]),
    ],
)
def test_errors(call, words):
    with pytest.raises(fc.FuncconvError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
