"""Drawings have every node and edge once, and survive every name."""

import re
import shutil
import subprocess
import sysconfig
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import pytest

import funcconv as fc
from funcconv._inspect import render as _render

pytestmark = pytest.mark.once

DRAWN = pytest.mark.skipif(
    not any(shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts")) for name in _render._PROGRAMS),
    reason="Graphviz is not installed: pip install '.[draw]'",
)
STRANGE = ['say "hi"', "two\nlines", "<b>", "a&lt;b", "日本語", "back\\slash\\n", "{x|y}", "#35;", "`code`", "é"]


def pair():
    left, right = fc.Input("left", (12, 12, 1)), fc.Input("right", (12, 12, 1))
    layers = fc.serial(fc.Conv(4, 3), jnp.tanh, fc.flatten, fc.Dense(3))
    trunk = fc.Graph(left, layers(left), name="trunk")
    return fc.Graph((left, right), abs(trunk(left) - trunk(right)))


def strange():
    nodes = [fc.Input(STRANGE[0], (4,))]
    for name in STRANGE[1:]:
        nodes.append(fc.node(jnp.tanh, nodes[-1], name=name))
    return fc.Graph(nodes[0], nodes[-1])


def edges(graph):
    first = len(graph.inputs)
    return [(i, number) for number, row in enumerate(graph.rows, start=first) for i in row.inputs]


@pytest.mark.parametrize("make", [pair, strange])
def test_dot_and_mermaid_have_every_node_and_edge_once(make):
    graph = make()
    for text, node, edge in (
        (fc.to_dot(graph), r"^ +n(\d+) \[", r"^ +n(\d+) -> n(\d+)"),
        (fc.to_mermaid(graph), r"^ +n(\d+)[(\[]", r"^ +n(\d+) --> n(\d+)"),
    ):
        assert sorted(map(int, re.findall(node, text, re.M))) == list(range(len(graph.nodes)))
        assert [tuple(map(int, pair)) for pair in re.findall(edge, text, re.M)] == edges(graph)


def test_one_colour_for_each_shared_weight():
    lines = fc.to_dot(pair()).splitlines()
    fills = {}
    for line in lines:
        found = re.search(r'label="(conv1|dense1|tanh1)\\n.*fillcolor="(#\w+)"', line)
        if found:
            fills.setdefault(found[1], set()).add(found[2])
    assert all(len(colours) == 1 for colours in fills.values())
    assert len(set.union(*fills.values())) == 3
    assert sum("weights of trunk/" in line for line in lines) == 2


def test_groups_are_nested():
    x = fc.Input("x", (8,))
    inner = fc.Graph(x, fc.Dense(8)(x), name="inner")
    outer = fc.Graph(x, inner(inner(x)), name="outer")
    text = fc.to_dot(fc.Graph(x, outer(x)))
    assert re.findall(r'label="(outer|inner|inner@2)"', text) == ["outer", "inner", "inner@2"]
    assert text.count("{") == text.count("}") == 4


def test_text():
    graph = pair()
    assert (
        fc.to_text(graph)
        == """\
*    left              (12, 12, 1)
| *  right             (12, 12, 1)
* |  trunk/conv1       Conv(4, 3)  (10, 10, 4)  40 parameters
* |  trunk/tanh1       (10, 10, 4)
* |  trunk/flatten1    (400,)
* |  trunk/dense1      Dense(3)  (3,)  1,203 parameters
| *  trunk@2/conv1     Conv(4, 3)  (10, 10, 4)  weights of trunk/conv1
| *  trunk@2/tanh1     (10, 10, 4)
| *  trunk@2/flatten1  (400,)
| *  trunk@2/dense1    Dense(3)  (3,)  weights of trunk/dense1
+-'
*    sub1              (3,)
*    abs1              (3,)"""
    )


def test_text_of_crossing_lanes():
    a, b, c = (fc.Input(name, ()) for name in "abc")
    drawing = """\
*      a     ()
| *    b     ()
| | *  c     ()
+-|-+
| | *  add1  ()
+-' |
*   |  sub1  ()
+---'
*      mul1  ()"""
    assert fc.to_text(fc.Graph((a, b, c), (a + c) * (b - a))) == drawing


@DRAWN
@pytest.mark.parametrize("make", [pair, strange])
@pytest.mark.parametrize("direction", ["TB", "LR"])
def test_rendered(make, direction, tmp_path):
    graph = make()
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("dot", b"digraph")):
        path = tmp_path / f"net.{ending}"
        fc.draw(graph, path, direction=direction)
        assert path.read_bytes().startswith(start)
    svg = ET.fromstring((tmp_path / "net.svg").read_bytes())
    space = "{http://www.w3.org/2000/svg}"
    kinds = [each.get("class") for each in svg.iter(f"{space}g")]
    assert kinds.count("node") == len(graph.nodes)
    assert kinds.count("edge") == len(edges(graph))
    words = " ".join("".join(each.itertext()) for each in svg.iter(f"{space}text"))
    for name in graph.nodes:
        for line in name.split("/")[-1].split("\n"):
            assert line in words.replace("\xa0", " ")
    assert graph._repr_svg_().startswith("<?xml")


