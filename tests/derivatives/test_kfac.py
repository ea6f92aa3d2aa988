"""Kronecker factors against exact blocks, where both are equal, and what is computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close

import funcconv as fc


def squared(z, y):
    return jnp.square(z - y).sum() / 2


def crossed(z, y):
    return optax.softmax_cross_entropy_with_integer_labels(z, y)


def network(*layers, shape=(5, 5, 2)):
    x = fc.Input("x", shape)
    return fc.Graph(x, fc.serial(*layers)(x))


def exact(model, loss, params, batch):
    """Return the Gauss-Newton matrix of the mean loss."""
    x, y = batch
    return fc.gauss_newton(lambda params: model(params, x), lambda z: jax.vmap(loss)(z, y).mean(), params)


def small(rng, n, outputs=3, shape=(5, 5, 2)):
    return jnp.asarray(rng.normal(size=(n, *shape))), jnp.asarray(rng.integers(0, outputs, n))


GRAPH = network(fc.Flatten(), fc.Dense(3))
PARAMS, BATCH = GRAPH.init(jax.random.key(0)), (jnp.ones((2, 5, 5, 2)), jnp.zeros(2, int))


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_block_of_a_dense_layer_is_exact_for_one_example(approximation, corrected, rng):
    graph = network(fc.Flatten(), fc.Dense(4), jnp.tanh, fc.Dense(3))
    params, batch = graph.init(jax.random.key(0)), small(rng, 1)
    approximate = fc.kfac(graph, crossed, params, batch, approximation=approximation, corrected=corrected)
    for name in ("dense1", "dense2"):
        for part in ("kernel", "bias"):
            block = approximate.block(f"{name}/{part}").dense()
            close(block, exact(graph, crossed, params, batch).block(f"{name}/{part}").dense(), terms=100, steps=8)


def test_a_deep_linear_network_with_squared_loss_is_exact(rng):
    graph = network(fc.Flatten(), fc.Dense(4, bias=False), fc.Dense(3, bias=False), fc.Dense(2, bias=False))
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(7, 5, 5, 2)))
    batch = x, jnp.asarray(rng.normal(size=(7, 2)))
    approximate = fc.kfac(graph, squared, params, batch, batch_size=3)
    whole = exact(graph, squared, params, batch)
    for name in params:
        close(approximate.block(name).dense(), whole.block(name).dense(), terms=500, steps=8)


def test_reduce_is_exact_for_linear_convolutions_that_are_averaged(rng):
    """Eschenhagen and others 2023, proposition 2: the places are averaged at the end of a linear network."""
    graph = network(fc.Conv(3, 1, bias=False), fc.Conv(2, 1, bias=False), fc.global_pool)
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(6, 5, 5, 2)))
    batch = x, jnp.asarray(rng.normal(size=(6, 2)))
    approximate, whole = (
        f(graph, squared, params, batch) for f in (lambda *a: fc.kfac(*a, approximation="reduce"), exact)
    )
    for name in params:
        close(approximate.block(name).dense(), whole.block(name).dense(), terms=500, steps=8)


def test_expand_is_exact_for_linear_convolutions_with_a_loss_at_each_place(rng):
    graph = network(fc.Conv(3, 1, bias=False), fc.Conv(2, 1, bias=False), shape=(3, 3, 2))
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(4, 3, 3, 2)))
    batch = x, jnp.asarray(rng.normal(size=(4, 3, 3, 2)))
    approximate, whole = (f(graph, squared, params, batch) for f in (fc.kfac, exact))
    for name in params:
        close(approximate.block(name).dense(), whole.block(name).dense(), terms=500, steps=8)


LAYERS = {
    "conv": (fc.Conv(4, 3, stride=2), jnp.tanh, fc.global_pool),
    "groups": (fc.Conv(4, 3, groups=2), jnp.tanh, fc.global_pool),
    "depthwise": (fc.Conv(2, 3, groups=2), jnp.tanh, fc.global_pool),
    "transposed": (fc.ConvTranspose(3, 2, stride=2), jnp.tanh, fc.global_pool),
    "transposed, groups": (fc.ConvTranspose(4, 2, groups=2), jnp.tanh, fc.global_pool),
    "local": (fc.LocalConv(2, 3), jnp.tanh, fc.Flatten()),
    "norm": (fc.Conv(4, 3), fc.GroupNorm(2), fc.global_pool),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer_against_its_definition(name, rng):
    """One place for each kernel: images of the size of the window. Then all blocks are exact for one example."""
    graph = network(*LAYERS[name], fc.Dense(3))
    params, batch = graph.init(jax.random.key(0)), small(rng, 4)
    curvature = fc.kfac(graph, crossed, params, batch)
    whole = exact(graph, crossed, params, batch)
    corrected = fc.kfac(graph, crossed, params, batch, corrected=True)
    for path, _ in jax.tree.leaves_with_path(params):
        entry = jax.tree_util.keystr(path, simple=True, separator="/")
        block, ours, better = (operator.block(entry).dense() for operator in (whole, curvature, corrected))
        if not entry.endswith("kernel") or (name == "local" and entry.startswith("local")):
            close(ours, block, terms=500, steps=8)
            continue
        # The corrected block has the same trace, and is the nearest with these eigenvectors.
        close(jnp.trace(better), jnp.trace(block), terms=500, steps=8)
        assert jnp.linalg.norm(better - block) <= jnp.linalg.norm(ours - block) * (1 + 1e-12)
        # All are symmetric and not negative.
        assert jnp.linalg.eigvalsh(ours).min() > -1e-12 * jnp.abs(ours).max()


@pytest.mark.parametrize("name", ["conv", "groups", "transposed", "transposed, groups"])
@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_factors_are_those_of_the_definition(name, approximation, rng):
    """The block of a kernel, from the gradients by a kernel of its own for each place."""
    layer = LAYERS[name][0]
    graph = network(*LAYERS[name], fc.Dense(3))
    params, (x, y) = graph.init(jax.random.key(0)), small(rng, 3)
    entry = next(iter(name for name in params if "conv" in name))
    curvature = fc.kfac(graph, crossed, params, (x, y), approximation=approximation, fisher="empirical")
    node = entry
    values = graph.values(params, x)

    def rest(value, i):
        z = graph.continuation(params, x[i : i + 1], at=node)[1](value[None])
        return crossed(z[0], y[i])

    derivatives = jnp.stack([jax.grad(rest)(values[node][i], i) for i in range(3)])
    transposed = isinstance(layer, fc.ConvTranspose)
    options = {"stride": layer.stride, "padding": layer.padding}
    image, windows_of = (derivatives, x) if transposed else (x, derivatives)
    groups, window = layer.groups, params[entry]["kernel"].shape[:2]
    patches = fc.unfold(image, window, **options)  # (n, h, w, taps * channels) of each position
    patches = patches.reshape(3, -1, *window, groups, image.shape[-1] // groups)
    patches = jnp.moveaxis(patches, 4, 2).reshape(3, patches.shape[1], groups, -1)
    others = windows_of.reshape(3, -1, groups, windows_of.shape[-1] // groups)
    a, g = (others, patches) if transposed else (patches, others)
    places = 1 if approximation == "reduce" else a.shape[1]
    if approximation == "reduce":
        a, g = a.mean(1, keepdims=True), g.sum(1, keepdims=True)
    of_a, of_g = (jnp.einsum("nrgx,nrgy->gxy", f, f) / 3 for f in (a, g))
    rows, columns = (of_g, of_a / places) if transposed else (of_a / places, of_g)
    shape = rows.shape[1], groups, columns.shape[1]
    v = jnp.asarray(rng.normal(size=params[entry]["kernel"].shape))
    expected = jnp.einsum("gxy,ygj,gij->xgi", rows, v.reshape(shape), columns).reshape(v.shape)
    vector = jax.tree.map(jnp.zeros_like, params)
    vector = {**vector, entry: {**vector[entry], "kernel": v}}
    close(curvature.mv(vector)[entry]["kernel"], expected, terms=500, steps=8)


def test_what_is_computed_from_the_factors(rng):
    graph = network(fc.Conv(3, 3), jnp.tanh, fc.GroupNorm(1), fc.global_pool, fc.Dense(3))
    params, batch = graph.init(jax.random.key(0)), small(rng, 5)
    curvature = jax.jit(lambda params: fc.kfac(graph, crossed, params, batch))(params)
    dense = curvature.dense()
    close(curvature.trace(), jnp.trace(dense), terms=500)
    values, vectors = curvature.eigsh(4)
    close(values, jnp.linalg.eigvalsh(dense)[-4:], terms=500)
    close(
        curvature.mm(vectors)["conv1"]["kernel"], values.reshape(4, 1, 1, 1, 1) * vectors["conv1"]["kernel"], terms=500
    )
    close(curvature.eigsh(2, "SA")[0], jnp.linalg.eigvalsh(dense)[:2], terms=500, ulps=500)
    damped = dense + 0.1 * jnp.eye(len(dense))
    close(curvature.log_det(0.1), jnp.linalg.slogdet(damped)[1], terms=500)
    close(curvature.det(0.1), jnp.exp(curvature.log_det(0.1)))
    close(curvature.inverse(0.1, "exact").dense(), jnp.linalg.inv(damped), terms=500, steps=8)
    kernel = curvature.inverse(0.1).block("dense1/kernel").dense()
    a, b = (_factor(curvature.blocks[3], side) for side in ("rows", "columns"))
    pi = jnp.sqrt(jnp.trace(a) / len(a) / (jnp.trace(b) / len(b)))
    root = jnp.sqrt(0.1)
    expected = jnp.kron(
        jnp.linalg.inv(a + pi * root * jnp.eye(len(a))), jnp.linalg.inv(b + root / pi * jnp.eye(len(b)))
    )
    close(kernel, expected, terms=500, steps=8)


def _factor(block, side):
    vectors, values = (block.left, block.of_rows) if side == "rows" else (block.right, block.of_columns)
    return vectors[0] * values[0][None] @ vectors[0].T


def test_random_vectors_have_the_same_mean(rng):
    """The mean over many keys is within six of its standard deviations."""
    params, batch = jax.tree.map(jnp.ones_like, PARAMS), small(rng, 3)
    expected = fc.kfac(GRAPH, crossed, params, batch).mv(params)["dense1"]["bias"]

    def drawn(key):
        return fc.kfac(GRAPH, crossed, params, batch, fisher="mc", key=key, samples=2).mv(params)["dense1"]["bias"]

    results = jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(1), 400))
    error = jnp.abs(results.mean(0) - expected)
    assert (error <= 6 * results.std(0) / np.sqrt(400) + 1e-12).all()
    assert results.std(0).max() > 0


def test_shared_kernels_have_one_block_for_all_uses(rng):
    conv = fc.Conv(2, 1, bias=False)
    x = fc.Input("x", (5, 5, 2))
    graph = fc.Graph(x, fc.serial(conv, conv, fc.global_pool)(x))
    params, batch = graph.init(jax.random.key(0)), small(rng, 4, outputs=2)
    corrected = fc.kfac(graph, crossed, params, batch, corrected=True)
    close(corrected.trace(), exact(graph, crossed, params, batch).trace(), terms=500, steps=8)


def test_16_bit_parameters_are_summed_in_float32(rng):
    graph = network(fc.Conv(3, 3), jnp.tanh, fc.global_pool, fc.Dense(3))
    params, (x, y) = graph.init(jax.random.key(0)), small(rng, 5)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    curvature = fc.kfac(graph, crossed, low, (x.astype(jnp.bfloat16), y))
    assert all(block.values.dtype == jnp.float32 for block in curvature.blocks)
    assert curvature.mv(low)["conv1"]["kernel"].dtype == jnp.bfloat16
    close(curvature.trace(), fc.kfac(graph, crossed, params, (x, y)).trace(), dtype=jnp.bfloat16, terms=16, steps=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH, approximation="all"), "unknown approximation='all'"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH, fisher="type2"), "did you mean 'type-2'"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH, fisher="mc"), 'fisher="mc", which needs it'),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH, key=jax.random.key(0)), "key is for fisher"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH[0]), r"a pair \(x, y\)"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, (BATCH[0], BATCH[1][:1])), "share one leading axis"),
        (lambda: fc.kfac(GRAPH, lambda z, y: (z, y)[0], PARAMS, BATCH), "one floating number"),
        (lambda: fc.kfac(lambda p, x: (p, x.sum())[1], crossed, PARAMS, BATCH), r"floating array \(2, \*outputs\)"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH).inverse(0.1, "sum"), "unknown split='sum'"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH).inverse(jnp.ones(2)), "one real number"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH).eigsh(0), "k must be from 1 to"),
        (lambda: fc.kfac(GRAPH, crossed, PARAMS, BATCH).eigsh(1, "BE"), "unknown which='BE'"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(fc.FuncconvError, match=message):
        call()


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_curvlinops_has_the_same_factors(approximation, fisher, rng):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    curvlinops = pytest.importorskip("curvlinops", reason="compares with curvlinops")
    layers = (torch.nn.Conv2d(2, 4, 3, stride=2), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 2), torch.nn.Tanh())
    twin = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(12, 5)).double()
    convolutions = (fc.Conv(4, 3, stride=2), jnp.tanh, fc.Conv(3, 2), jnp.tanh, fc.Flatten(order="channels_first"))
    graph = network(*convolutions, fc.Dense(5), shape=(7, 7, 2))
    images, labels = rng.normal(size=(6, 7, 7, 2)), rng.integers(0, 5, 6)
    data = [(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))]
    theirs = curvlinops.KFACLinearOperator(
        twin,
        torch.nn.CrossEntropyLoss(),
        list(twin.parameters()),
        data,
        fisher_type=fisher,
        kfac_approx=approximation,
        check_deterministic=False,
    )
    vector = {name: torch.from_numpy(rng.normal(size=tuple(p.shape))) for name, p in twin.named_parameters()}
    product = (theirs @ torch.cat([v.reshape(-1) for v in vector.values()])).detach()
    parts = product.split([v.numel() for v in vector.values()])
    expected = {name: part.reshape(v.shape) for (name, v), part in zip(vector.items(), parts, strict=True)}
    params, v, product = (fc.interop.from_torch(graph, tree)[0] for tree in (twin.state_dict(), vector, expected))
    batch = jnp.asarray(images), jnp.asarray(labels)
    ours = fc.kfac(graph, crossed, params, batch, approximation=approximation, fisher=fisher).mv(v)
    for name, entry in ours.items():
        close(entry["kernel"], product[name]["kernel"], terms=500, steps=8)
        if approximation == "reduce":  # the blocks of biases are exact here, and theirs in this case
            close(entry["bias"], product[name]["bias"], terms=500, steps=8)
