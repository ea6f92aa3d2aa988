"""Graphs as JSON that is damaged or hostile: it is refused in one line, or gives the graph that was written."""

import json
import random

import graphs as declared
import jax
import jax.numpy as jnp
import pytest
from damage import cuts, flipped_bits

import funcconv as fc

COUNTS = [pytest.param(40, id="few"), pytest.param(4000, id="many", marks=pytest.mark.slow)]
GRAPHS = [declared.everything, declared.arithmetic, declared.nested]
VALUES = [
    None,
    True,
    -1,
    10**30,
    0.5,
    "x",
    "",
    "\ud800",
    [],
    [[]],
    {},
    {"float": "inf"},
    {"function": "jax.nn.relu"},
    {"tuple": []},
    {"complex": [10**400, 0]},
    {"dtype": "(9999999999,)f8"},
    {"layer": "Conv", "options": {}},
]


def check(text, graph):
    """Return whether a text is read; if so, it is the graph."""
    try:
        found = fc.Graph.from_json(text)
    except fc.FuncconvError as error:
        said, found = str(error), None
    assert found == graph or (found is None and "\n" not in said and len(said) < 1000)
    return found is not None


def places(data, path=()):
    """Return the paths of all values."""
    paths = [path] if path else []
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        paths += places(value, (*path, key))
    return paths


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("declare", GRAPHS)
def test_flipped_bits_and_cuts(declare, count, rng):
    graph = declare()
    for indent in (None, 1):
        text = graph.to_json(indent=indent).encode()
        assert check(text, graph)
        for bit, changed in flipped_bits(text, rng, count):
            white = text[bit // 8 : bit // 8 + 1].isspace()  # a space may become another one
            assert not check(changed, graph) or white, (bit, changed[max(bit // 8 - 20, 0) : bit // 8 + 20])
        for _, cut in cuts(text, rng, count):
            assert not check(cut, graph)


@pytest.mark.once
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("declare", GRAPHS)
def test_values_of_other_types_and_missing_entries(declare, hashed, count, rng):
    """Without its hash, a text may describe another graph; nothing but `FuncconvError` is raised."""
    graph = declare()
    data = json.loads(graph.to_json())
    if not hashed:
        del data["hash"]
    paths = places(data)
    draw = random.Random(int(rng.integers(1 << 30)))
    for _ in range(count):
        changed = json.loads(json.dumps(data))
        *above, last = draw.choice(paths)
        inside = changed
        for key in above:
            inside = inside[key]
        if draw.random() < 0.2:
            del inside[last]
        else:
            inside[last] = draw.choice(VALUES)
        text = json.dumps(changed)
        if hashed:
            check(text, graph)
            continue
        try:
            restored = fc.Graph.from_json(text)
        except fc.FuncconvError:
            continue
        assert repr(restored)
        assert fc.Graph.from_json(restored.to_json()) == restored


def without_hash(graph, **changes):
    data = json.loads(graph.to_json())
    del data["hash"]
    return json.dumps(data | changes)


def test_a_text_without_a_hash_is_read_as_before():
    for declare in GRAPHS:
        assert fc.Graph.from_json(without_hash(declare())) == declare()


def test_another_architecture_is_refused_by_its_hash():
    x = fc.Input("x", (8, 8, 4))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu)(x))
    text = graph.to_json()
    for old, new in (('"out_channels": 4', '"out_channels": 5'), ("jax.nn.relu", "jax.nn.selu"), ("conv1", "conv7")):
        assert text.count(old)
        with pytest.raises(fc.FuncconvError, match=r"not what was written.*remove that entry"):
            fc.Graph.from_json(text.replace(old, new))


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('{"format"', '{"name": "x", "format"', 1), "the entry 'name' twice"),
        (lambda text: text.replace('"stride": 2', '"stride": 2, "stride": 1', 1), "the entry 'stride' twice"),
        (lambda text: text.replace('"stride": 2', '"stride": 1e999', 1), "1e999, which is too large"),
        (lambda text: text.replace('"stride": 2', '"stride": -Infinity', 1), "the number -Infinity"),
        (lambda text: text.replace('"stride": 2', '"stride": ' + "9" * 5000, 1), "it is not JSON"),
        (lambda text: text.replace('"stride": 2', '"stride": ' + "[" * 60_000, 1), "it is not JSON"),
        (lambda text: text.replace('"stride": 2', '"stride": ' + "[" * 500 + "]" * 500, 1), "more than 64 deep"),
        (lambda text: text.replace('"shape": [8, 8, 4]', '"shape": "884"', 1), "a list was expected"),
        (lambda text: text.replace('"dtype": null', '"dtype": "(9999999999,)f8"', 1), "a dtype must be a name"),
        (lambda text: text.replace('"dtype": null', '"dtype": "f8,f8"', 1), "a dtype must be a name"),
        (lambda text: text.replace('"name": "x"', '"name": "\\ud800"', 1), "names must be texts"),
        (lambda text: text.replace('"version": 1', '"version": 1.5', 1), "its version must be 1; got 1.5"),
        (lambda text: text.replace('"version": 1', '"version": [' + "1," * 999 + "1]", 1), "its version must be"),
        (lambda text: text.replace('"hash": "', '"hash": "0', 1), "not what was written"),
        (lambda text: text.replace('"hash"', '"hsah"', 1), "unknown entries"),
        (lambda text: text.encode("utf-16")[:-1], "it is not JSON"),
        (lambda text: text.encode() + b"\xff", "it is not JSON"),
        (lambda _: None, "it is not JSON"),
        (lambda _: 7, "it is not JSON"),
    ],
)
def test_hostile_texts(change, said):
    x = fc.Input("x", (8, 8, 4))
    text = fc.Graph(x, fc.Conv(4, 3, stride=2)(x)).to_json()
    changed = change(text)
    assert changed != text
    with pytest.raises(fc.FuncconvError, match=said) as error:
        fc.Graph.from_json(changed)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_huge_numbers_are_read_and_described():
    x = fc.Input("x", (10**6, 10**6, 3))
    graph = fc.Graph(x, fc.serial(fc.Conv(10**12, 3), jnp.tanh)(x))
    restored = fc.Graph.from_json(graph.to_json())
    assert restored == graph
    assert fc.summary(restored).parameters == 28 * 10**12