@DRAWN
def test_a_thousand_nodes(tmp_path):
    x = node = fc.Input("x", (4, 4, 2))
    for _ in range(333):
        node = fc.residual(fc.serial(fc.Conv(2, 3, padding=1), jnp.tanh))(node)
    fc.draw(fc.Graph(x, node), tmp_path / "deep.svg")
    assert (tmp_path / "deep.svg").read_text().count('class="node"') == 1000


def test_parameters_that_nothing_draws_need_no_shapes():
    x = fc.Input("x", (2,))
    graph = fc.Graph(x, fc.node(jnp.dot, x, params="w", name="y"))
    assert 'label="y\\ndot"' in fc.to_dot(graph)
    assert "4 parameters" in fc.to_dot(graph, params={"w": jnp.eye(2)})
    with pytest.raises(fc.FuncconvError):
        fc.to_dot(graph, params={"v": jnp.eye(2)})


def test_refusals(tmp_path, monkeypatch):
    graph = pair()
    with pytest.raises(fc.FuncconvError, match=r"ends in \.svg, \.png, \.pdf, \.dot; got 'net\.gif'"):
        fc.draw(graph, "net.gif")
    x = fc.Input("x", (2, 2, 1))
    with pytest.raises(fc.FuncconvError, match="node 'conv1': conv: a window of 3 does not fit"):
        fc.to_dot(fc.Graph(x, fc.Conv(1, 3)(x)))
    with pytest.raises(fc.FuncconvError, match="direction must be one of TB, LR, BT, RL; got 'down'"):
        fc.to_mermaid(graph, direction="down")
    monkeypatch.setattr(_render.shutil, "which", lambda *_, **__: None)
    with pytest.raises(fc.FuncconvError, match=r"pip install '.\[draw\]'"):
        fc.draw(graph, tmp_path / "net.svg")
    assert graph._repr_svg_() is None


# programs --------------------------------------------------------------------------------------------------


def boxes(drawing):
    found = re.findall(r'^ +n(\d+) \[label="(.*?)", fill', drawing.dot, re.M)
    return [re.match(r"(.*?)(\\n|$)", label)[1] for _, label in sorted(found, key=lambda pair: int(pair[0]))]


def arrows(drawing, dashed=None):
    lines = re.findall(r"^  n(\d+) -> n(\d+)(.*)$", drawing.dot, re.M)
    names = boxes(drawing)
    return [(names[int(a)], names[int(b)]) for a, b, rest in lines if dashed is None or ("dashed" in rest) == dashed]


