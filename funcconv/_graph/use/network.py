"""Networks: graphs whose parameters are drawn, and which are evaluated."""

from collections.abc import Mapping
from typing import Any

import jax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Params
from ..declare.node import Node
from ..evaluate.call import all_values, mode_of
from ..evaluate.inputs import in_order, input_arrays, wanted_inputs
from ..infer.init import draw_parameters, entry_shapes, first_state, value_shapes
from ..name import entries as _entries
from .structure import GraphStructure
from .surgery import repeat_on_nodes


class Network(GraphStructure):
    """A graph with the methods that draw its parameters and evaluate it."""

    def init(self, key: Array, /, **given: Any) -> dict[str, Any]:
        """Draw the parameters.

        Every shape is inferred from the shapes of the inputs. The key of an entry is folded from its name, so adding a
        layer changes neither the layers before it nor those that have a name of their own.

        Args:
            key: a JAX random key.
            **given: entries that are taken as they are, by name. Entries that no node draws must be among them. The
                entries of a nested graph are given as a dict.

        Returns:
            A tree of nested dicts, one entry for each distinct layer.

        Raises:
            FuncconvError: if an op does not accept its inputs, one entry would need two shapes, or an entry is missing
                or unknown.
        """
        return draw_parameters(self, key, given)

    def init_state(self, params: Params | None = None) -> dict[str, Any]:
        """Return the state that the graph starts from, such as the running statistics of its batch norms.

        Args:
            params: the parameters or their shapes, needed only where no layer draws them. Default: the shapes that
                `init` draws.

        Returns:
            A tree like the parameters, with an entry for each layer that keeps a state: one for all uses of a layer.

        Raises:
            FuncconvError: if an op does not accept its inputs, or nothing draws an entry and `params` is None.

        Example:
            >>> import funcconv as fc, jax
            >>> x, norm = fc.Input("x", (4,)), fc.BatchNorm()
            >>> jax.tree.map(lambda array: array.shape, fc.Graph(x, norm(norm(x))).init_state())
            {'batch_norm1': {'mean': (4,), 'var': (4,)}}
        """
        return first_state(self, params)

    def shapes(self, params: Params | None = None) -> dict[str, Any]:
        """Return the shape and dtype of every node's value, without batch axes; nothing is computed.

        Args:
            params: the parameters or their shapes, needed only where no layer draws them. Default: the shapes that
                `init` draws.

        Returns:
            A `jax.ShapeDtypeStruct`, or a tree of them, by node's name.

        Raises:
            FuncconvError: if an op does not accept its inputs, or nothing draws an entry and `params` is None.

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
            params: the parameters or their shapes, needed only where no layer draws them. Default: the shapes that
                `init` draws.

        Returns:
            A tree of `jax.ShapeDtypeStruct` for each of `graph.rows`, None where it uses no parameters.

        Raises:
            FuncconvError: if an op does not accept its inputs, or nothing draws an entry and `params` is None.
        """
        return entry_shapes(self, params)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Evaluate on a parameter tree and arrays, `graph(params, *xs)`; or apply to nodes, as a layer.

        Args:
            *args: the parameters and the inputs in the order of declaration, each with the same batch axes in front
                (none, one or several); where the inputs were declared as a dict, a dict will do. Or nodes.
            **named: instead of inputs by position, all inputs by name: `graph(params, left=a, right=b)`.

        Returns:
            The outputs, in the structure in which they were declared.

        Raises:
            FuncconvError: if the parameters or inputs are not those of the graph, or an op does not accept its inputs;
                the text names the node. On nodes: if they have other channels or another number of axes than the inputs
                declare, or sizes for which a layer has parameters or a state of another shape.
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
        values, _ = all_values(self, params, input_arrays(self, xs, named), mode_of(self, {}))
        return jax.tree.unflatten(self._tree, [values[i] for i in self._results])

    def apply(
        self,
        params: Params,
        state: Mapping[str, Any],
        /,
        *xs: Any,
        key: Array | None = None,
        train: bool = False,
        **named: Any,
    ) -> tuple[Any, Mapping[str, Any]]:
        """Evaluate a graph whose nodes draw random numbers or keep a state, as in training.

        Args:
            params: the parameter tree.
            state: the state of the layers that keep one, as `init_state` returns it; `{}` where there is none.
            *xs: the inputs in the order of declaration, each `(*batch, *shape)` with the same batch axes.
            key: a JAX random key, needed in training where a node draws. Every node has its own, folded from its name.
                Default: None.
            train: whether to behave as in training; a Python bool. Default: False.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(outputs, state)`. Where a layer is used more than once, its uses change its state one after another, in
            the order of evaluation. Outside of training the state comes back as it is.

        Raises:
            FuncconvError: if the parameters, the state or the inputs are not those of the graph, an op does not accept
                its inputs, or a node has no key to draw with; the text names the node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 3))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.Dropout(0.2))(x))
            >>> params, state = graph.init(jax.random.key(0)), graph.init_state()
            >>> y, state = graph.apply(params, state, jnp.ones((2, 8, 8, 3)), key=jax.random.key(1), train=True)
            >>> y.shape, state["batch_norm1"]["var"].shape
            ((2, 6, 6, 4), (4,))
        """
        mode = mode_of(self, state)._replace(key=key, train=train)
        values, states = all_values(self, params, input_arrays(self, xs, named), mode)
        return jax.tree.unflatten(self._tree, [values[i] for i in self._results]), _entries.tree_of(states)
