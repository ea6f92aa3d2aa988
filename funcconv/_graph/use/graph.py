"""Graphs: networks with derivatives at every node, and with their text.

The class is longer than others because it documents seven public methods with examples; the methods themselves are
short.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..._common.types import Params
from ..derive.at_nodes import Backward, backward
from ..derive.cotangents import output_cotangents
from ..derive.jacobian import jacobian_by_example
from ..evaluate.call import all_values, as_function, mode_of, number_of
from ..evaluate.inputs import batch_axes, input_arrays
from ..to_file.read_json import from_json
from ..to_file.write_json import content_hash, to_json
from . import notebook
from .parts import NetworkWithParts


class Graph(NetworkWithParts):
    """A network: a directed acyclic graph of pure functions, some of which share parameters.

    It holds no arrays: `graph.init(key)` draws a parameter tree, with one entry for each distinct layer, and
    `graph(params, *xs)` is a pure function of it. Called on nodes, a graph is itself a layer: with a name it is one
    subtree of the parameters, without one its layers are named as if they were declared there. Each node must have as
    many axes and as many channels as its input declares. Other sizes may differ, as long as every layer keeps the
    shapes of its parameters and its state.

    Graphs compare and hash by value: equal ones built twice, of layers and module-level functions, share compiled code
    when they are static arguments of `jax.jit`.

    Args:
        inputs: one `Input`, a tuple of them, or a dict.
        outputs: one node, or a tuple, list or dict of nodes; results have the same structure.
        name: the name of its subtree in the parameters, where it is a part of another graph. Default: None.

    Raises:
        FuncconvError: if there is a cycle, an input is missing, or two nodes have one name.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> left, right = fc.Input("left", (28, 28, 1)), fc.Input("right", (28, 28, 1))
        >>> conv = fc.Conv(8, 3)  # one object, so one set of weights
        >>> graph = fc.Graph((left, right), abs(conv(left) - conv(right)))
        >>> params = graph.init(jax.random.key(0))
        >>> jax.tree.map(jnp.shape, params)
        {'conv1': {'bias': (8,), 'kernel': (3, 3, 1, 8)}}
        >>> graph(params, jnp.ones((5, 28, 28, 1)), jnp.zeros((5, 28, 28, 1))).shape
        (5, 26, 26, 8)
    """

    def values(
        self, params: Params, /, *xs: Any, state: Mapping[str, Any] | None = None, **named: Any
    ) -> dict[str, Any]:
        """Evaluate, and return every node's value.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            The values of `graph.nodes` by name, inputs included.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; the text names the node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.max_pool)(x))
            >>> values = graph.values(graph.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1)))
            >>> {name: value.shape for name, value in values.items()}
            {'x': (5, 8, 8, 1), 'conv1': (5, 6, 6, 4), 'tanh1': (5, 6, 6, 4), 'max_pool1': (5, 3, 3, 4)}
        """
        values, _ = all_values(self, params, input_arrays(self, xs, named), mode_of(self, state))
        return dict(zip(self.nodes, values, strict=True))

    def backward(
        self, params: Params, /, *xs: Any, cotangent: Any = None, state: Mapping[str, Any] | None = None, **named: Any
    ) -> Backward:
        """Return the derivative of a loss by every node's value and by the parameters.

        The loss is the sum of the products of the outputs with `cotangent`. The derivative by a node's value is that of
        the whole rest of the graph, along all paths from the node.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            cotangent: the derivative of the loss by the outputs, in their structure; None means ones, so that the loss
                is the sum over the batch, where the outputs are one number for each example.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(nodes, params)`: a dict by node's name, and a tree like the parameters.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; if an output is not floating; or if the cotangent is not like the outputs, or None
                where an output is more than one number for each example.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x0 = fc.Input("x0", (3,))
            >>> x1 = fc.node(lambda x: x**2, x0, name="x1")
            >>> graph = fc.Graph(x0, fc.node(jnp.sum, x1 * x0, name="loss", batched=False))
            >>> nodes, _ = graph.backward({}, jnp.array([1.0, 2.0, 3.0]))
            >>> nodes["x1"].tolist(), nodes["x0"].tolist()
            ([1.0, 2.0, 3.0], [3.0, 12.0, 27.0])
        """
        arrays = input_arrays(self, xs, named)
        batch = batch_axes(self, arrays)
        run = as_function(self, arrays, batch, mode_of(self, state))
        outputs = jax.eval_shape(lambda params: [run(params, {})[i] for i in self._results], params)
        cotangents = output_cotangents(self, cotangent, outputs, batch)
        return backward(run, self.nodes, self._results, params, cotangents)

    def jacobian(
        self,
        params: Params,
        /,
        *xs: Any,
        of: str,
        wrt: str,
        local: bool = False,
        state: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        """Return the Jacobian of a node by a node, or by parameters, for each example by itself.

        If an op is written for a batch (`batched=True`), the other examples of the batch stay as they are.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            of: the name of a node.
            wrt: the name of a node, of an entry of the parameters such as `"w1"`, or of a part of one such as
                `"conv1/kernel"`. Write `params/` in front of an entry that is called like a node: `"params/conv1"`.
            local: True returns the Jacobian of the operation at `of` alone, by one of its own inputs or parameters.
                Default: False, along all paths from `wrt` to `of`.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(*batch, *of, *wrt)`; where a value or the parameters are a tree, a tree of such.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; if there is no such node or parameter; if one of the two is not floating; or if
                `local` is true and the operation at `of` does not take `wrt`.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> x0 = fc.Input("x0", (2,))
            >>> x1 = fc.node(jnp.dot, x0, params="w", name="x1")
            >>> graph = fc.Graph(x0, fc.node(jnp.dot, x1, params="w", name="x2"))
            >>> params = {"w": jnp.array([[1.0, 2.0], [0.0, 1.0]])}
            >>> graph.jacobian(params, jnp.ones(2), of="x2", wrt="x0").tolist()
            [[1.0, 4.0], [0.0, 1.0]]
        """
        arrays = input_arrays(self, xs, named)
        return jacobian_by_example(self, params, arrays, mode_of(self, state), of, wrt, local=local)

    def continuation(
        self, params: Params, /, *xs: Any, at: str, state: Mapping[str, Any] | None = None, **named: Any
    ) -> tuple[Any, Callable[[Any], Any]]:
        """Return a node's value, and the outputs as a function of it.

        So you can apply any transformation of functions, such as a Hessian-vector product, to the rest of a network.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            at: the name of a node.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(value, rest)`, where `rest(value)` gives the outputs of the graph.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; or if there is no such node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (2,))
            >>> graph = fc.Graph(x, fc.node(jnp.sum, fc.node(jnp.exp, x, name="h") * x, batched=False))
            >>> value, rest = graph.continuation({}, jnp.array([0.0, 3.0]), at="h")
            >>> jax.grad(rest)(value).tolist()
            [0.0, 3.0]
        """
        arrays = input_arrays(self, xs, named)
        run = as_function(self, arrays, batch_axes(self, arrays), mode_of(self, state))
        number = number_of(self, at, "continuation")

        def rest(value: Any) -> Any:
            values = run(params, {number: lambda _: value})
            return jax.tree.unflatten(self._tree, [values[i] for i in self._results])

        return run(params, {})[number], rest

    def to_json(self, **options: Any) -> str:
        """Return the graph as JSON: its inputs, its layers with their options and names, and how they are connected.

        Args:
            **options: those of `json.dumps`, such as `indent`.

        Returns:
            Text, of which `Graph.from_json` makes an equal graph.

        Raises:
            FuncconvError: if a function in it has no name: activations of `jax.nn`, common functions of `jax.numpy`,
                operators and funcconv's ops have one, `register_op` gives one to others.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu)(x))
            >>> fc.Graph.from_json(graph.to_json()) == graph
            True
        """
        return to_json(self, **options)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Graph":
        """Return the graph that JSON describes; layers and functions are found by name, and nothing is run.

        Args:
            text: of `to_json`.

        Returns:
            A graph.

        Raises:
            FuncconvError: if it is not such JSON, has a layer, an option or a function that is not known, or is not
                what was written: `to_json` puts a hash of the rest into it. If you change the text, remove `"hash"`.

        Example:
            >>> import funcconv as fc
            >>> try:
            ...     fc.Graph.from_json('{"format": "other"}')
            ... except fc.FuncconvError as error:
            ...     print(error)
            from_json: its "format" must be "funcconv graph"; got 'other'. Pass what Graph.to_json returned
        """
        return from_json(cls, text)

    @property
    def content_hash(self) -> str:
        """The SHA-256 of its JSON without the entry `"hash"`: equal graphs have equal ones, on every machine."""
        return content_hash(self)

    def _repr_svg_(self) -> str | None:
        """Return the picture for a notebook, None if no installed program can draw it."""
        return notebook.picture(self)