def test_the_norm():
    drawing = fc.draw_autodiff(lambda x: jnp.sqrt((x * x).sum()), jnp.ones(3))
    assert boxes(drawing) == ["x", "mul", "reduce_sum", "sqrt", "output"]
    assert arrows(drawing) == [
        ("x", "mul"),
        ("x", "mul"),
        ("mul", "reduce_sum"),
        ("reduce_sum", "sqrt"),
        ("sqrt", "output"),
    ]


def two_layers(params, x):
    return jnp.tanh(jnp.tanh(x @ params["layer1"]) @ params["layer2"]).sum()


def test_parameters_are_named_and_residuals_dashed():
    params = {"layer1": jnp.ones((3, 4)), "layer2": jnp.ones((4, 2))}
    forward = fc.draw_autodiff(two_layers, params, jnp.ones(3))
    assert boxes(forward)[:3] == ["params/layer1", "params/layer2", "x"]
    assert not arrows(forward, dashed=True)
    gradient = fc.draw_autodiff(jax.grad(two_layers), params, jnp.ones(3))
    assert boxes(gradient)[-2:] == ["output/layer1", "output/layer2"]
    assert ("tanh", "dot_general") in arrows(gradient, dashed=True)


def test_a_product_with_the_hessian():
    def product(w, v):
        return jax.jvp(jax.grad(lambda w: jnp.tanh(w * w).sum()), (w,), (v,))[1]

    drawing = fc.draw_autodiff(product, jnp.ones(3), jnp.ones(3))
    assert {"w", "v"} <= set(boxes(drawing))
    assert arrows(drawing, dashed=True)


def test_a_loop_with_shared_weights():
    def loop(w, x):
        for i in range(4):
            x = jnp.tanh(w[i % 2] * x)
        return x

    drawing = fc.draw_autodiff(loop, [jnp.ones(()), jnp.ones(())], jnp.ones(()))
    assert boxes(drawing).count("w/0") == boxes(drawing).count("w/1") == 1
    assert arrows(drawing).count(("w/0", "mul")) == arrows(drawing).count(("w/1", "mul")) == 2


def test_calls_are_opened_or_folded():
    @jax.jit
    def called(x):
        return jnp.sin(x) * jnp.cos(x)

    def f(x):
        return called(x) + 1.0

    opened, folded = fc.draw_autodiff(f, 1.0), fc.draw_autodiff(f, 1.0, opened=False)
    assert boxes(opened) == ["x", "sin", "cos", "mul", "add 1", "output"]
    assert 'label="called (1)"' in opened.dot
    assert boxes(folded) == ["x", "called(...)", "add 1", "output"]


def test_a_convolution_is_one_box_in_every_derivative():
    params = fc.init_conv(jax.random.key(0), 1, 2, (3, 3))
    drawing = fc.draw_autodiff(jax.grad(lambda p, x: fc.conv(p, x).sum()), params, jnp.ones((1, 8, 8, 1)))
    assert boxes(drawing).count("conv_kernel_grad") == 1


def test_what_no_output_needs_is_left_out():
    def f(x, unused):
        jnp.sin(unused)
        return x, 2.0

    drawing = fc.draw_autodiff(f, 1.0, 3.0)
    assert boxes(drawing) == ["x", "output/0", "output/1"]


def test_too_large_a_program():
    def deep(x):
        for _ in range(600):
            x = jnp.sin(x)
        return x

    with pytest.raises(fc.FuncconvError, match="more than limit=500 operations"):
        fc.draw_autodiff(deep, 1.0)
    assert boxes(fc.draw_autodiff(deep, 1.0, limit=700)).count("sin") == 600


@DRAWN
def test_programs_are_rendered(tmp_path):
    fc.draw_autodiff(jax.grad(jnp.tanh), 1.0, path=tmp_path / "d.svg")
    ET.fromstring((tmp_path / "d.svg").read_bytes())
    program = _render._program()
    assert subprocess.run([program, "-V"], capture_output=True, check=False).returncode == 0
