"""Pools of processes, spawned and forked, that compute a graph; printed is what they found. A script of its own."""

import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc


def network():
    x = fc.Input("x", (6, 6, 2))
    layers = fc.serial(fc.Conv(4, 3, name="first"), jax.nn.relu, fc.LayerNorm(1), fc.Pool(2), fc.Flatten(), fc.Dense(3))
    return fc.Graph(x, layers(x))


def computed(graph, layer, params, x):
    own = network()
    same = graph == own and hash(graph) == hash(own) and layer == fc.Conv(4, 3) and hash(layer) == hash(fc.Conv(4, 3))
    return same, graph, layer, np.asarray(graph(params, x))


def main():
    methods = [method for method in ("spawn", "fork") if method in multiprocessing.get_all_start_methods()]
    # Before JAX starts its threads: a forked process would lack them.
    pools = {method: multiprocessing.get_context(method).Pool(1) for method in methods}
    graph, layer = network(), fc.Conv(4, 3)
    params, x = graph.init(jax.random.key(0)), np.linspace(-1, 1, 144, dtype=np.float32).reshape(2, 6, 6, 2)
    params = jax.tree.map(np.asarray, params)
    expected = np.asarray(graph(params, jnp.asarray(x)))
    for method, pool in pools.items():
        with pool:
            same, own, its_layer, y = pool.apply(computed, (graph, layer, params, x))
        assert same, method
        assert (own, its_layer) == (graph, layer), method
        assert (hash(own), hash(its_layer)) == (hash(graph), hash(layer)), method
        np.testing.assert_array_equal(y, expected, err_msg=method)
        print(method)


if __name__ == "__main__":
    main()
