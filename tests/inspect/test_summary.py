"""Summaries count as textbooks do."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from published import PUBLISHED

import funcconv as fc

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    network, by_hand, (parameters, unit), (products, large) = PUBLISHED[name]
    summary = fc.summary(network())
    counted = by_hand()
    assert (summary.parameters, summary.flops) == (counted[0], 2 * counted[1])
    assert round(counted[0] / unit) == parameters
    assert round(counted[1] / large) == products
    assert summary.real_flops <= summary.flops
    first = next(row for row in summary.rows if row.flops)
    assert summary.gradient_flops == 2 * summary.flops - first.flops  # by the image itself nobody asks


def test_a_batch_multiplies_all_but_parameters():
    network = PUBLISHED["LeNet-5"][0]()
    one, many = fc.summary(network), fc.summary(network, batch=32)
    assert many.parameters == one.parameters
    for name in ("flops", "gradient_flops", "real_flops", "activation_bytes", "peak_bytes"):
        assert getattr(many, name) == 32 * getattr(one, name)
    assert all(row.shape[0] == 32 for row in many.rows)


def pair():
    left, right = fc.Input("left", (12, 12, 1)), fc.Input("right", (12, 12, 1))
    trunk = fc.Graph(left, fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh, fc.flatten, fc.Dense(3))(left), name="trunk")
    return fc.Graph((left, right), fc.siamese(trunk, fc.add)(left, right))


def test_shared_weights_count_once():
    graph = pair()
    summary = fc.summary(graph)
    params = graph.init(jax.random.key(0))
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = {row.name: row for row in summary.rows}
    assert (rows["trunk/conv1"].parameters, rows["trunk/conv1"].shared) == (40, None)
    assert (rows["trunk@2/conv1"].parameters, rows["trunk@2/conv1"].shared) == (0, "trunk/conv1")
    assert rows["trunk@2/conv1"].flops == rows["trunk/conv1"].flops == 2 * 144 * 9 * 4
    assert rows["trunk/conv1"].real_flops == 2 * 4 * 34**2  # 12 windows of 3 taps, of which two lie on padding
    assert "as trunk/conv1" in str(summary)


def test_bytes_are_those_of_the_values():
    graph = pair()
    params = graph.init(jax.random.key(0))
    xs = [jnp.ones((2, 12, 12, 1))] * 2
    values = graph.values(params, *xs)
    summary = fc.summary(graph, batch=2)
    assert {row.name: row.bytes for row in summary.rows} == {name: value.nbytes for name, value in values.items()}
    assert summary.activation_bytes == sum(value.nbytes for value in values.values())
    assert {row.name: row.shape for row in summary.rows} == {name: value.shape for name, value in values.items()}


def test_operations_inside_of_functions_count():
    x = fc.Input("x", (8, 8, 2))
    kernel = np.ones((3, 3, 2, 4))

    def twice(w, x):
        def once(x, _):
            return jnp.tanh(fc.conv({"kernel": w}, x, padding=1)), None

        return jax.lax.scan(once, x, length=5)[0]

    for implementation in (None, "lax"):
        graph = fc.Graph(
            x, fc.node(lambda x, how=implementation: fc.conv({"kernel": kernel}, x, implementation=how), x)
        )
        assert fc.summary(graph).flops == 2 * 36 * 9 * 2 * 4
    graph = fc.Graph(x, fc.node(twice, x, params="w"))
    summary = fc.summary(graph, params={"w": np.ones((3, 3, 2, 2))})
    assert summary.flops == 5 * 2 * 64 * 9 * 4
    assert summary.gradient_flops >= summary.flops


def test_transposed_convolutions_count_alike():
    y = fc.Input("y", (5, 7, 4))
    for implementation in (None, "lax"):
        layer = fc.ConvTranspose(6, (3, 2), stride=2, padding=1, implementation=implementation)
        summary = fc.summary(fc.Graph(y, layer(y)))
        assert summary.flops == 2 * 35 * 6 * 4 * 6
        assert summary.gradient_flops == summary.flops
        if implementation is None:
            assert summary.real_flops == 2 * (13 * 12) * 24  # without the taps that padding crops


def test_as_data():
    summary = fc.summary(pair(), batch=3)
    data = json.loads(summary.to_json(indent=1))
    assert data == summary.as_dict()
    assert data["parameters"] == summary.parameters
    assert data["rows"][2]["receptive_field"]["left"][0]["size"] == 3
    assert len(data["rows"]) == len(summary.rows)


def test_prints_everywhere(monkeypatch):
    summary = fc.summary(pair())
    plain = str(summary)
    assert "\x1b" not in plain
    lines = plain.splitlines()
    assert len(lines) == len(summary.rows) + 5
    page = summary._repr_html_()
    for row in summary.rows:
        assert row.name in plain
        assert f">{row.name}<" in page
    needed("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "trunk" in str(summary)


@pytest.mark.parametrize("width", [200, 100, 80, 70])
def test_the_table_is_as_wide_as_the_terminal(monkeypatch, width):
    summary = fc.summary(pair())
    whole = str(summary)
    assert max(map(len, whole.splitlines())) > 100  # a file gets all of a row in one line
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("importlib.util.find_spec", {}.get)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = str(summary).splitlines()
    assert max(map(len, lines)) <= width

    def letters(text):
        return sorted(text.replace("-", "").replace(" ", "").replace("\n", ""))

    assert letters("\n".join(lines)) == letters(whole)  # nothing is lost


def test_a_summary_is_described_in_three_lines():
    summary = fc.summary(pair())
    first, *rest = repr(summary).splitlines()
    assert first == f"Summary of {len(summary.rows)} nodes for a batch of 1:"
    assert rest == str(summary).splitlines()[-2:]


def test_given_parameters_and_strange_names():
    x = fc.Input("<b>ünïcode\n", (4,))
    graph = fc.Graph(x, fc.node(jnp.dot, x, params="w", name='[red] & "quoted"'))
    with pytest.raises(fc.FuncconvError, match="nothing draws its parameters 'w'"):
        fc.summary(graph)
    summary = fc.summary(graph, params={"w": np.ones((4, 4))})
    assert (summary.parameters, summary.flops) == (16, 32)
    assert "&lt;b&gt;" in summary._repr_html_()


@pytest.mark.parametrize("batch", [0, -1, True, 2.0])
def test_a_batch_is_a_positive_integer(batch):
    with pytest.raises(fc.FuncconvError, match="positive integer"):
        fc.summary(pair(), batch=batch)
