"""Graphs as modules of PyTorch: values, gradients and statistics are those of the graph, and weights come back."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc
from funcconv._graph.declare.arithmetic import WithNumber
from funcconv._graph.to_file.known_ops import POLICIES
from funcconv._graph.to_file.registry import _BY_NAME
from funcconv.interop._torch import ops
from funcconv.interop._torch.to_module.functions import _found

torch = needed("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.once


def scalar(tree):
    """Return a number that depends on all outputs, of JAX or of PyTorch."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if "float" in str(leaf.dtype)]
    return sum((torch.sin(y) if isinstance(y, torch.Tensor) else jnp.sin(y)).sum() for y in leaves)


def drawn(rng, graph, batch=(3,), dtype=np.float64):
    inputs = [row.shape for row in graph._signature]
    return [rng.normal(size=(*batch, *shape)).astype(dtype) for shape in inputs]


def with_noise(rng, tree):
    """Return parameters that differ from zeros and ones, and statistics that are positive."""

    def leaf(path, x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        noise = jnp.asarray(rng.uniform(0.1, 1.0, x.shape), x.dtype)
        return noise if path[-1] == jax.tree_util.DictKey("var") else x + noise

    return jax.tree.map_with_path(leaf, tree)


def check(rng, graph, batch=(3,), *, params=None, state=None, xs=None, train=None, ulps=2**12):
    """Compare values, gradients and, in training, the next state."""
    params = with_noise(rng, graph.init(jax.random.key(0)) if params is None else params)
    state = with_noise(rng, graph.init_state() if state is None else state)
    xs = drawn(rng, graph, batch) if xs is None else xs
    module = fc.interop.to_torch_module(graph, params, state)
    for training in (False, True) if train is None else (train,):
        module.train(training)

        def loss(params, xs, training=training):
            own_outputs, after = graph.apply(params, state, *xs, train=training)
            return scalar(own_outputs), (own_outputs, after)

        inputs = [jnp.asarray(x) for x in xs]
        if not any("float" in str(leaf.dtype) for leaf in jax.tree.leaves(graph.apply(params, state, *inputs)[0])):
            expected = graph.apply(params, state, *inputs)[0]
            np.testing.assert_array_equal(module(*map(torch.from_numpy, xs)).numpy(), expected)
            continue
        (by_params, by_xs), (own_outputs, after) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, inputs)
        tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in xs]
        results = module(*tensors)
        assert jax.tree.structure(results) == jax.tree.structure(own_outputs)
        for ours, theirs in zip(jax.tree.leaves(own_outputs), jax.tree.leaves(results), strict=True):
            assert str(theirs.dtype).removeprefix("torch.") == str(ours.dtype)
            close(theirs.detach().numpy(), ours, ulps=ulps)
        module.zero_grad()
        scalar(results).backward()
        for ours, tensor in zip(by_xs, tensors, strict=True):
            close(tensor.grad.numpy(), ours, ulps=ulps)
        # Gradients have the names of a state dict, so they are converted as weights are.
        gradients = fc.interop.to_torch_module(graph, by_params, state).state_dict()
        for name, parameter in module.named_parameters():
            close(parameter.grad.numpy(), gradients[name].numpy(), ulps=ulps)
        if training:
            expected = fc.interop.to_torch_module(graph, params, after).state_dict()
            for name, tensor in module.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    close(tensor.numpy(), expected[name].numpy(), ulps=ulps)
    return module


def net(shape, *layers):
    x = fc.Input("x", shape, dtype=np.float64)
    return fc.Graph(x, fc.serial(*layers)(x))


