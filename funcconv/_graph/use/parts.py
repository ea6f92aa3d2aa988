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
        """Return a part of the graph as a separate graph.

        Args:
            *names: the name of a nested graph, or the names of nodes. For nodes, the part computes them from the inputs
                of the graph that they depend on.

        Returns:
            A graph. Its output is the node, or a tuple of nodes if you pass several names. `part.select(params)`
            returns its parameters.

        Raises:
            FuncconvError: if the graph has no node or nested graph of that name.

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
        """Select the entries of a parameter tree that this graph needs.

        Args:
            params: the parameter tree of a larger graph. If this graph has a name and the tree has an entry of that
                name, the entries are selected from this entry.

        Returns:
            A parameter tree for this graph, with the same arrays.

        Raises:
            FuncconvError: if an entry is missing.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (3,))
            >>> graph = fc.Graph(x, fc.serial(fc.Dense(4), jax.nn.relu, fc.Dense(2))(x))
            >>> part = graph.subgraph("relu1")
            >>> list(part.select(graph.init(jax.random.key(0))))
            ['dense1']
        """
        return surgery.selected(self, params, self._entries)

    def select_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Select the entries of a state that this graph needs.

        Args:
            state: the state of a larger graph. If this graph has a name and the state has an entry of that name, the
                entries are selected from this entry.

        Returns:
            A state for this graph, with the same arrays.

        Raises:
            FuncconvError: if an entry is missing.
        """
        return surgery.selected(self, state, self._stateful)

    def unshared(self: Same) -> Same:
        """Return the graph without weight sharing: each use of a parameter entry has a separate entry.

        With the parameters `graph.copies(params)` it computes the same. The gradient with respect to a shared entry is
        the sum of the gradients with respect to its copies.

        Returns:
            A graph with the same nodes. The entry of each use has the name of its node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x, c = fc.Input("x", (8, 8, 2)), fc.Conv(2, 3)
            >>> graph = fc.Graph(x, c(c(x)))
            >>> graph.entries, graph.unshared().entries
            (('conv1',), ('conv1', 'conv1@2'))
        """
        return surgery.unshared(self)

    def copies(self, params: Params) -> dict[str, Any]:
        """Return the parameters of `graph.unshared()`, in which each use of a shared entry has a copy.

        Args:
            params: the parameter tree of this graph.

        Returns:
            A tree with one entry for each node that has parameters. The arrays are the same objects.

        Raises:
            FuncconvError: if the parameters are not those of the graph.
        """
        return _copies.copied_parameters(self, params)

    def copies_of_state(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the state of `graph.unshared()`, in which each use of a shared entry has a copy.

        Args:
            state: the state of this graph; None if it has none.

        Returns:
            A tree with one entry for each node that keeps a state. The arrays are the same objects.

        Raises:
            FuncconvError: if the state does not have the entries of the graph.
        """
        return _copies.copied_state(self, state)

    def grad_by_use(self, loss: Callable[[Any], Array]) -> Callable[..., dict[str, Any]]:
        """Return a function that computes the gradient of a loss with respect to each use of the parameters.

        Args:
            loss: a function `loss(outputs)` that returns one floating number. It receives the outputs of the graph in
                their structure.

        Returns:
            A function `by_use(params, *xs)`, or `by_use(params, *xs, state=state)` if the graph keeps a state. It
            returns a tree like `graph.copies(params)`. The graph is evaluated in evaluation mode.

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
        """Return a function that computes the Hessian of a loss with respect to the uses of the parameters.

        Its blocks are the second derivatives with respect to pairs of uses. Their sum over all pairs is the Hessian
        with respect to the shared entry.

        Args:
            loss: a function `loss(outputs)` that returns one floating number. It receives the outputs of the graph in
                their structure.

        Returns:
            A function `by_use(params, *xs)`, or `by_use(params, *xs, state=state)` if the graph keeps a state. It
            returns an `Operator` on trees like `graph.copies(params)`. The graph is evaluated in evaluation mode.

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
