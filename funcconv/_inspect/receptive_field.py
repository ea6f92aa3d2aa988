"""Receptive fields: which pixels of an input each position of a node sees."""

from collections.abc import Sequence

from .._common.errors import FuncconvError, suggest
from .._common.types import Params
from .._graph.use.network import Network
from .follow import FieldsOfGraph, ReceptiveField


def receptive_field(
    graph: Network, of: str | None = None, wrt: str | Sequence[str] | None = None, *, params: Params | None = None
) -> dict[str, tuple[ReceptiveField, ...]]:
    """Compute the receptive field of a node: the pixels of the inputs on which each of its positions depends.

    The receptive fields of convolutions and pools follow from their windows. For every other operation, your own
    functions included, the traced program is analysed. A program with an operation that is not known to be local
    depends on the whole input. If branches merge, the receptive field is that of all branches together.

    Args:
        graph: a `Graph`.
        of: name of a node. Default: None, the output of a graph with one output.
        wrt: name of an input, or a tuple of names. Default: None, all inputs.
        params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default: None,
            the shapes that `graph.init` draws.

    Returns:
        A dict: for each input on which the node depends, a tuple with one `ReceptiveField` per spatial axis. Spatial
        axes are all axes except the channels, the last axis unless a convolution of the input has a `layout`. A
        `ReceptiveField` has these attributes:

        - `size`: the number of pixels from the first to the last that a position depends on, as if the image had no
          border;
        - `stride`: the pixels between the receptive fields of neighbouring positions (the "jump"), a fraction after
          transposed convolutions, and 0 if all positions have the same receptive field;
        - `offset`: the centre of the receptive field of position 0, in pixels; the centre of pixel 0 is 0;
        - `padding`: the number of pixels by which the receptive fields extend beyond the image, `(before, after)`;
        - `whole`: whether every position depends on the whole axis, as after a dense layer;
        - `interval(position)`: the first and the last pixel for one position, inside the image, or None if the position
          depends on padding only. The borders of the layers in between count only on axes of at most 32,768 positions.

    Raises:
        FuncconvError: if there is no such node or input, or there are several outputs and `of` is None.

    Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (32, 32, 3))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(8, 3, stride=2, padding=1), jax.nn.relu, fc.Conv(8, 3))(x))
        >>> height, width = fc.receptive_field(graph)["x"]
        >>> height.size, height.stride, height.offset, height.padding, height.interval(0)
        (7, 2, 2.0, (1, 0), (0, 5))
    """
    number = _number(graph, of)
    names = graph.inputs if wrt is None else (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in names:
        if name not in graph.inputs:
            msg = f"receptive_field: the graph has no input {name!r}{suggest(name, graph.inputs)}"
            raise FuncconvError(msg)
    shapes = graph.shapes(params)
    return FieldsOfGraph(graph, shapes, params)(graph.nodes[number], names)


def _number(graph: Network, of: str | None) -> int:
    if of is None:
        if len(set(graph.outputs)) != 1:
            msg = f"receptive_field: the graph has several outputs, {', '.join(graph.outputs)}. Pass one of them as of="
            raise FuncconvError(msg)
        of = graph.outputs[0]
    if of not in graph.nodes:
        msg = f"receptive_field: the graph has no node {of!r}{suggest(of, graph.nodes)}"
        raise FuncconvError(msg)
    return graph.nodes.index(of)
