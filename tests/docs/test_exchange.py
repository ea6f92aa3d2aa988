"""The bytes that devices exchange: read from a compiled program, and as the page shows them."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import exchange

PROGRAM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[8,2])) -> (s32[], f32[8,2]) {
  %x = f32[8,2]{1,0} all-reduce(%y), channel_id=1, to_apply=%sum
}

%condition.1 (p: (s32[], f32[8,2])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,2]) -> f32[8,2] {
  %all-reduce.2 = (f32[3]{0}, bf16[2,5]{1,0}) all-reduce(%a, %b), channel_id=2, to_apply=%sum
  %gathered = f32[4]{0} all-gather(%c), channel_id=3, dimensions={0}
  %loop = (s32[], f32[8,2]) while(%t), condition=%condition.1, body=%body.1, config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[8,2]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_and_tuples_are_counted():
    assert sorted(exchange.collectives(PROGRAM)) == [
        ("all-gather", 16, 1),
        ("all-reduce", 32, 1),
        ("all-reduce", 64, 3),
    ]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.usefixtures("climate_of_a_user")
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_exchanges_its_gradients(parts):
    """In each part of an accumulated batch again; beside them the loss, a number."""
    x = fc.Input("x", (6, 6, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Flatten(), fc.Dense(3))(x))

    def loss(params, batch, *, key, state):
        del key, state
        return jnp.square(graph(params, batch)).mean()

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    init, step = fc.train.make_step(loss, optax.sgd(0.1), mesh=mesh, accumulate=parts)
    state = init(graph.init(jax.random.key(0)), jax.random.key(1))
    batch = jax.device_put(np.ones((24, 6, 6, 2), np.float32), jax.NamedSharding(mesh, jax.P("data")))
    found = exchange.collectives(jax.jit(step).lower(state, batch).compile().as_text())
    assert {kind for kind, _, _ in found} == {"all-reduce"}
    exchanged = sum(size * times for _, size, times in found)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert 0 <= exchanged - parts * size <= 4 * parts


def test_the_page_shows_the_recorded_figures():
    figures = json.loads(exchange.RESULT.read_text())["tables"]["exchange"]
    page = exchange.PAGE.read_text()
    assert exchange.BEGIN in page, "run `python -m benchmarks.exchange`"
    assert page == exchange.written(page, figures), "run `python -m benchmarks.exchange`"
    assert list(figures) == list(exchange.STEPS)
