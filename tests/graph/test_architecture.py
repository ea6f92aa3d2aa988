"""Graphs as JSON: what is read is what was written, and files from elsewhere can do no harm."""

import json
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import arithmetic, everything, nested, over
from jax.nn import initializers

import funcconv as fc
from funcconv._graph.to_file.registry import named

KEY = jax.random.key(0)


@pytest.mark.parametrize("declare", [everything, arithmetic, nested])
def test_what_is_read_is_what_was_written(declare):
    graph = declare()
    found = fc.Graph.from_json(graph.to_json(indent=1))
    assert found == graph
    assert hash(found) == hash(graph)
    assert repr(found.rows) == repr(graph.rows)
    assert repr(found) == repr(graph)
    assert found.content_hash == graph.content_hash == declare().content_hash
    given = {"w": jnp.ones((3, 3), jnp.float32)} if declare is arithmetic else {}
    params, expected = found.init(KEY, **given), graph.init(KEY, **given)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert jax.tree.map(jnp.shape, found.init_state()) == jax.tree.map(jnp.shape, graph.init_state())


def test_parts_and_further_declarations_are_the_same():
    graph, found = nested(), fc.Graph.from_json(nested().to_json())
    assert found.subgraph("trunk") == graph.subgraph("trunk")
    a, b = fc.Input("a", (8, 8, 4)), fc.Input("b", (8, 8, 4))
    assert fc.Graph((a, b), found(a, b)).nodes == fc.Graph((a, b), graph(a, b)).nodes


def test_hashes_differ_where_graphs_do():
    hashes = {
        graph.content_hash
        for graph in (over(fc.Conv(4, 3)), over(fc.Conv(4, 3, padding=1)), over(fc.Conv(4, 3), (9, 8, 4)), nested())
    }
    assert len(hashes) == 4


def test_functions_without_a_name_are_refused_by_node():
    with pytest.raises(fc.FuncconvError, match=r"node 'function1': <function .*register_op gives"):
        over(lambda x: fc.node(lambda y: y, x, name="function1")).to_json()
    with pytest.raises(fc.FuncconvError, match=r"node 'conv1': .*register_op gives"):
        over(fc.Conv(4, 3, init=initializers.normal(0.1))).to_json()


def test_registered_functions_are_found():
    kernel_init = initializers.normal(0.1)
    fc.register_op("test.normal", kernel_init)
    fc.register_op("test.normal", kernel_init)  # again is nothing new
    graph = over(fc.Conv(4, 3, init=kernel_init))
    assert fc.Graph.from_json(graph.to_json()) == graph
    with pytest.raises(fc.FuncconvError, match=r"'test\.normal' is the name of"):
        fc.register_op("test.normal", jnp.tanh)


def test_names_that_come_with_the_library_are_those_of_functions():
    assert named("jax.nn.relu") is jax.nn.relu
    assert named("operator.add") is operator.add
    with pytest.raises(fc.FuncconvError, match=r"no function is registered as 'jax\.numpy\.save'"):
        named("jax.numpy.save")


# what comes from elsewhere ------------------------------------------------------------------------------------


def changed(**changes):
    """Return the JSON of a small graph with some entries changed; a callable changes what is there."""
    told = json.loads(over(fc.serial(fc.Conv(4, 3), jax.nn.relu)).to_json())
    for path, value in changes.items():
        *above, last = path.split("__")
        place = told
        for key in above:
            place = place[int(key) if key.isdigit() else key]
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(told)


def deep(n):
    inside = 0
    for _ in range(n):
        inside = {"tuple": [inside]}
    return inside


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        (b"\x80\x04\x95", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", 'its "format" must be "funcconv graph"; got a list'),
        ("NaN", "it has the number NaN"),
        (changed(version=2), "its version must be 1; got 2"),
        (changed(more=1), r"unknown entries \['more'\]"),
        (changed(nodes="x"), "a list was expected"),
        (changed(inputs=[]), "has the number 0"),
        (changed(nodes__0__inputs=[5]), "node 'conv1' has the number 5, which must be from 0 to 0"),
        (changed(nodes__0__inputs=[-1]), "has the number -1"),
        (changed(nodes__0__inputs=[0, 0]), "does not go with .* 2 inputs"),
        (changed(nodes__1__inputs=[True]), "has the number True"),
        (changed(nodes__0__params=None), "does not go with the parameters None"),
        (changed(nodes__1__params="conv1"), "does not go with the parameters 'conv1'"),
        (changed(nodes__0__name=["x"]), "names must be texts"),
        (changed(nodes__0__name="x"), "two are called 'x'"),
        (changed(nodes__0__op__layer="Cov"), "there is no layer 'Cov'; did you mean 'Conv'"),
        (changed(nodes__0__op__options={"chanels": 3}), r"Conv has no options \['chanels'\]"),
        (changed(nodes__0__op__options={"out_channels": 4}), "missing 1 required"),
        (changed(nodes__0__op__options={"out_channels": {"eval": "1"}, "window": 3}), "no value of the kind 'eval'"),
        (changed(nodes__1__op__options={"op": {"function": "os.system"}}), "no function is registered as 'os.system'"),
        (changed(nodes__1__op__options={"op": 3}), "from_json"),
        (changed(outputs=7), "the outputs has the number 7"),
        (changed(outputs={"set": [0]}), "unknown structure 'set'"),
        (changed(outputs={"tuple": []}), "at least one output; got none"),
        (changed(outputs=deep(200)), "outputs are nested more than 64 deep"),
        (changed(inputs__0__shape=[-1]), "all sizes must be at least 0"),
        (changed(inputs__0__shape=[1.5]), "must be a tuple of integers"),
        (changed(inputs__0__dtype="float33"), "from_json"),
        (changed(input_keys=["a", "b"]), "each of its 1 inputs; got 2"),
        (changed(nodes__0__place=[0, 0, "c", None]), "has the number 0"),
    ],
)
def test_bad_files_say_in_one_line_what_is_wrong(text, said):
    with pytest.raises(fc.FuncconvError, match=said) as error:
        fc.Graph.from_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_number_without_end_is_refused():
    text = over(fc.Pool(2)).to_json().replace('"shape": [8, 8, 4]', '"shape": [NaN, 8, 4]')
    with pytest.raises(fc.FuncconvError, match="number NaN"):
        fc.Graph.from_json(text)
