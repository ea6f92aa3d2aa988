"""Networks drawn: by Graphviz, as Mermaid, and as text."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax

from .._common.types import Params
from .._graph.use import notebook
from .._graph.use.network import Network
from . import picture as _picture
from .picture import MARKED, PLAIN, TINTS, Arrow, Box, Picture
from .render import Drawing


def draw(
    graph: Network, path: str | Path | None = None, *, direction: str = "TB", params: Params | None = None
) -> Drawing:
    r"""Draw a network: its nodes with their operations, shapes and parameters.

    Nodes that share weights have the same colour, and each nested graph with a name has a frame. Inputs are round, and
    outputs have a double border. A picture needs the program `dot` of Graphviz, or its port, which
    `pip install '.[draw]'` installs. With the port, a PDF contains a bitmap.

    Args:
        graph: a `Graph`.
        path: path of the file to write, which ends in `.svg`, `.png`, `.pdf` or `.dot`. Default: None, no file.
        direction: direction of the arrows: `"TB"` from top to bottom, `"LR"` from left to right, `"BT"` or `"RL"`.
            Default: `"TB"`.
        params: the parameters or their shapes. Needed only to show shapes if a node has parameters that nothing draws.
            Default: None, the shapes that `graph.init` draws.

    Returns:
        A `Drawing`. A notebook shows it as a picture. `.dot` is its text in the DOT language, and `.save(path)` writes
        a file.

    Raises:
        FuncconvError: if the direction or the ending of the path is unknown, if an op does not accept its inputs, or if
            the file is a picture and no program can draw it.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("x", (8, 8, 1))
        >>> fc.draw(fc.Graph(x, fc.Conv(4, 3)(x))).dot.splitlines()[4]
        '  n0 [label="x\\n(8, 8, 1)", fillcolor="#dcdcdc", style="filled,rounded"]'
    """
    drawing = Drawing(to_dot(graph, direction=direction, params=params))
    if path is not None:
        drawing.save(path)
    return drawing


def to_dot(graph: Network, *, direction: str = "TB", params: Params | None = None) -> str:
    """Return a network in the DOT language of Graphviz, which `fc.draw` renders.

    Args:
        graph: a `Graph`.
        direction: direction of the arrows: `"TB"` from top to bottom, `"LR"` from left to right, `"BT"` or `"RL"`.
            Default: `"TB"`.
        params: the parameters or their shapes. Needed only to show shapes if a node has parameters that nothing draws.
            Default: None, the shapes that `graph.init` draws.

    Returns:
        The text, which ends with a newline.

    Raises:
        FuncconvError: if the direction is unknown, or an op does not accept its inputs.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("x", (8, 8, 1))
        >>> fc.to_dot(fc.Graph(x, abs(x))).splitlines()[-2]
        '  n0 -> n1'
    """
    return _picture.dot(_boxes(graph, params), direction=direction)


def to_mermaid(graph: Network, *, direction: str = "TB", params: Params | None = None) -> str:
    """Return a network as a Mermaid diagram, which GitHub and many editors render.

    Args:
        graph: a `Graph`.
        direction: direction of the arrows: `"TB"` from top to bottom, `"LR"` from left to right, `"BT"` or `"RL"`.
            Default: `"TB"`.
        params: the parameters or their shapes. Needed only to show shapes if a node has parameters that nothing draws.
            Default: None, the shapes that `graph.init` draws.

    Returns:
        The text, which ends with a newline.

    Raises:
        FuncconvError: if the direction is unknown, or an op does not accept its inputs.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("x", (8, 8, 1))
        >>> print(fc.to_mermaid(fc.Graph(x, abs(x))).splitlines()[1])
          n0(["x<br/>(8, 8, 1)"])
    """
    return _picture.mermaid(_boxes(graph, params), direction=direction)


def to_text(graph: Network, *, params: Params | None = None) -> str:
    r"""Draw a network in plain characters, for a terminal.

    Each node is a line with a star, and vertical lines lead from a node to the nodes that use its value.

    Args:
        graph: a `Graph`.
        params: the parameters or their shapes. Needed only to show shapes if a node has parameters that nothing draws.
            Default: None, the shapes that `graph.init` draws.

    Returns:
        The drawing, without a newline at the end.

    Raises:
        FuncconvError: if an op does not accept its inputs.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("x", (8, 8, 2))
        >>> print(fc.to_text(fc.Graph(x, fc.residual(fc.Conv(2, 3, padding=1))(x))))
        *    x      (8, 8, 2)
        +-.
        | *  conv1  Conv(2, 3, padding=1)  (8, 8, 2)  38 parameters
        +-'
        *    add1   (8, 8, 2)
    """
    texts = _texts(graph, params)
    last = {i: number for number, row in enumerate(graph.rows, start=len(graph.inputs)) for i in row.inputs}
    # A lane is a column of the drawing; it carries a value from its node to its last use.
    lanes: list[int | None] = []
    lines: list[tuple[str, int | None]] = []
    first = len(graph.inputs)
    for number in range(len(graph.nodes)):
        inputs = () if number < first else graph.rows[number - first].inputs
        at = sorted({lanes.index(i) for i in inputs})
        ending = [lane for lane in at if last[lanes[lane]] == number]  # type: ignore[index]
        free = [lane for lane, value in enumerate(lanes) if value is None]
        # A node takes over the lane of an input that ends here, so that a chain stays in one column.
        own = ending[0] if ending else free[0] if free else len(lanes)
        if own == len(lanes):
            lanes.append(None)
        if any(lane != own for lane in at):
            lines.append((_connected(lanes, at, ending, own), None))
        for lane in ending:
            lanes[lane] = None
        lanes[own] = number
        lines.append((" ".join("*" if i == own else " " if v is None else "|" for i, v in enumerate(lanes)), number))
        if number not in last:
            lanes[own] = None
    width = max(len(drawn.rstrip()) for drawn, _ in lines)
    names = max(len(texts[number][0]) for number in range(len(texts)))
    return "\n".join(
        drawn.rstrip()
        if number is None
        else "  ".join([drawn.rstrip().ljust(width), texts[number][0].ljust(names), *texts[number][1:]]).rstrip()
        for drawn, number in lines
    )


def _connected(lanes: Sequence[int | None], at: Sequence[int], ending: Sequence[int], own: int) -> str:
    """Return the line that leads the lanes of a node's inputs to its own."""
    left, right = min(*at, own), max(*at, own)
    cells = []
    for lane, value in enumerate(lanes):
        if lane in at:
            cell = "'" if lane in ending and lane != own else "+"
        elif lane == own:
            cell = "."
        else:
            cell = "|" if value is not None else "-" if left < lane < right else " "
        cells.append(cell + ("-" if left <= lane < right else " "))
    return "".join(cells)


