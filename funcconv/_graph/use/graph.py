"""Graphs: networks with derivatives at every node and by every use of their parameters."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Params, Shape
from ..._derivatives import Operator, hessian
from ..._windows.layout import as_array
from ..name import entries as _entries
from ..name.architecture import content_hash, from_json, to_json
from ..name.flatten import Row
from . import notebook
from .at_nodes import Backward, Run, backward, example, jacobian, one_example, own_jacobian, with_example
from .evaluate import Mode, evaluate
from .network import Network


class Graph(Network):
    """A network: a directed acyclic graph of pure functions, some of which share parameters.

    It holds no arrays: `graph.init(key)` draws a parameter tree, with one entry for each distinct layer, and
    `graph(params, *xs)` is a pure function of it. Called on nodes, a graph is itself a layer: with a name it is one
    subtree of the parameters, without one its layers are named as if they had been written there.

    Graphs compare and hash by value: equal ones built twice, of layers and module-level functions, share compiled code
    when they are static arguments of `jax.jit`.

    Args:
        inputs: one `Input`, a tuple of them, or a dict.
        outputs: one node, or a tuple, list or dict of nodes; results have the same structure.
        name: of its subtree, where it is a part of another graph.

    Raises:
        FuncconvError: if there is a cycle, an input is missing, or a name has two meanings.

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
            params: as for a call.
            *xs: as for a call.
            state: of the layers that keep one, as for `apply`; the graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            The values of `graph.nodes` by name, inputs included.

        Raises:
            FuncconvError: as a call does.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 1))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.max_pool)(x))
            >>> values = graph.values(graph.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1)))
            >>> {name: value.shape for name, value in values.items()}
            {'x': (5, 8, 8, 1), 'conv1': (5, 6, 6, 4), 'tanh1': (5, 6, 6, 4), 'max_pool1': (5, 3, 3, 4)}
        """
        values, _ = self._evaluate(params, self._arrays(xs, named), self._mode(state))
        return dict(zip(self.nodes, values, strict=True))

    def backward(
        self, params: Params, /, *xs: Any, cotangent: Any = None, state: Mapping[str, Any] | None = None, **named: Any
    ) -> Backward:
        """Return the derivative of a loss by every node's value and by the parameters.

        The loss is the sum of the products of the outputs with `cotangent`. The derivative by a node's value is that of
        the whole rest of the graph, along all paths from the node.

        Args:
            params: as for a call.
            *xs: as for a call.
            cotangent: the derivative of the loss by the outputs, in their structure; None means ones, so that the loss
                is the sum over the batch, where the outputs are one number for each example.
            state: of the layers that keep one, as for `apply`; the graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(nodes, params)`: a dict by node's name, and a tree like the parameters.

        Raises:
            FuncconvError: as a call does, and if the cotangent is not like the outputs, or None where they are more
                than one number, or if an output is not floating.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x0 = fc.Input("x0", (3,))
            >>> x1 = fc.node(lambda x: x**2, x0, name="x1")
            >>> graph = fc.Graph(x0, fc.node(jnp.sum, x1 * x0, name="loss", batched=False))
            >>> nodes, _ = graph.backward({}, jnp.array([1.0, 2.0, 3.0]))
            >>> nodes["x1"].tolist(), nodes["x0"].tolist()
            ([1.0, 2.0, 3.0], [3.0, 12.0, 27.0])
        """
        arrays = self._arrays(xs, named)
        run = self._runner(arrays, self._batch(arrays), self._mode(state))
        outputs = jax.eval_shape(lambda params: [run(params, {})[i] for i in self._results], params)
        return backward(run, self.nodes, self._results, params, self._cotangents(cotangent, outputs, arrays))

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
            params: as for a call.
            *xs: as for a call.
            of: a node.
            wrt: a node, an entry of the parameters such as `"w1"`, or a part of one such as `"conv1/kernel"`; an entry
                that is called as a node is said with `params/` in front, `"params/conv1"`.
            local: only the Jacobian of the operation at `of`, by one of its own inputs or parameters, and not along all
                paths that lead there.
            state: of the layers that keep one, as for `apply`; the graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(*batch, *of, *wrt)`; where a value or the parameters are a tree, a tree of such.

        Raises:
            FuncconvError: as a call does, and if there is no such node or parameter, one of the two is not floating, or
                `local` is asked for something that the operation does not take.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> x0 = fc.Input("x0", (2,))
            >>> x1 = fc.node(jnp.dot, x0, params="w", name="x1")
            >>> graph = fc.Graph(x0, fc.node(jnp.dot, x1, params="w", name="x2"))
            >>> params = {"w": jnp.array([[1.0, 2.0], [0.0, 1.0]])}
            >>> graph.jacobian(params, jnp.ones(2), of="x2", wrt="x0").tolist()
            [[1.0, 4.0], [0.0, 1.0]]
        """
        arrays = self._arrays(xs, named)
        batch, mode = self._batch(arrays), self._mode(state)
        _entries.check(params, self._entries)
        number, variable = self._number(of), self._variable(wrt, params)
        row = self._rows[number - len(self._signature)] if number >= len(self._signature) else None
        if local:
            variable = self._own_variable(of, row, wrt, variable)

        def derivative(run: Run, own_run: Callable[..., Any]) -> Any:
            if not local or row is None:
                return jacobian(run, number, variable, params)
            values = run(params, {})
            entry = _entries.get(params, tuple(row.params.split("/"))) if row.params else None
            return own_jacobian(partial(own_run, row), row, entry, [values[i] for i in row.inputs], variable)

        def apply(row: Row, entry: Any, *xs: Any, batch: Shape = ()) -> Any:
            own_state = mode.states[str(row.params)] if row.op.stateful else None
            return row.op.run(entry, own_state, *xs, batch=batch, key=None, train=False)[0]

        def alone(*xs: Array) -> Any:
            return derivative(self._runner(xs, (), mode), apply)

        def among_others(*index: Array) -> Any:
            run = self._runner(arrays, batch, mode)
            values = run(params, {})

            def own_run(row: Row, entry: Any, *xs: Any) -> Any:
                whole = [with_example(values[i], index, x) for i, x in zip(row.inputs, xs, strict=True)]
                return example(apply(row, entry, *whole, batch=batch), index)

            return derivative(one_example(run, index), own_run)

        # An op that is written for a batch may compute the result of an example from the others.
        mixed = any(getattr(row.op, "batched", False) for row in self._rows)
        each, operands = (among_others, jnp.indices(batch)) if mixed else (alone, arrays)
        for _ in batch:
            each = jax.vmap(each)
        return each(*operands)

    def continuation(
        self, params: Params, /, *xs: Any, at: str, state: Mapping[str, Any] | None = None, **named: Any
    ) -> tuple[Any, Callable[[Any], Any]]:
        """Return a node's value, and the outputs as a function of it.

        Whatever one does to functions can so be done to the rest of a network, a Hessian-vector product among it.

        Args:
            params: as for a call.
            *xs: as for a call.
            at: a node.
            state: of the layers that keep one, as for `apply`; the graph is evaluated as outside of training.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(value, rest)`, where `rest(value)` gives the outputs of the graph.

        Raises:
            FuncconvError: as a call does, and if there is no such node.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (2,))
            >>> graph = fc.Graph(x, fc.node(jnp.sum, fc.node(jnp.exp, x, name="h") * x, batched=False))
            >>> value, rest = graph.continuation({}, jnp.array([0.0, 3.0]), at="h")
            >>> jax.grad(rest)(value).tolist()
            [0.0, 3.0]
        """
        arrays = self._arrays(xs, named)
        run, number = self._runner(arrays, self._batch(arrays), self._mode(state)), self._number(at)

        def rest(value: Any) -> Any:
            values = run(params, {number: lambda _: value})
            return jax.tree.unflatten(self._tree, [values[i] for i in self._results])

        return run(params, {})[number], rest

    def grad_by_use(self, loss: Callable[[Any], Array]) -> Callable[..., dict[str, Any]]:
        """Return the function that gives the gradient of a loss by each use of the parameters.

        Args:
            loss: of the graph's outputs, a number.

        Returns:
            A function of the parameters and the inputs, as the graph is one, and of `state=`, where it keeps one. Its
            result is like `graph.copies(params)`.

        Raises:
            FuncconvError: when it is called, as a call of the graph does.

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
        unshared = self.unshared()

        def by_use(params: Params, *xs: Any, state: Mapping[str, Any] | None = None, **named: Any) -> dict[str, Any]:
            states = self.copies_of_state(state)
            gradient = jax.grad(lambda copies: loss(unshared.apply(copies, states, *xs, **named)[0]))
            return gradient(self.copies(params))  # type: ignore[no-any-return]

        return by_use

    def hessian_by_use(self, loss: Callable[[Any], Array]) -> Callable[..., Operator]:
        """Return the function that gives the Hessian of a loss by the uses of the parameters.

        Its blocks are the second derivatives by pairs of uses; their sum over all pairs is the Hessian by the shared
        entry.

        Args:
            loss: of the graph's outputs, a number.

        Returns:
            A function of the parameters and the inputs, and of `state=`, that gives an `Operator` on trees like
            `graph.copies(params)`.

        Raises:
            FuncconvError: when it is called, as a call of the graph does.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x, square = fc.Input("x", ()), lambda w, x: (w * x) ** 2
            >>> graph = fc.Graph(x, fc.node(square, fc.node(square, x, params="w", name="a"), params="w", name="b"))
            >>> h = graph.hessian_by_use(jnp.sum)({"w": jnp.float32(1)}, jnp.ones(1))  # of b^2 a^4
            >>> h.block("a").dense().item(), h.block("a", "b").dense().item(), h.block("b").dense().item()
            (12.0, 8.0, 2.0)
        """
        unshared = self.unshared()

        def by_use(params: Params, *xs: Any, state: Mapping[str, Any] | None = None, **named: Any) -> Operator:
            states = self.copies_of_state(state)
            return hessian(lambda copies: loss(unshared.apply(copies, states, *xs, **named)[0]), self.copies(params))

        return by_use

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
            ...     fc.Graph.from_json('{"format": "something else"}')
            ... except fc.FuncconvError as error:
            ...     print(error)
            from_json: it must be an object whose "format" is "funcconv graph"
        """
        return from_json(cls, text)

    @property
    def content_hash(self) -> str:
        """The SHA-256 of its JSON without the entry `"hash"`: equal graphs have equal ones, on every machine."""
        return content_hash(self)

    def _repr_svg_(self) -> str | None:
        """Return the picture for a notebook, None if no installed program can draw it."""
        return notebook.picture(self)

    def _runner(self, xs: Sequence[Array], batch: Shape, mode: Mode) -> Run:
        """Return the evaluation at these inputs as a function of the parameters and of edits on the way."""
        return lambda params, edits: evaluate(self._rows, self._uses(params, xs), xs, batch, mode, edits)[0]

    def _number(self, name: str) -> int:
        """Return the number of a node's value."""
        if name not in self.nodes:
            msg = f"the graph has no node {name!r}{suggest(name, self.nodes)}"
            raise FuncconvError(msg)
        return self.nodes.index(name)

    def _variable(self, name: str, params: Params) -> int | _entries.Path:
        """Return the number of a node's value, or the path of parameters."""
        if name in self.nodes:
            return self._number(name)
        path = tuple(name.removeprefix("params/").split("/"))
        try:
            _entries.get(params, path)
        except (KeyError, IndexError, TypeError):
            msg = f"the graph has no node and no parameters {name!r}{suggest(name, (*self.nodes, *self.entries))}"
            raise FuncconvError(msg) from None
        return path

    def _own_variable(self, of: str, row: Row | None, name: str, variable: int | _entries.Path) -> int | _entries.Path:
        """Return the variable as a row sees it: one of its inputs, or a path below its entry."""
        if row is not None:
            if isinstance(variable, int) and variable in row.inputs:
                return variable
            entry = tuple(row.params.split("/")) if row.params else None
            if not isinstance(variable, int) and entry and variable[: len(entry)] == entry:
                return variable[len(entry) :]
        takes = [self.nodes[i] for i in row.inputs] + ([row.params] if row.params else []) if row else []
        msg = f"node {of!r} does not take {name!r}; it takes {', '.join(map(repr, takes)) or 'nothing'}"
        raise FuncconvError(msg)

    def _cotangents(self, cotangent: Any, outputs: Sequence[Any], xs: Sequence[Array]) -> list[Any]:
        """Return the cotangents of the results, of their types."""
        for name, output in zip(self.outputs, outputs, strict=True):
            for leaf in jax.tree.leaves(output):
                if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                    msg = f"backward: the output {name!r} is {leaf.dtype}, which has no derivative"
                    raise FuncconvError(msg)
        if cotangent is None:
            batch = self._batch(xs)
            if any(leaf.shape != batch for leaf in jax.tree.leaves(outputs)):
                msg = (
                    f"backward: the outputs have shapes {_shapes(outputs)}, more than one number for each example; "
                    "give cotangent=, the derivative of the loss by them"
                )
                raise FuncconvError(msg)
            return [jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), output) for output in outputs]
        try:
            given = self._tree.flatten_up_to(cotangent)
            return [
                jax.tree.map(partial(_like, op="backward"), output, each)
                for output, each in zip(outputs, given, strict=True)
            ]
        except ValueError as error:
            if isinstance(error, FuncconvError):
                raise
            expected = jax.tree.unflatten(self._tree, [_shapes(output) for output in outputs])
            msg = f"backward: the cotangent must be like the outputs, {expected}; got {_shapes(cotangent)}"
            raise FuncconvError(msg) from None


def _like(output: Any, cotangent: Any, *, op: str) -> Array:
    array = as_array(op, "the cotangent", cotangent)
    if (array.shape, array.dtype) != (output.shape, output.dtype):
        msg = (
            f"{op}: the cotangent of an output {output.dtype}{list(output.shape)} must be like it; "
            f"got {array.dtype}{list(array.shape)}"
        )
        raise FuncconvError(msg)
    return array


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)