LAYERS = {
    "conv": ((7, 6, 4), fc.Conv(6, (3, 2), stride=(2, 1), padding=((1, 2), (0, 1)), dilation=(1, 2), groups=2)),
    "conv-same": ((7, 6, 2), fc.Conv(3, (3, 2), stride=2, padding="SAME")),
    "conv-same-lower": ((7, 6, 2), fc.Conv(3, 4, padding="SAME_LOWER", bias=False)),
    "conv-crop": ((7, 6, 2), fc.Conv(3, 2, padding=((-1, 2), (1, -1)))),
    "conv-1d": ((9, 2), fc.Conv(3, 3, padding="CAUSAL", dilation=2)),
    "conv-3d": ((4, 5, 3, 2), fc.Conv(3, 2, padding=1, stride=2)),
    "conv-flip": ((6, 5, 2), fc.Conv(3, (2, 3), flip=True, accumulate_dtype="float64")),
    "conv-layout": ((2, 6, 5), fc.Conv(3, (2, 3), layout="NCHW")),
    "conv-stored-axes": ((2, 6, 5, 3), fc.Conv(3, (2, 3), padding=1)),
    "depthwise": ((6, 5, 4), fc.Conv(8, 3, groups=4, padding=1)),
    "transpose": ((4, 3, 4), fc.ConvTranspose(6, (3, 2), stride=2, padding=1, output_padding=(1, 0), groups=2)),
    "transpose-same": ((4, 3, 2), fc.ConvTranspose(3, 3, stride=2, padding="SAME")),
    "transpose-size": ((4, 3, 2), fc.ConvTranspose(3, (2, 3), stride=3, padding=((0, 1), (-1, 1)), size=(11, 9))),
    "transpose-1d": ((5, 2), fc.ConvTranspose(3, 4, stride=2, dilation=2, bias=False)),
    "transpose-reflect": ((4, 3, 2), fc.ConvTranspose(3, 3, padding=2, pad_mode=("reflect", "zeros"), flip=True)),
    "local": ((5, 6, 4), fc.LocalConv(6, (2, 3), stride=(1, 2), padding="SAME", groups=2)),
    "local-flip": ((7, 2), fc.LocalConv(3, 3, pad_mode="circular", padding=1, flip=True, bias=False)),
    "dense": ((5, 4), fc.Dense(3)),
    "dense-accumulate": ((4,), fc.Dense(3, bias=False, accumulate_dtype="float64")),
    "layer-norm": ((5, 4), fc.LayerNorm(epsilon=0.1)),
    "layer-norm-axes": ((5, 3, 4), fc.LayerNorm(axes=3, bias=False)),
    "group-norm": ((5, 3, 4), fc.GroupNorm(2, scale=False)),
    "group-norm-stored-axes": ((2, 5, 3, 4), fc.GroupNorm(4)),
    "instance-norm": ((5, 3, 4), fc.InstanceNorm(epsilon=0.1)),
    "instance-norm-plain": ((5, 4), fc.InstanceNorm(scale=False, bias=False)),
    "rms-norm": ((5, 4), fc.RMSNorm(epsilon=0.1)),
    "rms-norm-axes": ((5, 3, 4), fc.RMSNorm(axes=3)),
    "local-response-norm": ((3, 7), partial(fc.local_response_norm, size=4, alpha=2.0, beta=0.6, k=0.5)),
    "local-response-norm-layout": ((7, 2, 3), partial(fc.local_response_norm, size=3, alpha=2.0, layout="NCHW")),
    "weight-norm": ((5, 4, 3), fc.WeightNorm(fc.Conv(4, 3))),
    "weight-norm-local": ((5, 3), fc.WeightNorm(fc.LocalConv(4, 3))),
    "weight-norm-dense": ((5,), fc.WeightNorm(fc.Dense(4, bias=False))),
    "weight-norm-transpose": ((5, 4, 6), fc.WeightNorm(fc.ConvTranspose(4, (3, 2), groups=2))),
    "weight-norm-flatten": ((3, 2, 4), fc.serial(fc.Flatten(), fc.WeightNorm(fc.Dense(4)))),
    "spectral-norm": ((5, 4, 6), fc.SpectralNorm(fc.Conv(4, (3, 2), groups=2))),
    "spectral-norm-transpose": ((5, 4, 6), fc.SpectralNorm(fc.ConvTranspose(4, (3, 2), groups=2), iterations=2)),
    "spectral-norm-dense": ((3, 2, 4), fc.serial(fc.Flatten(), fc.SpectralNorm(fc.Dense(4, bias=False)))),
    "spectral-norm-conv": ((5, 4, 2), fc.SpectralNorm(fc.Conv(3, 2, stride=2, padding=1, flip=True), norm="conv")),
    "spectral-norm-conv-layout": ((2, 5, 4), fc.SpectralNorm(fc.Conv(3, 2, layout="NCHW"), norm="conv")),
    "spectral-norm-local": ((5, 3), fc.SpectralNorm(fc.LocalConv(4, 3), norm="conv")),
    "batch-norm": ((5, 3, 4), fc.BatchNorm(momentum=0.3, epsilon=0.01)),
    "batch-norm-features": ((4,), fc.BatchNorm(unbiased=False, scale=False)),
    "batch-norm-mean": ((5, 4), fc.BatchNorm(momentum=None, count=True, bias=False)),
    "weight-standardize": ((5, 4, 3), fc.WeightStandardize(fc.Conv(4, 3), epsilon=0.1)),
    "weight-standardize-local": ((5, 3), fc.WeightStandardize(fc.LocalConv(4, 3))),
    "weight-standardize-dense": ((5,), fc.WeightStandardize(fc.Dense(4))),
    "flatten": ((3, 2, 4), fc.serial(fc.Flatten(), fc.Dense(3))),
    "flatten-first": ((3, 2, 4), fc.serial(fc.Flatten(order="channels_first"), fc.Dense(3))),
    "flatten-layout": ((4, 3, 2), fc.serial(fc.Flatten(layout="NCHW"), fc.BatchNorm(), fc.Dense(3))),
    "flatten-norms": (
        (3, 2, 4),
        fc.serial(fc.Flatten(), fc.BatchNorm(count=True), fc.LayerNorm(), jnp.tanh, fc.Dense(3)),
    ),
}
LAYERS |= {
    f"conv-{mode}": ((4, 5, 2), fc.Conv(3, 3, padding=((1, 2), (5, 0)), pad_mode=mode))
    for mode in ("reflect", "symmetric", "replicate", "circular")
}
POOLS = {
    "max": fc.Pool(3, stride=2, padding=1),
    "max-same": fc.Pool(2, stride=2, padding="SAME"),
    "max-ceil": fc.Pool(2, ceil_mode=True, dilation=2),
    "max-wide-padding": fc.Pool(2, stride=1, padding=((0, 1), (1, 0)), ceil_mode=True),
    "max-modes": fc.Pool(3, stride=1, padding=2, pad_mode=("reflect", "zeros")),
    "max-split": fc.Pool(2, ties="split"),
    "max-indices": fc.Pool(3, stride=2, padding=1, return_indices=True),
    "max-indices-modes": fc.Pool(3, stride=1, padding=2, pad_mode=("reflect", "zeros"), return_indices=True),
    "min": fc.Pool((3, 2), reduce="min", padding=((1, 1), (0, 1))),
    "min-indices": fc.Pool(2, reduce="min", return_indices=True),
    "mean": fc.Pool(3, reduce="mean", stride=2, padding=1),
    "mean-counted": fc.Pool(3, reduce="mean", stride=2, padding=1, count_include_pad=True, ceil_mode=True),
    "mean-same": fc.Pool(2, reduce="mean", stride=2, padding="SAME"),
    "mean-dilated": fc.Pool(2, reduce="mean", stride=1, padding=1, dilation=2, count_include_pad=True),
    "mean-mode": fc.Pool(2, reduce="mean", stride=1, padding=1, pad_mode="replicate"),
    "sum": fc.Pool(3, reduce="sum", stride=2, padding="SAME", ceil_mode=True),
    "prod": fc.Pool(2, reduce="prod", padding="SAME"),
    "lse": fc.Pool(3, reduce="lse", temperature=0.3, padding=1),
    "lp": fc.Pool(2, reduce="lp", p=3, stride=1, padding="SAME"),
    "lp-infinite": fc.Pool(2, reduce="lp", p=float("inf"), stride=1),
    "lp-1": fc.Pool(2, reduce="lp", p=1),
    "median": fc.Pool(3, reduce="median", stride=2, padding=1),
    "function": fc.Pool((2, 3), reduce=jnp.std),
}
LAYERS |= {f"pool-{name}": ((7, 6, 2), layer) for name, layer in POOLS.items()}
LAYERS |= {
    "pool-1d": ((9, 2), fc.Pool(3, reduce="mean", stride=2)),
    "pool-3d": ((5, 4, 6, 2), fc.Pool(2, padding=((0, 1), (0, 0), (1, 1)), pad_mode="symmetric")),
    "pool-4d": ((4, 3, 2, 4, 2), fc.Pool((2, 2, 2, 2))),
    "pool-layout": ((2, 6, 7), fc.Pool(2, layout="NCHW")),
    "pool-stored-axes": ((2, 6, 7, 3), fc.Pool((2, 3))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(rng, name):
    shape, layer = LAYERS[name]
    check(rng, net(shape, layer))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_axes(rng, batch):
    layers = (fc.Conv(3, 3), fc.BatchNorm(), fc.Pool(2, layout="NHWC"), fc.Flatten(), fc.LayerNorm(), fc.Dense(2))
    check(rng, net((6, 7, 2), *layers), batch)


NAMES_IN_JAX_NN = (
    "celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax",
    "softplus", "sparse_plus", "sparse_sigmoid", "squareplus", "swish",
)  # fmt: skip
NAMES_IN_JAX_NUMPY = (
    "abs", "cos", "exp", "expm1", "flip", "max", "mean", "median", "min", "negative", "prod", "ptp", "ravel",
    "reciprocal", "sign", "sin", "square", "squeeze", "std", "sum", "tanh", "transpose", "var", "ceil", "floor",
    "round", "trunc", "tan", "arctan", "sinh", "cosh", "isnan", "argmax",
)  # fmt: skip
FUNCTIONS = {
    **{name: getattr(jax.nn, name) for name in NAMES_IN_JAX_NN},
    "gelu-exact": partial(jax.nn.gelu, approximate=False),
    "softmax-axis": partial(jax.nn.softmax, axis=0),
    "softmax-axes": partial(jax.nn.softmax, axis=(0, -1)),
    "softmax-standardize": partial(jax.nn.standardize, axis=(0, 1)),
    **{f"jnp-{name}": getattr(jnp, name) for name in NAMES_IN_JAX_NUMPY},
    "jnp-clip": partial(jnp.clip, min=-0.5, max=0.75),
    "jnp-maximum": partial(jnp.maximum, 0.25),
    "jnp-multiply": partial(jnp.multiply, 2.0),
    "jnp-reshape": partial(jnp.reshape, shape=(6, 4)),
    "jnp-moveaxis": partial(jnp.moveaxis, source=0, destination=-1),
    "jnp-swapaxes": partial(jnp.swapaxes, axis1=0, axis2=-1),
    "jnp-mean-axis": partial(jnp.mean, axis=(0, -1), keepdims=True),
    "jnp-max-axis": partial(jnp.max, axis=1),
    "jnp-median-axis": partial(jnp.median, axis=0, keepdims=True),
    "jnp-std-axis": partial(jnp.std, axis=-1, ddof=1),
    "jnp-prod-axis": partial(jnp.prod, axis=(0, 1)),
    "jnp-flip-axis": partial(jnp.flip, axis=1),
    "jnp-transpose-axes": partial(jnp.transpose, axes=(2, 0, 1)),
    "avg_pool": fc.avg_pool,
    "max_pool": partial(fc.max_pool, window=(1, 2)),
    "min_pool": fc.min_pool,
    "sum_pool": partial(fc.sum_pool, padding="SAME"),
    "pool": partial(fc.pool, reduce="lse"),
    "global_pool": fc.global_pool,
    "global_pool-max": partial(fc.global_pool, reduce="max", return_indices=True),
    "global_pool-median": partial(fc.global_pool, reduce="median"),
    "adaptive_pool": partial(fc.adaptive_pool, output_size=(3, 2)),
    "adaptive_pool-none": partial(fc.adaptive_pool, output_size=(None, 2), reduce="max"),
    "adaptive_pool-min": partial(fc.adaptive_pool, output_size=2, reduce="min", return_indices=True),
    "adaptive_pool-lp": partial(fc.adaptive_pool, output_size=(3, 5), reduce="lp"),
    "flatten": fc.flatten,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(rng, name):
    x = fc.Input("x", (4, 3, 2), dtype=np.float64)
    batched = False if name.startswith(("jnp", "glu", "softmax-")) else None
    y = fc.node(FUNCTIONS[name], x, batched=batched)
    check(rng, fc.Graph(x, y), train=False)


@pytest.mark.parametrize(
    "f", [ops.rsqrt, jnp.arcsin, jnp.arccos, jnp.log, jnp.log1p, jnp.sqrt, partial(jnp.power, 2.5), jnp.log2, jnp.log10]
)
def test_functions_of_positive_numbers(rng, f):
    x = fc.Input("x", (4,), dtype=np.float64)
    check(rng, fc.Graph(x, fc.node(f, x)), xs=[rng.uniform(0.2, 0.9, (3, 4))], train=False)


TWO = [
    *(jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.maximum, jnp.minimum, jnp.arctan2, jnp.remainder),
    *(jnp.less, jnp.equal, fc.add, fc.concat),
]


@pytest.mark.parametrize("f", TWO, ids=lambda f: getattr(f, "__name__", str(f)))
def test_functions_of_two(rng, f):
    a, b = fc.Input("a", (4, 3), dtype=np.float64), fc.Input("b", (4, 3), dtype=np.float64)
    check(rng, fc.Graph((a, b), fc.node(f, a, b)), train=False)


@pytest.mark.parametrize(
    "shapes", [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 2))]
)
def test_products(rng, shapes):
    a, b = (fc.Input(name, shape, dtype=np.float64) for name, shape in zip("ab", shapes, strict=True))
    check(rng, fc.Graph((a, b), (a @ b, fc.node(jnp.dot, a, b, batched=False))), train=False)


def test_arithmetic_of_nodes(rng):
    x, gate = fc.Input("x", (4, 3), dtype=np.float64), fc.Input("gate", (3,), dtype=np.float64)
    y = 2 * x * gate - gate / 3 + abs(-x) ** 2
    check(rng, fc.Graph((x, gate), {"y": y, "z": [1 - gate, x + 1]}), train=False)
    check(rng, fc.Graph({"x": x, "gate": gate}, x * gate), batch=(2, 1, 3), train=False)


@pytest.mark.parametrize(
    "op", [jnp.maximum, jnp.minimum, jnp.arctan2, jnp.remainder, jnp.less, ops.floor_divide, ops.truncated_divide]
)
@pytest.mark.parametrize("first", [False, True])
def test_functions_of_a_number(rng, op, first):
    x = fc.Input("x", (4, 3), dtype=np.float64)
    check(rng, fc.Graph(x, fc.node(WithNumber(op, 0.75, first, float), x, batched=False)), train=False)


def test_inputs_by_name(rng):
    x, gate = fc.Input("x", (4, 3), dtype=np.float64), fc.Input("gate", (3,), dtype=np.float64)
    module = fc.interop.to_torch_module(fc.Graph({"a": x, "b": gate}, x * gate), {})
    tensors = {"a": torch.from_numpy(rng.normal(size=(2, 4, 3))), "b": torch.from_numpy(rng.normal(size=(2, 3)))}
    expected = tensors["a"] * tensors["b"][:, None]
    for result in (module(**tensors), module(tensors), module(*tensors.values())):
        assert torch.equal(result, expected)


def test_shared_weights_are_one_parameter(rng):
    left, right = (fc.Input(name, (6, 5, 2), dtype=np.float64) for name in ("left", "right"))
    trunk = fc.serial(fc.Conv(4, 3, name="conv"), fc.BatchNorm(momentum=0.6, name="norm"), jax.nn.relu)
    module = check(rng, fc.Graph((left, right), trunk(left) - trunk(right)))
    assert [name for name, _ in module.named_parameters()] == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
    assert int(module.norm.num_batches_tracked) == 2  # one for each use


def test_nodes_with_parameters(rng):
    x = fc.Input("x", (3,), dtype=np.float64)
    dense = fc.node(fc.dense, params="table", init=lambda key, shape: fc.init_dense(key, shape[-1], 3, dtype=float))
    graph = fc.Graph(x, fc.node(jnp.dot, dense(dense(x)), params="w", batched=False))
    params = graph.init(jax.random.key(0), w=jnp.asarray(rng.normal(size=(3, 3))))
    # `dot(w, x)` with the parameters in front.
    module = check(rng, graph, params=params, train=False)
    assert set(module.state_dict()) == {"table.kernel", "table.bias", "w"}


def test_a_state_dict_is_that_of_to_torch(rng):
    graph = net(
        (6, 5, 2), fc.Conv(3, 2), fc.BatchNorm(count=True), fc.Flatten(), fc.Dense(4), fc.BatchNorm(), fc.LayerNorm()
    )
    params, state = with_noise(rng, graph.init(jax.random.key(0))), with_noise(rng, graph.init_state())
    module = fc.interop.to_torch_module(graph, params, state)
    expected = fc.interop.to_torch(graph, params, state)
    tensors = module.state_dict()
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert str(tensors[name].dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(tensors[name].numpy(), array)
    back = fc.interop.from_torch(graph, tensors)
    jax.tree.map(np.testing.assert_array_equal, back, (params, state))


@pytest.mark.parametrize("shape", [(), (3,), (4, 3, 2)])
def test_drop_path_follows_the_mode(shape):
    module = fc.interop.to_torch_module(net(shape, fc.DropPath(0.25)), {})
    x = torch.ones(4000, *shape, dtype=torch.float64)
    assert torch.equal(module(x), x)
    y = module.train()(x).reshape(4000, -1)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(float((y[:, 0] > 0).double().mean()) - 0.75) < 6 * (0.25 * 0.75 / 4000) ** 0.5


def test_dropout_follows_the_mode():
    graph = net((30, 30, 8), fc.Dropout(0.25))
    module = fc.interop.to_torch_module(graph, {})
    x = torch.ones(2, 30, 30, 8, dtype=torch.float64)
    assert torch.equal(module(x), x)
    y = module.train()(x)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    share = float((y > 0).double().mean())
    assert abs(share - 0.75) < 6 * (0.25 * 0.75 / y.numel()) ** 0.5
    whole = fc.interop.to_torch_module(net((30, 30, 64), fc.Dropout(0.5, whole_channels=True)), {}).train()
    y = whole(torch.ones(4, 30, 30, 64, dtype=torch.float64))
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    none = fc.interop.to_torch_module(net((3,), fc.Dropout(1.0)), {}).train()
    assert not none(torch.ones(2, 3, dtype=torch.float64)).any()


def test_a_part_in_evaluation_mode_keeps_its_statistics(rng):
    graph = net((6, 2), fc.BatchNorm(name="frozen"), fc.BatchNorm(name="free"))
    module = fc.interop.to_torch_module(graph, graph.init(jax.random.key(0)), graph.init_state()).train()
    module.frozen.eval()
    before = copy.deepcopy(module.state_dict())
    module(torch.from_numpy(rng.normal(size=(4, 6, 2))))
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"free.running_mean", "free.running_var", "free.num_batches_tracked"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes(rng, dtype):
    x = fc.Input("x", (6, 5, 4), dtype=dtype)
    layers = (
        fc.Conv(4, 3, dtype=dtype),
        fc.BatchNorm(dtype=dtype),
        jax.nn.gelu,
        fc.GroupNorm(2, dtype=dtype),
        fc.Pool(2, reduce="mean"),
        fc.Flatten(),
        fc.LayerNorm(dtype=dtype),
        fc.Dense(3, dtype=dtype),
    )
    graph = fc.Graph(x, fc.serial(*layers)(x))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    module = fc.interop.to_torch_module(graph, params, state)
    array = rng.normal(size=(2, 6, 5, 4))
    for train in (False, True):
        expected, after = graph.apply(params, state, jnp.asarray(array, dtype), train=train)
        y = module.train(train)(torch.from_numpy(array).to(getattr(torch, dtype)))
        assert str(y.dtype) == f"torch.{dtype}"
        close(y.detach().double().numpy(), np.asarray(expected, np.float64), jnp.dtype(dtype), ulps=256)
        name = next(iter(after))
        running = module.get_submodule(name).running_var
        close(running.double().numpy(), np.asarray(after[name]["var"], np.float64), jnp.dtype(dtype), ulps=256)


@pytest.mark.parametrize(
    ("f", "at"),
    [
        (jax.nn.leaky_relu, [0.0]),
        (jax.nn.relu, [0.0]),
        (jax.nn.relu6, [0.0, 6.0]),
        (jax.nn.hard_tanh, [-1.0, 1.0]),
        (jax.nn.hard_sigmoid, [-3.0, 3.0]),
        (jax.nn.elu, [0.0]),
        (jnp.abs, [0.0]),
        (jnp.max, [1.0, 1.0]),
        (partial(jnp.clip, min=-1.0, max=2.0), [-1.0, 2.0]),
        (partial(jnp.maximum, 1.0), [1.0]),
        (partial(ops.leaky_relu, negative_slope=0.2), [0.0]),
        (partial(ops.hardtanh, low=-1.0, high=2.0), [-1.0, 2.0]),
        (partial(ops.clamp, low=-1.0, high=2.0), [-1.0, 2.0]),
        (ops.hardsigmoid, [-3.0, 3.0]),
        (ops.relu6, [0.0, 6.0]),
        (ops.absolute, [0.0]),
        (partial(ops.vector_norm, axis=(0,), order=2.0), [0.0, 0.0]),
    ],
)
def test_derivatives_at_kinks_are_those_of_the_graph(rng, f, at):
    x = fc.Input("x", (len(at),), dtype=np.float64)
    check(rng, fc.Graph(x, fc.node(f, x, batched=False)), xs=[np.array([at])], train=False)


REARRANGED = {
    "unfold": partial(fc.unfold, window=(2, 3), stride=2, padding=((2, 1), (-1, 3)), dilation=2, pad_mode="reflect"),
    "fold": fc.serial(
        partial(fc.unfold, window=2, pad_mode="circular", padding=1),
        partial(fc.fold, size=(6, 8), pad_mode="circular", padding=1),
    ),
    "channels first": fc.serial(
        partial(fc.unfold, window=2, padding=1, layout="CHW"), partial(fc.fold, size=(6, 8), padding=1, layout="CHW")
    ),
    "shuffle": partial(fc.pixel_shuffle, factor=(2, 1)),
    "shuffle of TensorFlow": partial(fc.pixel_shuffle, factor=2, order="tensorflow"),
    "unshuffle": partial(fc.pixel_unshuffle, factor=(3, 2)),
    "unshuffle of TensorFlow": partial(fc.pixel_unshuffle, factor=2, order="tensorflow"),
    "nearest": partial(fc.resize, size=(4, 13)),
    "nearest-exact": partial(fc.resize, scale=1.7, method="nearest-exact"),
    "linear": partial(fc.resize, scale=(1.3, 0.6), method="linear"),
    "cubic": partial(fc.resize, size=5, method="cubic", align_corners=True),
    "antialiased": partial(fc.resize, size=(3, 9), method="cubic", antialias=True),
    "asymmetric": partial(fc.resize, scale=1.7, method="nearest-exact", coordinates="asymmetric"),
    "a part": partial(
        fc.resize,
        size=3,
        method="cubic",
        coordinates=((1.2, 3), "half_pixel"),
        cubic_coefficient=-0.5,
        exclude_outside=True,
    ),
    "area": partial(fc.resize, size=(4, 3), method="area"),
    "blur": fc.blur_pool,
    "blur with options": partial(fc.blur_pool, window=(4, 2), stride=(3, 1), pad_mode="symmetric"),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_resampling_and_patches(rng, name):
    x = fc.Input("x", (8, 6, 8) if name == "channels first" else (6, 8, 4), dtype=np.float64)
    check(rng, fc.Graph(x, fc.serial(REARRANGED[name])(x)), train=False)


# functions of traced modules, with the shapes of one example ----------------------------------------------------

F64 = np.dtype(np.float64)
OPS = [
    *((getattr(ops, name), (3, 4)) for name in ("relu6", "hardsigmoid", "hardswish", "absolute", "erf")),
    (partial(ops.leaky_relu, negative_slope=0.2), (3, 4)),
    (ops.prelu, (3, 4), (4,)),
    (partial(ops.clamp, low=-0.5, high=None), (3, 4)),
    (partial(ops.hardtanh, low=-0.5, high=1.0), (3, 4)),
    (partial(ops.softplus, beta=2.0, threshold=1.5), (3, 4)),
    (partial(ops.hardshrink, bound=0.5), (3, 4)),
    (partial(ops.softshrink, bound=0.5), (3, 4)),
    (partial(ops.threshold, bound=0.1, value=3.0), (3, 4)),
    (partial(ops.power, exponent=3.0), (3, 4)),
    (partial(ops.power_of, base=1.5), (3, 4)),
    (ops.floor_divide, (3, 4), (3, 4)),
    (ops.truncated_divide, (3, 4), (4,)),
    (partial(ops.added, alpha=0.5), (3, 4), (4,)),
    (partial(ops.added_product, value=0.5), (3, 4), (4,), (3, 1)),
    (partial(ops.added_quotient, value=0.5), (3, 4), (4,), (3, 1)),
    (ops.interpolated, (3, 4), (4,), (3, 1)),
    (partial(ops.cast, dtype="int32"), (3, 4)),
    (ops.to_last, (2, 3, 4)),
    (ops.to_first, (2, 3, 4)),
    (partial(ops.reshaped, shape=(4, 3, 2)), (2, 3, 4)),
    (partial(ops.transposed, axes=(2, 0, 1)), (2, 3, 4)),
    (partial(ops.concatenate, axis=1), (2, 3), (2, 4)),
    (partial(ops.part, axis=1, start=1, stop=4, step=2), (2, 5)),
    (partial(ops.broadcast, shape=(2, 3, 4)), (3, 1)),
    (partial(ops.pad, pairs=((1, 2), (-1, 0)), value=1.5), (3, 4)),
    *((partial(ops.pad_by, pairs=((1, 2), (0, 1)), mode=mode), (3, 4)) for mode in ("reflect", "edge", "wrap")),
    (partial(ops.windows, axis=1, size=2, step=2, dilation=2), (3, 7)),
    (partial(ops.flipped, axes=(0, 1)), (3, 4)),
    (partial(ops.rolled, shifts=(1, -2), axes=(0, 1)), (3, 4)),
    (partial(ops.resampled, axis=0, index=((0, 1), (2, 2)), weights=((0.25, 0.75), (1.5, -0.5))), (3, 4)),
    (partial(ops.repeated, axis=0, index=(2, 0, 0)), (3, 4)),
    (partial(ops.convolved, padding=1, stride=2), (5, 6, 4), (3, 4, 3, 3)),
    (partial(ops.convolved, padding=1, groups=2), (5, 4), (6, 2, 3), (6,)),
    (partial(ops.convolved_transposed, padding=1, stride=2), (5, 6, 4), (4, 2, 3, 3), (2,)),
    (ops.linear, (3, 4), (5, 4), (5,)),
    (partial(ops.normalized_groups, groups=2, epsilon=0.1, spatial=1), (2, 3, 4), (4,), (4,)),
    (partial(ops.normalized_groups, groups=1, epsilon=0.1, spatial=2, has_scale=False), (2, 3, 4), (4,)),
    (partial(ops.normalized_layer, axes=2, epsilon=0.1), (2, 3, 4), (3, 4)),
    (partial(ops.normalized_rms, axes=1, epsilon=None), (3, 4), (4,)),
    (partial(ops.normalized_by_batch, epsilon=0.1, has_scale=False), (6, 4), (4,)),
    (partial(ops.weight_norm, axis=0), (3, 2, 2), (3, 1, 1)),
    (partial(ops.weight_norm, axis=None), (3, 2, 2), ()),
    (partial(ops.einsum, subscripts="abc,cd->bda"), (2, 3, 4), (4, 2)),
    (partial(ops.attention, scale=None, causal=True), (2, 3, 4), (2, 3, 4), (2, 3, 5)),
    (partial(ops.attention, scale=0.3, causal=False), (2, 3, 4), (2, 5, 4), (2, 5, 2), (2, 3, 5)),
    *((partial(ops.vector_norm, axis=(0, 2), order=order), (2, 3, 4)) for order in (1.0, 2.0, 3.0, float("inf"))),
    (partial(ops.variance, axis=(1,), correction=1), (2, 3, 4)),
    (partial(ops.deviation, axis=(0, 1), correction=0), (2, 3, 4)),
    (partial(ops.total, axis=(0,)), (2, 3, 4)),
    (partial(ops.total, axis=()), (2, 3)),
    (partial(ops.average, axis=(1, 2)), (2, 3, 4)),
    (partial(ops.cumulated, axis=1), (2, 3, 4)),
    (jnp.logical_not, (3,)),
    (jnp.greater, (3,), (3,)),
    (partial(jnp.argmin, axis=0), (3, 4)),
]


@pytest.mark.parametrize("case", OPS, ids=lambda case: getattr(getattr(case[0], "func", case[0]), "__name__", "op"))
def test_functions_of_traced_modules(rng, case):
    op, *shapes = case
    inputs = [fc.Input(f"x{i}", shape, dtype=F64) for i, shape in enumerate(shapes)]
    with jax.numpy_rank_promotion("allow"):
        check(rng, fc.Graph(tuple(inputs), fc.node(op, *inputs, batched=False)), train=False, batch=(2,))


def test_functions_of_indices_and_masks(rng):
    x, mask, index = rng.normal(size=(2, 3, 4)), rng.integers(0, 2, (2, 3, 4)).astype(bool), rng.integers(-3, 3, (2, 5))
    a = fc.Input("a", (3, 4), dtype=F64)
    m, i = fc.Input("m", (3, 4), dtype=bool), fc.Input("i", (5,), dtype=np.int32)
    value = fc.node(partial(ops.filled, shape=(), value=0.5, dtype="float64"))
    nodes = [
        fc.node(ops.masked, a, m, fc.node(jnp.sum, a, batched=False), batched=False),
        fc.node(partial(ops.taken, axis=0), a, i, batched=False),
        fc.node(partial(ops.indexed, pattern=(True, False)), a, i, batched=False),
        fc.node(jnp.where, m, a, a * 2),
        fc.node(jnp.logical_and, m, m),
        fc.node(jnp.bitwise_not, m),
        fc.node(jnp.logical_or, m, m),
        a + value,
        fc.node(partial(ops.normalized_by_batch, epsilon=0.1), a, batched=True),
    ]
    graph = fc.Graph((a, m, i), tuple(nodes))
    arrays = [x, mask, index.astype(np.int32)]
    expected = graph({}, *map(jnp.asarray, arrays))
    results = fc.interop.to_torch_module(graph, {})(*map(torch.from_numpy, arrays))
    for ours, theirs in zip(expected, results, strict=True):
        close(theirs.numpy(), ours, np.float64, ulps=256)


def test_constants():
    x = fc.Input("x", (3,), dtype=F64)
    constants = [
        partial(ops.filled, shape=(3,), value=2.5, dtype="float64"),
        partial(ops.counted, start=0, stop=6, step=2, dtype="int32"),
        partial(ops.spaced, start=0.0, stop=1.0, count=3, dtype="float64"),
        partial(ops.listed, values=(1.0, 2.0, 4.0), shape=(3,), dtype="bfloat16"),
        ops.nothing,
    ]
    graph = fc.Graph(x, [x, *(fc.node(op, batched=False) for op in constants)])
    results = fc.interop.to_torch_module(graph, {})(torch.zeros(2, 3, dtype=torch.float64))
    for ours, theirs in zip(graph({}, jnp.zeros((2, 3))), results, strict=True):
        assert tuple(theirs.shape) == ours.shape
        np.testing.assert_array_equal(theirs.double().numpy(), np.asarray(ours, np.float64))


def test_every_function_that_files_can_name_has_a_counterpart():
    """Except those that need what PyTorch does not have, and those that draw initial weights."""
    missing = []
    for name, op in _BY_NAME.items() - POLICIES.items():
        known = name.startswith(("jax.", "operator.", "funcconv.")) and not name.startswith("funcconv.zoo.")
        if known and _found(op)[1] is None:
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("layer", [fc.Pool(2), fc.Pool(2, ties="split"), fc.Pool(2, reduce="min", padding=1)])
def test_derivatives_of_pools_at_ties(rng, layer):
    check(rng, net((4, 5, 1), layer), xs=[np.ones((1, 4, 5, 1))], train=False)


def squash(x):
    return x / (1 + jnp.abs(x))


UNSUPPORTED = {
    "function": (fc.node(squash, name="odd"), "squash"),
    "reduce": (fc.Pool(2, reduce=jax.scipy.special.logsumexp, name="odd"), "logsumexp"),
    "option": (fc.node(partial(jnp.sum, where=None, initial=0.0), name="odd", batched=False), "jax.numpy.sum"),
    "axis name": (fc.BatchNorm(axis_name="batch", name="odd"), "axis_name"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_pytorch_does_not_have_is_an_error(name):
    layer, label = UNSUPPORTED[name]
    graph = net((4, 4, 2), fc.Conv(2, 1), layer)
    with pytest.raises(fc.FuncconvError, match=rf"(?s)node 'odd'.*{label}"):
        fc.interop.to_torch_module(graph, graph.init(jax.random.key(0)), {})


def test_errors(rng):
    graph = net((4, 3), fc.BatchNorm(), fc.Dense(2))
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    with pytest.raises(fc.FuncconvError, match="has a state"):
        fc.interop.to_torch_module(graph, params)
    with pytest.raises(fc.FuncconvError, match="no 'dense1/kernel'"):
        fc.interop.to_torch_module(graph, {**params, "dense1": {}}, state)
    module = fc.interop.to_torch_module(graph, params, state)
    with pytest.raises(fc.FuncconvError, match=r"'x' must have shape \(\*batch, 4, 3\); got \(2, 3, 4\)"):
        module(torch.ones(2, 3, 4))
    with pytest.raises(fc.FuncconvError, match="must be a tensor"):
        module(rng.normal(size=(2, 4, 3)))
    with pytest.raises(fc.FuncconvError, match="takes 1 input"):
        module(torch.ones(2, 4, 3), torch.ones(2, 4, 3))
    named = net((3,), fc.Dense(3, name="forward"))
    with pytest.raises(fc.FuncconvError, match="'forward'"):
        fc.interop.to_torch_module(named, named.init(jax.random.key(0)))


def test_copies(rng):
    graph = net((5, 4, 2), fc.Conv(3, 2), fc.BatchNorm(), fc.Flatten(), fc.Dense(2))
    params = graph.init(jax.random.key(0))
    module = fc.interop.to_torch_module(graph, params, graph.init_state())
    x = torch.from_numpy(rng.normal(size=(2, 5, 4, 2)))
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            other.dense1.bias.add_(1)
        assert torch.equal(module(x), expected)
    narrow = module.float()(x.float())
    close(
        narrow.detach().numpy(), np.asarray(graph.apply(params, graph.init_state(), x.numpy())[0], np.float32), ulps=64
    )


# traced modules ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4, momentum=None)
        self.short = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.BatchNorm2d(4, affine=False))

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.depth, self.act = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Hardswish()
        self.fc1, self.fc2, self.slope = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1), nn.PReLU(6)

    def forward(self, x):
        x = self.act(self.depth(x))
        gate = F.hardsigmoid(self.fc2(F.leaky_relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return {"image": self.slope(x * gate), "mean": (x * gate).flatten(2).softmax(-1)[:, :, :3]}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 21, 8))
        self.patches, self.qkv, self.out = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("mask", torch.randn(21, 21))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 21, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        y = (y + (q @ k.transpose(-1, -2) + self.mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return x + self.out(y), x[:, 0]


class Next(nn.Module):
    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4, eps=1e-6)
        self.up, self.down, self.gamma = nn.Linear(4, 16), nn.Linear(16, 4), nn.Parameter(torch.rand(4))

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class Larger(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), nn.GroupNorm(1, 3)
        self.down = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.fill = nn.ReflectionPad2d((1, 2, 0, 1))

    def forward(self, x):
        y = F.pixel_shuffle(self.down(self.fill(self.norm(self.up(x)))), 2)
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        a, b = F.interpolate(y, scale_factor=2).chunk(2, 3)
        return torch.stack([a, b.flip(2)], 1), F.adaptive_avg_pool2d(y, (3, 2)), F.pad(y, (1, -1), value=2.0)


class Standardized(nn.Module):
    """A kernel that is standardized in `forward`, and two modules that share their weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.same_norm, self.tied = self.norm, nn.Conv2d(3, 4, 3)
        self.tied.weight = self.conv.weight
        self.unused = nn.Linear(2, 3)

    def forward(self, x):
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return self.same_norm(F.conv2d(x, weight, self.conv.bias, stride=2)) + self.norm(self.tied(x))[:, :, :3, :3]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, a, b):
        return torch.maximum(self.conv(a), self.conv(b)), (a - b).abs().amax((1, 2, 3))


TRACED = {
    "residual": (Residual, [(3, 9, 8)]),
    "squeeze-excite": (SqueezeExcite, [(6, 5, 4)]),
    "attention": (Attention, [(3, 8, 10)]),
    "convnext": (Next, [(4, 8, 9)]),
    "up": (Larger, [(4, 3, 4)]),
    "standardized": (Standardized, [(3, 7, 8)]),
    "vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="same"),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(4 * 20, 3),
            nn.BatchNorm1d(3),
            nn.Softmax(-1),
        ),
        [(3, 9, 7)],
    ),
    "root": (lambda: nn.Conv2d(3, 4, 3), [(3, 5, 6)]),
    "two-inputs": (Two, [(3, 5, 5), (3, 5, 5)]),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", TRACED)
def test_a_traced_module_and_back(name, layout):
    torch.manual_seed(0)
    make, shapes = TRACED[name]
    module = make().double()
    for key, tensor in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    # PyTorch's derivative of hardsigmoid is 1/6 in float32 for float64 too.
    slack = 2**29 if name == "squeeze-excite" else 2**12
    xs = [torch.randn(4, *shape, dtype=torch.float64) for shape in shapes]
    graph, params, state = fc.interop.trace_torch(module, tuple(xs), layout=layout)
    copied = fc.interop.to_torch_module(graph, params, state)
    expected_state, state_dict = module.state_dict(), copied.state_dict()
    assert state_dict.keys() == expected_state.keys()
    for key, tensor in expected_state.items():
        assert state_dict[key].dtype == tensor.dtype
        assert torch.equal(state_dict[key], tensor)
    copied.load_state_dict(expected_state, strict=True)
    module.load_state_dict(state_dict, strict=True)

    def moved(tensor):
        return tensor.movedim(1, -1) if layout == "NHWC" and tensor.ndim > 2 else tensor

    for train in (False, True):
        for network in (module, copied):
            network.train(train).zero_grad()
        if train and any(isinstance(network, nn.Dropout) for network in module.modules()):
            continue
        expected = jax.tree.leaves(module(*xs))
        results = jax.tree.leaves(copied(*(moved(x) for x in xs)))
        for a, b in zip(results, expected, strict=True):
            close(a.detach().numpy(), moved(b).detach().numpy(), ulps=2**10)
        for outputs in (expected, results):
            sum(torch.sin(y).sum() for y in outputs).backward()
        gradients = dict(module.named_parameters())
        for key, parameter in copied.named_parameters():
            if gradients[key].grad is not None:
                close(parameter.grad.numpy(), gradients[key].grad.numpy(), ulps=slack)
        for key, tensor in copied.state_dict().items():
            close(tensor.double().numpy(), module.state_dict()[key].double().numpy(), ulps=2**10)


def test_no_tensor_is_made_on_another_device_than_the_inputs():
    """PyTorch refuses operands on two devices, also on the device that computes only shapes."""
    networks = []
    for name in ("residual", "squeeze-excite", "attention", "up", "standardized"):
        make, (shape,) = TRACED[name]
        networks.append((shape, fc.interop.trace_torch(make(), torch.randn(2, *shape))))
    x = fc.Input("x", (7, 6, 2), dtype=np.float32)
    value = fc.node(partial(ops.spaced, start=0.0, stop=1.0, count=2, dtype="float32"), batched=False)
    nodes = [layer(x) for layer in POOLS.values()] + [x + value]
    nodes += [
        fc.node(partial(fc.adaptive_pool, output_size=3, reduce=reduce), x) for reduce in ("mean", "lse", "median")
    ]
    networks.append(((7, 6, 2), (fc.Graph(x, nodes), {}, {})))
    for shape, (graph, params, state) in networks:
        module = fc.interop.to_torch_module(graph, params, state)
        expected = jax.tree.leaves(module(torch.ones(2, *shape)))
        results = jax.tree.leaves(module.to("meta")(torch.ones(2, *shape, device="meta")))
        assert [y.shape for y in results] == [y.shape for y in expected]
        assert {y.device.type for y in results} == {"meta"}


class Given(nn.Module):
    """A module whose inputs have names, as `torch.export` wants them."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("name", ["residual", "attention", "up"])
def test_a_module_can_be_exported_for_any_batch_size(name):
    make, (shape,) = TRACED[name]
    module = make().eval()
    x = torch.randn(2, *shape)
    graph, params, state = fc.interop.trace_torch(module, x)
    copied = Given(fc.interop.to_torch_module(graph, params, state))
    exported = torch.export.export(copied, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    x = torch.randn(5, *shape)
    for a, b in zip(jax.tree.leaves(exported.module()(x)), jax.tree.leaves(module(x)), strict=True):
        close(a.detach().numpy(), b.detach().numpy(), ulps=2**10)
