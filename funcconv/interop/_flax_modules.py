"""Graphs as Flax modules, and Flax modules as nodes of a graph."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.types import Array, Params, Shape
from .._graph.declare.function import Function
from .._graph.use.graph import Graph


@cache
def _linen_graph() -> Any:
    """Return the class of Linen modules that compute a graph. It is created on first use: Flax is optional."""
    with needs("flax", "a module of Flax"):
        from flax import linen

    class LinenGraph(linen.Module):
        """A graph as a module: `variables["params"]` is the graph's own tree, `"batch_stats"` its state."""

        graph: Graph

        @linen.compact
        def __call__(self, *xs: Any, train: bool = False) -> Any:
            """Evaluate the graph. In training, dropout uses the key `"dropout"`, and statistics are updated."""
            # Outside of `init` the parameters are given, and the key is not used.
            key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)
            names = dict.fromkeys(entry.partition("/")[0] for entry in self.graph.entries)
            params = {name: self.param(name, lambda _, name=name: self.graph.init(key)[name]) for name in names}
            first = self.graph.init_state()
            statistics = {name: self.variable("batch_stats", name, lambda name=name: first[name]) for name in first}
            drawing = self.make_rng("dropout") if train and self.has_rng("dropout") else None
            state = {name: variable.value for name, variable in statistics.items()}
            y, new_state = self.graph.apply(params, state, *xs, key=drawing, train=train)
            # `init` must return the statistics with which training begins.
            if train and not self.is_initializing():
                for name, variable in statistics.items():
                    variable.value = new_state[name]
            return y

    return LinenGraph


@cache
def _nnx_graph() -> Any:
    """Return the class of NNX modules that compute a graph. It is created on first use: Flax is optional."""
    with needs("flax", "a module of Flax"):
        from flax import nnx

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    class NnxGraph(nnx.Module):
        """A graph as a module, with an `nnx.Param` for each array of its parameters."""

        def __init__(self, graph: Graph, *, rngs: Any) -> None:
            self.graph = graph
            self.rngs = rngs
            self.params = nnx.data(jax.tree.map(nnx.Param, graph.init(rngs.params())))
            self.batch_stats = nnx.data(jax.tree.map(nnx.BatchStat, graph.init_state()))

        def __call__(self, *xs: Any, train: bool = False) -> Any:
            """Evaluate the graph. In training, dropout uses the stream `dropout`, and statistics are updated."""
            params, state = (
                jax.tree.map(lambda variable: variable[...], tree, is_leaf=is_variable)
                for tree in (self.params, self.batch_stats)
            )
            # A key is taken only if a node draws, so that a graph without dropout needs no such stream.
            draws = any(row.op.random for row in self.graph.rows)
            key = self.rngs.dropout() if train and draws else None
            y, new_state = self.graph.apply(params, state, *xs, key=key, train=train)
            if train:
                variables = jax.tree.leaves(self.batch_stats, is_leaf=is_variable)
                for variable, value in zip(variables, jax.tree.leaves(new_state), strict=True):
                    variable[...] = value
            return y

    return NnxGraph


def to_linen(graph: Graph) -> Any:
    """Convert a graph to a Flax Linen module.

    Args:
        graph: the graph. Its parameters are `variables["params"]`, in the same tree, and its state is
            `variables["batch_stats"]`.

    Returns:
        A module, called with the inputs and `train=True` or `False` (the default). In training, dropout draws with the
        key `"dropout"`.

    Raises:
        FuncconvError: if Flax is not installed.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> module = fc.interop.to_linen(fc.Graph(x, fc.Conv(4, 3)(x)))
        >>> variables = module.init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> module.apply(variables, jnp.ones((2, 8, 8, 1))).shape
        (2, 6, 6, 4)
    """
    return _linen_graph()(graph)


def to_nnx(graph: Graph, *, rngs: Any) -> Any:
    """Convert a graph to a Flax NNX module.

    Args:
        graph: the graph. Its parameters are `module.params`, in the same tree, and its state is `module.batch_stats`.
        rngs: random keys, such as `nnx.Rngs(0)`. The stream `params` draws the parameters; the stream `dropout` draws
            in training.

    Returns:
        A module, called with the inputs and `train=True` or `False` (the default).

    Raises:
        FuncconvError: if Flax is not installed, or if the parameters cannot be drawn, for example because an op does
            not accept its inputs.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> from flax import nnx
        >>> x = fc.Input("x", (8, 8, 1))
        >>> module = fc.interop.to_nnx(fc.Graph(x, fc.Conv(4, 3)(x)), rngs=nnx.Rngs(0))
        >>> module(jnp.ones((2, 8, 8, 1))).shape
        (2, 6, 6, 4)
    """
    return _nnx_graph()(graph, rngs=rngs)


def from_flax_module(module: Any, *, name: str | None = None) -> Function:
    """Use a Flax Linen module as a layer of a graph.

    Args:
        module: a Linen module, which is called with arrays that have one batch axis. It must have no variables except
            parameters.
        name: the name of the node and of its entry in the parameters. Default: the name of the module's class.

    Returns:
        A layer, which you call on nodes. Modules are compared by value, as in Linen.

    Raises:
        FuncconvError: if Flax is not installed, or `module` is not a Linen module. Errors of the module itself are
            raised by `graph.init`.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.interop.from_flax_module(nn.Conv(4, (3, 3)), name="theirs")(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((2, 8, 8, 1))).shape
        (2, 8, 8, 4)
    """
    with needs("flax", "a module of Flax"):
        from flax import linen
    if not isinstance(module, linen.Module):
        msg = f"from_flax_module: module must be a flax.linen.Module; got {type(module).__name__}"
        raise FuncconvError(msg)
    return Function(_Apply(module), init=_Init(module), batched=True, name=name)


@dataclass(frozen=True)
class _Apply:
    module: Any

    @property
    def __name__(self) -> str:
        return type(self.module).__name__

    def __call__(self, params: Params, *xs: Array) -> Any:
        return self.module.apply({"params": params}, *xs)


@dataclass(frozen=True)
class _Init:
    module: Any

    def __call__(self, key: Array, *shapes: Shape) -> Any:
        variables = self.module.init(key, *(jnp.zeros((1, *shape)) for shape in shapes))
        if more := set(variables) - {"params"}:
            others = ", ".join(sorted(more))
            msg = f"a Linen module in a graph can have only parameters; {type(self.module).__name__} also has {others}"
            raise FuncconvError(msg)
        return variables.get("params", {})
