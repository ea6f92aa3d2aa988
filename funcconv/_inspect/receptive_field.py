"""Receptive fields: which pixels of an input each position of a node sees."""

from collections.abc import Sequence

from .._common.errors import FuncconvError, suggest
from .._common.types import Params
from .._graph.use.network import Network
from .follow import FieldsOfGraph, ReceptiveField


def receptive_field(
    graph: Network, of: str | None = None, wrt: str | Sequence[str] | None = None, *, params: Params | None = None
) -> dict[str, tuple[ReceptiveField, ...]]:
    """Return which pixels of the inputs the positions of a node see.

    Convolutions and pools are known by their geometry, every other operation by its program: so your own
    function counts like a layer. A function whose program has operations that are not known to be local sees
    everything.

    Where branches merge, a position sees what any of them shows it.

    Args:
        graph: a `Graph`.
        of: the name of a node. Default: None, the output; there must be one.
        wrt: the name of an input, or several. Default: None, all inputs.
        params: the parameters or their shapes, needed only where nothing draws them. Default: None.

    Returns:
        For each input that the node sees, one `ReceptiveField` for each spatial axis: all axes but that of the
        channels, which is the last, unless a convolution that takes the input has a `layout`. An axis that is seen as
        a whole, as behind a dense layer, has `whole=True`.

    Raises:
        FuncconvError: if there is no such node or input, or there are several outputs and no `of`.

    Source:
        Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.

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
            msg = f"receptive_field: the graph has several outputs, {', '.join(graph.outputs)}; say which by of="
            raise FuncconvError(msg)
        of = graph.outputs[0]
    if of not in graph.nodes:
        msg = f"receptive_field: the graph has no node {of!r}{suggest(of, graph.nodes)}"
        raise FuncconvError(msg)
    return graph.nodes.index(of)
