"""Networks: graphs whose parameters are drawn, and which are evaluated."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Params
from ..declare.node import Node
from ..evaluate.call import Edits, all_values, mode_of
from ..evaluate.inputs import in_order, input_arrays, wanted_inputs
from ..evaluate.parts import rows_in_evaluation
from ..infer.init import draw_parameters, entry_shapes, first_state, value_shapes
from ..name import entries as _entries
from .structure import GraphStructure
from .surgery import repeat_on_nodes


class Network(GraphStructure):
    """A graph with the methods that draw its parameters and evaluate it."""

    def init(self, key: Array, /, **given: Any) -> dict[str, Any]:
        """Draw the parameters.

        All shapes are inferred from the shapes of the inputs. The random key of an entry depends only on `key` and its
        path. So if you add a layer, layers before it and layers with a `name` keep their keys.

        Args:
            key: a JAX random key.
            **given: entries to use instead of drawing them, by name. They must include each entry that nothing draws.
                Pass the entries of a nested graph as a dict.

        Returns:
            A tree of nested dicts with one entry for each distinct layer. Layers without parameters have none.

        Raises:
            FuncconvError: if an op does not accept its inputs (the message names the node), if two uses of one entry
                need different shapes, or if an entry is missing or unknown.

        Example:
            >>> import funcconv as fc, jax
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.flatten, fc.Dense(2))(x))
            >>> jax.tree.map(lambda array: array.shape, graph.init(jax.random.key(0)))["dense1"]
            {'bias': (2,), 'kernel': (144, 2)}
        """
        return draw_parameters(self, key, given)

    def init_state(self, params: Params | None = None) -> dict[str, Any]:
        """Return the initial state of the graph, such as the running statistics of its batch norms.

        Args:
            params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default:
                None, the shapes that `init` draws.

        Returns:
            A tree like the parameters, with one entry for each distinct layer that keeps a state; `{}` if none does.

        Raises:
            FuncconvError: if an op does not accept its inputs, or if nothing draws an entry and `params` is None.

        Example:
            >>> import funcconv as fc, jax
            >>> x, norm = fc.Input("x", (4,)), fc.BatchNorm()
            >>> jax.tree.map(lambda array: array.shape, fc.Graph(x, norm(norm(x))).init_state())
            {'batch_norm1': {'mean': (4,), 'var': (4,)}}
        """
        return first_state(self, params)

    def shapes(self, params: Params | None = None) -> dict[str, Any]:
        """Return the shape and dtype of the value of every node, without batch axes. Nothing is computed.

        Args:
            params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default:
                None, the shapes that `init` draws.

        Returns:
            A dict: for the name of each node a `jax.ShapeDtypeStruct`, or a tree of them.

        Raises:
            FuncconvError: if an op does not accept its inputs, or if nothing draws an entry and `params` is None.

        Example:
            >>> import funcconv as fc
            >>> x = fc.Input("x", (28, 28, 1))
            >>> fc.Graph(x, fc.serial(fc.Conv(8, 5), fc.max_pool)(x)).shapes()["conv1"].shape
            (24, 24, 8)
        """
        return value_shapes(self, params)

    def entry_shapes(self, params: Params | None = None) -> list[Any]:
        """Return the shapes and dtypes of the parameters that each row uses.

        Args:
            params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default:
                None, the shapes that `init` draws.

        Returns:
            A list with one entry for each of `graph.rows`: a tree of `jax.ShapeDtypeStruct`, or None if the row has no
            parameters.

        Raises:
            FuncconvError: if an op does not accept its inputs, or if nothing draws an entry and `params` is None.
        """
        return entry_shapes(self, params)

    def __call__(self, *args: Any, masked: bool = False, edits: Edits | None = None, **named: Any) -> Any:
        """Evaluate the graph on parameters and arrays, `graph(params, *xs)`, or call it on nodes, as a layer.

        The graph is evaluated in evaluation mode: `Dropout` returns its input.

        Args:
            *args: the parameters, then the inputs in the order of declaration, each `(*batch, *shape)` with the same
                batch axes (none, one or several). If the inputs were declared as a dict, you can pass a dict of arrays.
                Or nodes, without parameters.
            masked: whether to return an output whose positions are not all real, because inputs are `fc.Masked`, as
                `fc.Masked` too. Default: False, the array, which is zero at the other positions.
            edits: for the names of nodes, what takes the place of their values in the rest of the graph: an array like
                the value, or a function of it, as in `{"relu2": jnp.zeros_like}`. Names of inputs are allowed too.
                Inside of an `fc.repeat`, `repeat1/conv1` is the node in all copies, with a function of the value in
                one copy or an array `(copies, *batch, *shape)`; `repeat1/3/conv1` is the node in copy 3. Default: None.
            **named: all inputs by name, instead of by position: `graph(params, left=a, right=b)`.

        Returns:
            The outputs, in the structure in which they were declared. For nodes, nodes in this structure.

        Raises:
            FuncconvError: if the parameters or inputs are not those of the graph, if the graph has a state (call
                `apply`), or if an op does not accept its inputs; the message names the node. For nodes: if their
                number of axes or channels differs from the declared input, or if a layer needs parameters or a state of
                another shape for their sizes.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (2,))
            >>> graph = fc.Graph(x, fc.serial(jax.nn.relu, fc.add)(x))
            >>> graph({}, jnp.array([1.0, -2.0])).tolist()
            [1.0, 0.0]
            >>> graph({}, jnp.array([1.0, -2.0]), edits={"relu1": lambda value: 10 * value}).tolist()
            [10.0, 0.0]
        """
        if any(isinstance(arg, Node) for arg in (*args, *named.values())):
            return repeat_on_nodes(self, in_order(self, args, named))
        if not args:
            msg = (
                f"graph: expected the parameters and {wanted_inputs(self)}; got nothing. Call graph(params, *xs), "
                "where params come from graph.init"
            )
            raise FuncconvError(msg)
        params, *xs = args
        if self._stateful:
            entries = ", ".join(map("/".join, self._stateful))
            msg = f"graph: the graph keeps a state ({entries}); got none. Call graph.apply(params, state, *xs)"
            raise FuncconvError(msg)
        arrays = input_arrays(self, xs, named)
        values, _ = all_values(self, params, arrays, mode_of(self, {}), masked=masked, edits=edits)
        return jax.tree.unflatten(self._tree, [values[i] for i in self._results])

    def apply(
        self,
        params: Params,
        state: Mapping[str, Any],
        /,
        *xs: Any,
        key: Array | None = None,
        train: bool = False,
        evaluating: str | Sequence[str] = (),
        masked: bool = False,
        edits: Edits | None = None,
        **named: Any,
    ) -> tuple[Any, Mapping[str, Any]]:
        """Evaluate a graph with a state or random numbers, in training or in evaluation mode.

        Args:
            params: the parameter tree.
            state: the state of the layers that keep one, as `init_state` returns it; `{}` if there is none.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            key: a JAX random key. Needed in training if a node draws random numbers, such as `Dropout`. The key of each
                node is derived from it and the name of the node. Default: None.
            train: whether to evaluate as in training: `Dropout` sets numbers to zero, and `BatchNorm` normalizes by the
                batch and updates its state. A Python bool. Default: False.
            evaluating: patterns of nodes that are in evaluation mode also if `train` is true, such as `"trunk/*"`: a
                part that is not trained, with `make_step(..., frozen="trunk/*")`. `*` stands for any text, and a
                pattern that matches the name of a nested graph or of a repeat matches everything in it. It is compared
                with the name of a node, the name without the number of its use (`"trunk/*"` also matches
                `"trunk@2/conv1"`), and the path of its entry in the parameters, also followed by `/*`. A Python string
                or several. Default: none.
            masked: whether to return an output whose positions are not all real, because inputs are `fc.Masked`, as
                `fc.Masked` too. Default: False, the array, which is zero at the other positions.
            edits: for the names of nodes, what takes the place of their values in the rest of the graph: an array like
                the value, or a function of it, as in `{"relu2": jnp.zeros_like}`. Names of inputs are allowed too.
                Inside of an `fc.repeat`, `repeat1/conv1` is the node in all copies, with a function of the value in
                one copy or an array `(copies, *batch, *shape)`; `repeat1/3/conv1` is the node in copy 3. Default: None.
            **named: all inputs by name, instead of `*xs`.

        Returns:
            `(outputs, state)`: the outputs in the structure in which they were declared, and the next state. If a layer
            is used several times, its uses update its state one after another. The state of a node in evaluation mode
            does not change.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, if an op does not
                accept its inputs, or if a node needs a key and `key` is None; the message names the node. If a
                pattern of `evaluating` matches no node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 3))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.Dropout(0.2))(x))
            >>> params, state = graph.init(jax.random.key(0)), graph.init_state()
            >>> y, state = graph.apply(params, state, jnp.ones((2, 8, 8, 3)), key=jax.random.key(1), train=True)
            >>> y.shape, state["batch_norm1"]["var"].shape
            ((2, 6, 6, 4), (4,))
            >>> parts = ("batch_norm*", "dropout*")  # they need no key, and the state stays
            >>> y, after = graph.apply(params, state, jnp.ones((2, 8, 8, 3)), train=True, evaluating=parts)
            >>> bool((after["batch_norm1"]["var"] == state["batch_norm1"]["var"]).all())
            True
        """
        paths = rows_in_evaluation(self._rows, evaluating)
        mode = mode_of(self, state)._replace(key=key, train=train, evaluating=paths)
        arrays = input_arrays(self, xs, named)
        values, states = all_values(self, params, arrays, mode, masked=masked, edits=edits)
        return jax.tree.unflatten(self._tree, [values[i] for i in self._results]), _entries.tree_of(states)
