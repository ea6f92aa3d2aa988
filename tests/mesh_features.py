"""Training steps whose results must not depend on the devices: one feature of a step after another.

Used by `tests/train/test_features_on_meshes.py`, in its process and in processes that train together.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcconv as fc

EXAMPLES, STEPS = 16, 3
F32 = np.float32


def normed():
    return fc.Conv(4, 3, padding="SAME"), fc.BatchNorm(), jnp.tanh


def dropped():
    return fc.Conv(4, 3, padding="SAME"), fc.Dropout(0.3), fc.DropPath(0.2)


FEATURES = {  # the layers before the last ones, and the options of the step
    "batch norm": (normed, {}),
    "dropout": (dropped, {}),
    "accumulate": (lambda: (*normed(), *dropped()), {"accumulate": 2}),
    "clip": (normed, {"clip": 0.01}),
    "average, scale and frozen": (normed, {"ema": 0.9, "loss_scale": "dynamic", "frozen": "conv1/bias"}),
}


def batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, 6, 6, 2)), rng.normal(size=(EXAMPLES, 4))
    return {"x": x.astype(F32), "y": y.astype(F32)}


def training(feature, mesh=None, partition=None):
    """Return a step with the feature, and its first state."""
    layers, options = FEATURES[feature]
    node = x = fc.Input("x", (6, 6, 2))
    dropped = []
    for layer in (*layers(), fc.Flatten(), fc.Dense(4)):
        node = fc.serial(layer)(node)
        dropped += [node] if isinstance(layer, fc.Dropout | fc.DropPath) else []
    graph = fc.Graph(x, (node, *dropped))

    def loss(params, batch, *, key, state):
        (logits, *dropped), state = graph.apply(params, state, batch["x"], key=key, train=True)
        # The masks of the dropout layers as a number that other masks would not have.
        zeros = [jnp.ravel(value == 0) for value in dropped]
        mask = sum(((1 + jnp.arange(zero.size) % 1009) * zero).sum() for zero in zeros)
        return jnp.square(logits - batch["y"]).mean(), {"state": state, "mask": jnp.asarray(mask, jnp.float32)}

    options = {"has_aux": True, "mesh": mesh, "partition": partition, **options}
    init, step = fc.train.make_step(loss, optax.sgd(0.1, momentum=0.9), **options)
    params = jax.tree.map(lambda leaf: leaf.astype(F32), graph.init(jax.random.key(0)))
    model = jax.tree.map(lambda leaf: leaf.astype(F32), graph.init_state())
    return step, init(params, jax.random.key(1), model)


def trained(feature, mesh=None):
    """Return the state and the metrics after some steps, as NumPy arrays."""
    step, state = training(feature, mesh)
    data = batch()
    if mesh is not None:
        spread = jax.NamedSharding(mesh, jax.P("data"))
        data = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, spread, lambda index: x[index]), data)
    compiled = jax.jit(step)
    for _ in range(STEPS):
        state, metrics = compiled(state, data)
    return jax.tree.map(np.asarray, {"state": values(state), "metrics": metrics})


def values(state):
    """Return the arrays of a state without its key."""
    return {name: getattr(state, name) for name in ("params", "optimizer", "model", "ema")}


def main(number, count, address, path):
    """Train in one of several processes, each with two devices; the first one writes the results to a file."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, count, number)
    mesh = jax.make_mesh((2 * count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    results = {feature: jax.tree.leaves(trained(feature, mesh)) for feature in FEATURES}
    if number == 0:
        named = {f"{feature} {i}": leaf for feature in FEATURES for i, leaf in enumerate(results[feature])}
        np.savez(Path(path), **named)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
