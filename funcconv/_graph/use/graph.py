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
from ..evaluate.call import Edits, all_values, as_function, mode_of, number_of
from ..evaluate.inputs import batch_axes, input_arrays
from ..to_file.read_json import from_json
from ..to_file.write_json import content_hash, to_json
from . import notebook
from .editable import EditableNetwork


class Graph(EditableNetwork):
    """A network: a directed acyclic graph of pure functions, some of which share parameters.

    A graph contains no arrays. `graph.init(key)` draws a tree of parameters, with one entry for each distinct layer.
    `graph(params, *xs)` evaluates the network; each input is `(*batch, *shape)` with the same batch axes, where `shape`
    is the one that its `Input` declares. If layers keep a state (`BatchNorm`), or to train with `Dropout`, call
    `graph.apply(params, state, *xs, key=key, train=True)` instead.

    A graph is also a layer: you can call it on nodes. If it has a name, its parameters are one subtree; otherwise its
    layers are named as if they were declared there. Each node must have as many axes and as many channels (the last
    axis) as its input declares. Other sizes may differ if the parameters and the state keep their shapes.

    Graphs compare and hash by value. Equal graphs of layers and module-level functions share compiled code if they are
    static arguments of `jax.jit`.

    Args:
        inputs: one `Input`, or a tuple, list or dict of them.
        outputs: one node, or a tuple, list or dict of nodes. The graph returns its results in the same structure.
        name: name of its subtree of the parameters in another graph; it must not contain `/` or `@`. Default: None.

    Raises:
        FuncconvError: if an input is not an `Input`, an output is not a node, the outputs depend on an input that is
            not among `inputs`, two nodes have the same name, or a node depends on itself.

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
        self,
        params: Params,
        /,
        *xs: Any,
        state: Mapping[str, Any] | None = None,
        masked: bool = False,
        edits: Edits | None = None,
        **named: Any,
    ) -> dict[str, Any]:
        """Evaluate the graph, and return the value of every node.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated in evaluation mode (`train=False`).
            masked: whether to return a value whose positions are not all real, because inputs are `fc.Masked`, as
                `fc.Masked` too. Default: False, the array, which is zero at the other positions.
            edits: for the names of nodes, what takes the place of their values in the rest of the graph: an array like
                the value, or a function of it, as in `{"relu2": jnp.zeros_like}`. Names of inputs are allowed too.
                Inside of an `fc.repeat`, `repeat1/conv1` is the node in all copies, with a function of the value in
                one copy or an array `(copies, *batch, *shape)`; `repeat1/3/conv1` is the node in copy 3. Default: None.
            **named: all inputs by name, instead of `*xs`.

        Returns:
            The values of `graph.nodes` by name, inputs included. After them those inside of each `fc.repeat`, such as
            `repeat1/conv1`, `(copies, *batch, *shape)`.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; the message names the node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.max_pool)(x))
            >>> values = graph.values(graph.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1)))
            >>> {name: value.shape for name, value in values.items()}
            {'x': (5, 8, 8, 1), 'conv1': (5, 6, 6, 4), 'tanh1': (5, 6, 6, 4), 'max_pool1': (5, 3, 3, 4)}
        """
        arrays = input_arrays(self, xs, named)
        mode, found = mode_of(self, state), dict[str, Any]()
        values, _ = all_values(self, params, arrays, mode, masked=masked, edits=edits, found=found)
        return dict(zip(self.nodes, values, strict=True)) | found

    def backward(
        self, params: Params, /, *xs: Any, cotangent: Any = None, state: Mapping[str, Any] | None = None, **named: Any
    ) -> Backward:
        """Compute the gradients of a loss with respect to the value of every node and the parameters.

        The loss is `sum(outputs * cotangent)`. The gradient with respect to the value of a node includes all paths from
        the node to the outputs.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            cotangent: gradient of the loss with respect to the outputs, in the structure of the outputs. Default: None,
                ones, which requires outputs of one number per example. The loss is then their sum over the batch.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated in evaluation mode (`train=False`).
            **named: all inputs by name, instead of `*xs`.

        Returns:
            A named tuple `(nodes, params)`. `nodes` is a dict: for the name of each node the gradient, in the shape of
            its value, or None if the value is not floating. `params` is a tree like the parameters.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; if an output is not floating; if the cotangent does not have the structure, shapes
                and dtypes of the outputs; or if it is None and an output has more than one number per example.

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
        """Compute the Jacobian of a node with respect to a node or parameters, separately for each example.

        If a function is written for a batch (`batched=True`), the other examples of the batch are constants.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            of: name of the node whose value is differentiated.
            wrt: name of a node, of an entry of the parameters such as `"w1"`, or of a part of one such as
                `"conv1/kernel"`. If a node and an entry have the same name, `"conv1"` is the node and `"params/conv1"`
                the entry.
            local: whether to differentiate only the operation at `of`, with respect to one of its own inputs or
                parameters. Default: False, along all paths from `wrt` to `of`.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated in evaluation mode (`train=False`).
            **named: all inputs by name, instead of `*xs`.

        Returns:
            An array `(*batch, *shape of the value, *shape of wrt)`. If the value or the parameters are a tree, a tree
            of these arrays.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, or an op does not
                accept its inputs; if there is no such node or parameter; if one of the two is not floating; or if
                `local` is True and `wrt` is not an input or a parameter of the operation at `of`.

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
        """Return the value of a node, and the rest of the network as a function of this value.

        You can apply any transformation to this function, such as `jax.grad` or a Hessian-vector product.

        Args:
            params: the parameter tree.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            at: name of the node.
            state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph
                without state. The graph is evaluated in evaluation mode (`train=False`).
            **named: all inputs by name, instead of `*xs`.

        Returns:
            `(value, rest)`, where `rest(value)` returns the outputs of the graph.

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
        """Write the graph as JSON: its inputs, its layers with their options and names, and their connections.

        Args:
            **options: options of `json.dumps`, such as `indent=1`.

        Returns:
            A string, from which `Graph.from_json` makes an equal graph. It does not contain parameters.

        Raises:
            FuncconvError: if a function of the graph has no registered name. Activations of `jax.nn`, common functions
                of `jax.numpy`, operators and funcconv's ops have one; register others with `fc.register_op`.

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
        """Read a graph from JSON. Layers and functions are looked up by name, and no code of the text is run.

        Args:
            text: the JSON that `to_json` returned.

        Returns:
            A graph.

        Raises:
            FuncconvError: if the text is not a graph in JSON, if it has an unknown layer, option or function, or if it
                was changed: `to_json` adds a hash of the content. If you change the text on purpose, remove the entry
                `"hash"`.

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
        """The SHA-256 of the JSON without the entry `"hash"`. It is the same for equal graphs, on every machine."""
        return content_hash(self)

    def _repr_svg_(self) -> str | None:
        """Return the picture for a notebook, None if no installed program can draw it."""
        return notebook.picture(self)