def _boxes(graph: Network, params: Params | None) -> Picture:
    """Return a box for each node, and an arrow for each use of a value."""
    first, outputs = len(graph.inputs), set(graph.outputs)
    uses = Counter(row.params for row in graph.rows if row.params)
    tints = {name: TINTS[i % len(TINTS)] for i, name in enumerate(name for name in uses if uses[name] > 1)}
    boxes, arrows = [], []
    for number, (name, *texts) in enumerate(_texts(graph, params)):
        row = graph.rows[number - first] if number >= first else None
        *group, short = name.split("/")
        entry = row.params if row else None
        boxes.append(
            Box(
                (short, *(line for text in texts for line in textwrap.wrap(text, 40) or [""])),
                tints.get(entry or "", PLAIN if row else MARKED),
                tuple(group),
                row is None,
                name in outputs,
            )
        )
        arrows += [Arrow(i, number) for i in (row.inputs if row else ())]
    return Picture(boxes, arrows)


def _texts(graph: Network, params: Params | None) -> list[list[str]]:
    """Return of each node the name, the operation where the name does not say it, the shape and the parameters."""
    first_rows = {row.params: row for row in reversed(graph.rows) if row.params}
    if params is None and not all(row.op.draws for row in first_rows.values()):
        shapes, entries = {}, [None] * len(graph.rows)  # nothing draws some parameters, so shapes are not known
    else:
        shapes, entries = graph.shapes(params), graph.entry_shapes(params)
    texts = []
    for name, row, entry in zip(
        graph.nodes, [None] * len(graph.inputs) + list(graph.rows), [None] * len(graph.inputs) + entries, strict=True
    ):
        # `relu1` says which operation it is. `conv1` does not say its options.
        operation = [row.operation] if row and re.sub(r"\d*(@\d+)?$", "", name.split("/")[-1]) != row.operation else []
        copies = [f"\N{MULTIPLICATION SIGN} {row.op.copies}"] if row and row.op.copies else []
        shape = [", ".join(str(leaf.shape) for leaf in jax.tree.leaves(shapes[name]))] if shapes else []
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(entry))
        first = first_rows[row.params].name if row and row.params else name
        weights = [f"weights of {first}"] if first != name else [f"{count:,} parameters"] if count else []
        texts.append([name, *operation, *copies, *shape, *weights])
    return texts


notebook.register(lambda graph: draw(graph)._repr_svg_())
