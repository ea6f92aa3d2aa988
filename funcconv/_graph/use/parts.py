"""Networks that can be cut into parts, and differentiated by each use of their parameters."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..._common.types import Array, Params
from ..._derivatives import Operator
from ..derive import copies as _copies
from . import surgery
from .network import Network

Same = TypeVar("Same", bound="NetworkWithParts")


class NetworkWithParts(Network):
    """A network with the methods that return parts of it, of its parameters and of its state."""

    def subgraph(self: Same, *names: str) -> Same:
        """Return a part as a graph of its own.

        Args:
            *names: a nested graph, or nodes: then the part that computes them, from those inputs that it needs.

        Returns:
            A graph; its outputs are one node or a tuple, as names were given. `part.select(params)` are its parameters.

        Raises:
            FuncconvError: if there is no such name.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (8, 8, 1))
            >>> trunk = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.flatten, fc.Dense(2))(x), name="trunk")
            >>> a, b = fc.Input("a", (8, 8, 1)), fc.Input("b", (8, 8, 1))
            >>> graph = fc.Graph((a, b), fc.siamese(trunk, fc.add)(a, b))
            >>> graph.subgraph("trunk") == trunk, graph.subgraph("trunk/conv1").nodes
            (True, ('a', 'trunk/conv1'))
        """
        return surgery.subgraph(self, names)

    def select(self, params: Params) -> dict[str, Any]:
        """Return those entries of a parameter tree that this graph needs.

        Args:
            params: the parameter tree of a larger graph. If this graph has a name, and the tree an entry of that name,
                the entries are taken from there.

        Returns:
            A tree of the same arrays.

        Raises:
            FuncconvError: if an entry is missing.
        """
        return surgery.selected(self, params, self._entries)

    def select_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return those entries of a state that this graph needs.

        Args:
            state: the state of a larger graph. If this graph has a name, and the state an entry of that name, the
                entries are taken from there.

        Returns:
            A tree of the same arrays.

        Raises:
            FuncconvError: if an entry is missing.
        """
        return surgery.selected(self, state, self._stateful)

    def unshared(self: Same) -> Same:
        """Return the graph in which every use of a parameter entry has an entry of its own, called as its node.

        With `graph.copies(params)` it computes the same. Derivatives by the copies are those by each use: their sum
        over the uses is the derivative by the shared entry.

        Returns:
            A graph with the same nodes.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x, c = fc.Input("x", (8, 8, 2)), fc.Conv(2, 3)
            >>> graph = fc.Graph(x, c(c(x)))
            >>> graph.entries, graph.unshared().entries
            (('conv1',), ('conv1', 'conv1@2'))
        """
        return surgery.unshared(self)

    def copies(self, params: Params) -> dict[str, Any]:
        """Return the parameters of `graph.unshared()`: each use has the entry that it shares.

        Args:
            params: the parameter tree of this graph.

        Returns:
            A tree with one entry for each node that has parameters, of the same arrays.

        Raises:
            FuncconvError: if the parameters are not those of the graph.
        """
        return _copies.copied_parameters(self, params)

    def copies_of_state(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the state of `graph.unshared()`: each use has the entry that it shares.

        Args:
            state: the state of this graph; None where it keeps none.

        Returns:
            A tree with one entry for each node that keeps a state, of the same arrays.

        Raises:
            FuncconvError: if the state is not that of the graph.
        """
        return _copies.copied_state(self, state)

    def grad_by_use(self, loss: Callable[[Any], Array]) -> Callable[..., dict[str, Any]]:
        """Return the function that gives the gradient of a loss by each use of the parameters.

        Args:
            loss: `loss(outputs)` gives one floating number, for the graph's outputs in their structure.

        Returns:
            A function of the parameters and the inputs, called as `by_use(params, *xs)`, or `by_use(params, *xs,
            state=state)` where the graph keeps a state. Its result is like `graph.copies(params)`.

        Raises:
            FuncconvError: when it is called, if the parameters, the state or the inputs are not those of the graph, or
                an op does not accept its inputs.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x, c = fc.Input("x", (8, 8, 2)), fc.Conv(2, 3, bias=False)
            >>> graph = fc.Graph(x, c(c(x)))
            >>> params, x = graph.init(jax.random.key(0)), jnp.ones((1, 8, 8, 2))
            >>> by_use = graph.grad_by_use(jnp.sum)(params, x)
            >>> shared = jax.grad(lambda params: graph(params, x).sum())(params)
            >>> total = by_use["conv1"]["kernel"] + by_use["conv1@2"]["kernel"]
            >>> bool(jnp.allclose(total, shared["conv1"]["kernel"], rtol=1e-5))
            True
        """
        return _copies.grad_by_use(self, loss)

    def hessian_by_use(self, loss: Callable[[Any], Array]) -> Callable[..., Operator]:
        """Return the function that gives the Hessian of a loss by the uses of the parameters.

        Its blocks are the second derivatives by pairs of uses; their sum over all pairs is the Hessian by the shared
        entry.

        Args:
            loss: `loss(outputs)` gives one floating number, for the graph's outputs in their structure.

        Returns:
            A function of the parameters and the inputs, called as `by_use(params, *xs)`, or `by_use(params, *xs,
            state=state)` where the graph keeps a state. It gives an `Operator` on trees like `graph.copies(params)`.

        Raises:
            FuncconvError: when it is called, if the parameters, the state or the inputs are not those of the graph, or
                an op does not accept its inputs.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x, square = fc.Input("x", ()), lambda w, x: (w * x) ** 2
            >>> graph = fc.Graph(x, fc.node(square, fc.node(square, x, params="w", name="a"), params="w", name="b"))
            >>> h = graph.hessian_by_use(jnp.sum)({"w": jnp.float32(1)}, jnp.ones(1))  # of b^2 a^4
            >>> h.block("a").dense().item(), h.block("a", "b").dense().item(), h.block("b").dense().item()
            (12.0, 8.0, 2.0)
        """
        return _copies.hessian_by_use(self, loss)
