"""Networks as values: a directed acyclic graph of nodes, flattened into rows, drawn, evaluated and cut into parts."""

import copy
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import is_kept
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Params, Shape
from ..._ops.init import fold_in_name
from ..._windows.layout import as_array
from ..declare.inference import drawn, result, retold, shapes, spec
from ..declare.node import Application, Input, Layer, Node, Place, check_name, check_nodes
from ..name import entries as _entries
from ..name.flatten import Row, flatten
from .evaluate import Mode, evaluate

Same = TypeVar("Same", bound="Network")
_NONE: Mapping[str, Any] = MappingProxyType({})
_OPTIONS = ("key", "train", "state", "cotangent", "of", "wrt", "local", "at")  # of the methods that take inputs


class _KeywordError(FuncconvError, TypeError):
    """An unknown keyword argument, which Python reports as a TypeError."""


class InputRow(NamedTuple):
    """An input of a graph."""

    name: str
    shape: Shape
    dtype: Any


class Network:
    """What a `Graph` is but for its derivatives: rows, parameters, evaluation, parts, and its value."""

    takes_nodes = True

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None) -> None:
        declared, keys = _declared(inputs)
        leaves, tree = jax.tree.flatten(outputs, is_leaf=lambda each: isinstance(each, Node))
        if not leaves or not all(isinstance(leaf, Node) for leaf in leaves):
            msg = f"the outputs of a graph must be a node, or a tuple, list or dict of nodes; got {outputs!r}"
            if any(isinstance(leaf, Layer) or getattr(leaf, "takes_nodes", False) for leaf in leaves):
                msg += ". Call a layer on nodes, or on nothing if its function takes only parameters"
            raise FuncconvError(msg)
        check_name(name)
        rows, places, numbers = flatten(declared, leaves)
        signature = tuple(InputRow(each.name, each.shape, each.dtype) for each in declared)
        if any(row.op.undecided for row in rows):  # entries have names now, so more shapes are known
            known = _infer(rows, [each.spec for each in declared])
            undecided = {id(row.op) for row, (op, *_) in zip(rows, known, strict=True) if op.undecided}
            rows = tuple(
                row if id(row.op) in undecided else row._replace(op=op)
                for row, (op, *_) in zip(rows, known, strict=True)
            )
        self._set(signature, keys, rows, tuple(numbers[leaf] for leaf in leaves), tree, name, places)

    def _set(
        self,
        signature: tuple[InputRow, ...],
        keys: tuple[Any, ...] | None,
        rows: tuple[Row, ...],
        results: tuple[int, ...],
        tree: Any,
        name: str | None,
        places: Sequence[Place | None],
    ) -> None:
        self._signature, self._keys, self._rows, self._results = signature, keys, rows, results
        self._tree, self._name, self._places = tree, name, tuple(places)
        self._paths = tuple(tuple(row.params.split("/")) if row.params else None for row in rows)
        self._entries = tuple(dict.fromkeys(path for path in self._paths if path))
        stateful = (path for row, path in zip(rows, self._paths, strict=True) if row.op.stateful and path)
        self._stateful = tuple(dict.fromkeys(stateful))
        self._value = (signature, keys, rows, results, tree, name)
        self._hash = hash(self._value)
        self._undecided = any(row.op.undecided for row in rows)
        self._checked: set[Any] = set()  # the shapes of parameters that suit the rows

    @property
    def name(self) -> str | None:
        """The name of its subtree, where it is a part of another graph."""
        return self._name

    @property
    def rows(self) -> tuple[Row, ...]:
        """The nodes in the order of evaluation, as `(name, op, inputs, params)`.

        Values are numbered, first the inputs, then the rows; `inputs` are such numbers, and `params` is the path of
        the node's entry in the parameters, or None.
        """
        return self._rows

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(each.name for each in self._signature)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all values: the inputs, then the nodes in the order of evaluation."""
        return self.inputs + tuple(row.name for row in self._rows)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the nodes whose values are the results."""
        nodes = self.nodes
        return tuple(nodes[i] for i in self._results)

    @property
    def entries(self) -> tuple[str, ...]:
        """The paths of the parameter entries, in the order of first use."""
        return tuple("/".join(path) for path in self._entries)

    def init(self, key: Array, /, **given: Any) -> dict[str, Any]:
        """Draw the parameters.

        Every shape is inferred from those of the inputs. The key of an entry is folded from its name, so that adding a
        layer changes neither those before it nor those that have a name of their own.

        Args:
            key: a JAX random key.
            **given: entries that are taken as they are: those that no node draws must be among them. What belongs to
                a nested graph is given as a dict.

        Returns:
            A tree of nested dicts, one entry for each distinct layer.

        Raises:
            FuncconvError: if an op does not accept what comes to it, one entry would need two shapes, or an entry is
                missing or unknown.
        """
        _entries.check(given, self._entries, partial=True)
        params: dict[str, Any] = {}
        users: dict[Any, str] = {}
        specs: list[Any] = self._specs()
        for row, path in zip(self._rows, self._paths, strict=True):
            xs = [specs[i] for i in row.inputs]
            entry = None
            if path and path in users:
                entry = _entries.get(params, path)
                _check_shapes(row, f"as node {users[path]!r} has them", entry, xs)
            elif path:
                entry = self._entry(row, path, key, given, xs)
                _entries.put(params, path, entry)
                users[path] = row.name
            specs.append(_inferred(row, entry, xs))
        return params

    def init_state(self, params: Params | None = None) -> dict[str, Any]:
        """Return the state that the graph starts from, such as the running figures of its batch norms.

        Args:
            params: as for `shapes`.

        Returns:
            A tree like the parameters, with an entry for each layer that keeps a state: one for all uses of a layer.

        Raises:
            FuncconvError: as `init` does.

        Example:
            >>> import funcconv as fc, jax
            >>> x, norm = fc.Input("x", (4,)), fc.BatchNorm()
            >>> jax.tree.map(lambda array: array.shape, fc.Graph(x, norm(norm(x))).init_state())
            {'batch_norm1': {'mean': (4,), 'var': (4,)}}
        """
        if not self._stateful:
            return {}
        shapes, nodes = self.shapes(params), self.nodes
        state: dict[str, Any] = {}
        for row, path in zip(self._rows, self._paths, strict=True):
            if path in self._stateful:
                operands = (shapes[nodes[i]].shape for i in row.inputs)
                _entries.put(state, path, row.op.first_state(*operands))
        return state

    def shapes(self, params: Params | None = None) -> dict[str, Any]:
        """Return the shape and dtype of every node's value, without batch axes; nothing is computed.

        Args:
            params: the parameters or their shapes, needed where nothing draws them.

        Returns:
            A `jax.ShapeDtypeStruct`, or a tree of them, by node's name.

        Raises:
            FuncconvError: as `init` does.

        Example:
            >>> import funcconv as fc
            >>> x = fc.Input("x", (28, 28, 1))
            >>> fc.Graph(x, fc.serial(fc.Conv(8, 5), fc.max_pool)(x)).shapes()["conv1"].shape
            (24, 24, 8)
        """
        specs: list[Any] = self._specs()
        for row, entry in zip(self._rows, self.entry_shapes(params), strict=True):
            xs = [specs[i] for i in row.inputs]
            specs.append(_inferred(row, entry, xs))
        return dict(zip(self.nodes, specs, strict=True))

    def entry_shapes(self, params: Params | None = None) -> list[Any]:
        """Return the shapes and dtypes of the parameters that each row uses.

        Args:
            params: as for `shapes`.

        Returns:
            A tree for each of `graph.rows`, None where it uses none.

        Raises:
            FuncconvError: as `init` does.
        """
        if params is None:
            params = jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))
        return [jax.tree.map(spec, entry) for entry in self._uses(params)]

    def _specs(self) -> list[Any]:
        return [
            jax.ShapeDtypeStruct(each.shape, each.dtype or jnp.result_type(float))  # type: ignore[no-untyped-call]
            for each in self._signature
        ]

    def _entry(self, row: Row, path: _entries.Path, key: Array, given: Params, xs: Sequence[Any]) -> Any:
        """Return what was given for a row, or draw it."""
        try:
            entry = _entries.get(given, path)
        except KeyError:
            pass
        else:
            _check_shapes(row, "as given", entry, xs)
            return entry
        if not row.op.draws:
            msg = (
                f"node {row.name!r}: nothing draws its parameters {row.params!r}; give them, "
                f"graph.init(key, {path[0]}=...), or an init= to the first node that uses them"
            )
            raise FuncconvError(msg)
        for name in path:
            key = fold_in_name(key, name)
        return _reported(row, xs, lambda: row.op.draw(key, *shapes(xs)))

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Evaluate on a parameter tree and arrays, `graph(params, *xs)`; or apply to nodes, as a layer.

        Args:
            *args: the parameters and the inputs in the order of declaration, each with the same batch axes in front
                (none, one or several); where the inputs were declared as a dict, a dict will do. Or nodes.
            **named: instead of inputs by position, all inputs by name: `graph(params, left=a, right=b)`.

        Returns:
            The outputs, in the structure in which they were declared.

        Raises:
            FuncconvError: if the parameters or inputs are not those of the graph, or an op refuses what comes to it;
                the text names the node.
        """
        if any(isinstance(each, Node) for each in (*args, *named.values())):
            return self._on_nodes(self._ordered(args, named))
        if not args:
            msg = f"a graph is called as graph(params, *xs), with {self._wanted()}"
            raise FuncconvError(msg)
        params, *xs = args
        if self._stateful:
            kept = ", ".join(map("/".join, self._stateful))
            msg = f"the graph keeps a state ({kept}): call graph.apply(params, state, *xs)"
            raise FuncconvError(msg)
        values, _ = self._evaluate(params, self._arrays(xs, named), self._mode({}))
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
            state: of the layers that keep one, `{}` where there is none; `init_state` makes the first.
            *xs: the inputs.
            key: a JAX random key, needed in training where a node draws. Every node has its own, folded from its name.
            train: whether to behave as in training; a Python bool.
            **named: instead of `*xs`, all inputs by name.

        Returns:
            `(outputs, state)`. Where a layer is used more than once, its uses change its state one after another, in
            the order of evaluation. Outside of training the state comes back as it is.

        Raises:
            FuncconvError: as a call does, or if the state is not that of the graph, or a node has no key to draw with.

        Example:
            >>> import funcconv as fc, jax, jax.numpy as jnp
            >>> x = fc.Input("x", (8, 8, 3))
            >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.Dropout(0.2))(x))
            >>> params, state = graph.init(jax.random.key(0)), graph.init_state()
            >>> y, state = graph.apply(params, state, jnp.ones((2, 8, 8, 3)), key=jax.random.key(1), train=True)
            >>> y.shape, state["batch_norm1"]["var"].shape
            ((2, 6, 6, 4), (4,))
        """
        mode = self._mode(state)._replace(key=key, train=train)
        values, states = self._evaluate(params, self._arrays(xs, named), mode)
        return jax.tree.unflatten(self._tree, [values[i] for i in self._results]), _nested(states)

    def _mode(self, state: Mapping[str, Any] | None) -> Mode:
        """Return how the graph is evaluated with a state."""
        if state is None and self._stateful:
            msg = f"the graph keeps a state ({', '.join(map('/'.join, self._stateful))}): give it, state=..."
            raise FuncconvError(msg)
        state = {} if state is None else state
        _entries.check(state, self._stateful, what="the state")
        return Mode({"/".join(path): _entries.get(state, path) for path in self._stateful})

    def _evaluate(self, params: Params, xs: Sequence[Array], mode: Mode) -> tuple[list[Any], dict[str, Any]]:
        """Return every value, the inputs and then the rows, and the next states."""
        return evaluate(self._rows, self._uses(params, xs), xs, self._batch(xs), mode)

    def _uses(self, params: Params, xs: Sequence[Array] | None = None) -> list[Any]:
        """Return the entry that each row uses, None where it uses none; of shapes that suit the row and the inputs."""
        _entries.check(params, self._entries)
        uses = [_entries.get(params, path) if path else None for path in self._paths]
        leaves, tree = jax.tree.flatten(uses)
        key = (tree, *map(np.shape, leaves))
        if key not in self._checked:
            self._check_entries(uses)
            self._checked.add(key)
        if xs is not None:
            if any(type(leaf) is np.ndarray and not is_kept(leaf.dtype) for leaf in leaves):
                _warn_of_narrowing(params)
            if self._undecided:
                self._check_undecided(uses, xs)
        return uses

    def _check_entries(self, uses: Sequence[Any]) -> None:
        """Refuse parameters of other shapes than the layers draw, as far as these are known."""
        specs = self._specs()
        for row, entry, (op, expected, xs) in zip(self._rows, uses, _infer(self._rows, specs), strict=True):
            if expected is not None and not _fits(entry, expected):
                raise FuncconvError(_shape_error(row, op, entry, expected, xs))

    def _check_undecided(self, uses: Sequence[Any], xs: Sequence[Array]) -> None:
        """Refuse functions that compute something else on a batch; the shapes that they need are known only now."""
        values: list[Any] = [
            jax.ShapeDtypeStruct(each.shape, x.dtype)  # type: ignore[no-untyped-call]
            for each, x in zip(self._signature, xs, strict=True)
        ]
        for row, entry in zip(self._rows, (jax.tree.map(spec, entry) for entry in uses), strict=True):
            operands = [values[i] for i in row.inputs]
            op = value = None
            if all(x is not None for x in operands):
                op = _in_node(row, lambda row=row, entry=entry, xs=operands: row.op.decided(entry, xs))
                value = _unless_it_fails(lambda op=op, entry=entry, xs=operands: result(op, entry, xs))
            values.append(value)

    def _ordered(self, xs: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any]:
        """Return the inputs, given by position or by name, in the order of declaration."""
        if not named:
            return xs
        names = [str(key) for key in (self.inputs if self._keys is None else self._keys)]
        for name in named:
            if name not in names:
                msg = f"{name!r} is neither an option nor an input of the graph{suggest(name, [*names, *_OPTIONS])}"
                raise _KeywordError(msg)
        if xs or len(named) < len(names):
            msg = (
                f"the graph takes {self._wanted()}, all by position or all by name "
                f"({', '.join(f'{name}=...' for name in names)}); got {len(xs)} by position and {sorted(named)} by "
                "name. An input that is called like an option of the method must be given by position"
            )
            raise FuncconvError(msg)
        return [named[name] for name in names]

    def _arrays(self, xs: Sequence[Any], named: Mapping[str, Any] = _NONE) -> list[Array]:
        """Return the inputs in the order of declaration, as arrays."""
        xs = self._ordered(xs, named)
        if self._keys is not None and len(xs) == 1 and isinstance(xs[0], Mapping):
            if set(xs[0]) != set(self._keys):
                msg = f"the graph takes a dict of inputs with the keys {list(self._keys)}; got {list(xs[0])}"
                raise FuncconvError(msg)
            xs = [xs[0][name] for name in self._keys]
        if len(xs) != len(self._signature):
            msg = f"the graph takes {self._wanted()} after the parameters; got {len(xs)}"
            raise FuncconvError(msg)
        return [as_array("graph", f"input {each.name!r}", x) for each, x in zip(self._signature, xs, strict=True)]

    def _batch(self, xs: Sequence[Array]) -> Shape:
        """Return the batch axes, which all inputs have in common."""
        batches = {}
        for (name, shape, _), x in zip(self._signature, xs, strict=True):
            k = x.ndim - len(shape)
            if k < 0 or x.shape[k:] != shape:
                given, hint = x.shape[max(k, 0) :], ""
                if len(shape) > 1 and given == (shape[-1], *shape[:-1]):
                    hint = f"; the channels look first: pass jnp.moveaxis(x, {-len(shape)}, -1)"
                elif len(shape) > 1 and given == (*shape[1:], shape[0]):
                    hint = f"; the channels look last, but are declared first: pass jnp.moveaxis(x, -1, {-len(shape)})"
                msg = f"input {name!r} must have shape (*batch, {', '.join(map(str, shape))}); got {x.shape}{hint}"
                raise FuncconvError(msg)
            batches[name] = x.shape[:k]
        if len(set(batches.values())) > 1:
            msg = f"all inputs must have the same batch axes; got {batches}"
            raise FuncconvError(msg)
        return next(iter(batches.values()), ())

    def _on_nodes(self, args: Sequence[Node]) -> Any:
        """Repeat the rows as nodes of the graph that is being declared."""
        check_nodes(self, args)
        if len(args) != len(self._signature):
            msg = f"the graph takes {self._wanted()}; it was called on {len(args)} nodes"
            raise FuncconvError(msg)
        nodes: list[Node] = list(args)
        uses: dict[Any, object] = {}  # this use of the graph, or for each use of a graph within, one of its own
        for row, place in zip(self._rows, self._places, strict=True):
            if self.name is not None:
                place = Place(self, uses.setdefault(None, object()), row.name, row.params)
            elif place is not None:
                place = place._replace(use=uses.setdefault(place.use, object()))
            nodes.append(Application(row.op, [nodes[i] for i in row.inputs], row.op.name, place))
        return jax.tree.unflatten(self._tree, [nodes[i] for i in self._results])

    def subgraph(self: Same, *names: str) -> Same:
        """Return a part as a network of its own.

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
        nested: dict[str, Same] = {place.graph.name: place.graph for place in self._places if place}
        if len(names) == 1 and names[0] not in self.nodes:
            first, _, rest = names[0].partition("/")
            if first in nested:
                return nested[first].subgraph(rest) if rest else nested[first]
        known = {name: i for i, name in enumerate(self.nodes)}
        for name in names:
            if name not in known:
                msg = f"the graph has no node {name!r}{suggest(name, [*nested, *known])}"
                raise FuncconvError(msg)
        results = [known[name] for name in names]
        return self._part(results, jax.tree.structure(names[0] if len(names) == 1 else names))

    def _part(self: Same, results: Sequence[int], tree: Any) -> Same:
        """Return the graph of those values that the results need."""
        first = len(self._signature)
        needed = set(results)
        for i in reversed(range(len(self._rows))):
            if first + i in needed:
                needed.update(self._rows[i].inputs)
        new = {old: i for i, old in enumerate(sorted(needed))}
        rows = [
            (row, place) for i, (row, place) in enumerate(zip(self._rows, self._places, strict=True), first) if i in new
        ]
        part = object.__new__(type(self))
        part._set(
            tuple(each for i, each in enumerate(self._signature) if i in new),
            None,
            tuple(row._replace(inputs=tuple(new[i] for i in row.inputs)) for row, _ in rows),
            tuple(new[i] for i in results),
            tree,
            None,
            [place for _, place in rows],
        )
        return part

    def select(self, params: Params) -> dict[str, Any]:
        """Return those entries of a parameter tree that this graph needs.

        Args:
            params: the tree of a larger graph. Where this graph has a name, and the tree an entry of that name, they
                are taken from there.

        Returns:
            A tree of the same arrays.

        Raises:
            FuncconvError: if an entry is missing.
        """
        return self._selected(params, self._entries)

    def select_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return those entries of a state that this graph needs.

        Args:
            state: of a larger graph, as for `select`.

        Returns:
            A tree of the same arrays.

        Raises:
            FuncconvError: if an entry is missing.
        """
        return self._selected(state, self._stateful)

    def _selected(self, tree: Mapping[str, Any], paths: Sequence[_entries.Path]) -> dict[str, Any]:
        if self.name is not None and self.name in tree and all(path[0] != self.name for path in paths):
            tree = tree[self.name]
        return _entries.select(tree, paths)

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
        rows = tuple(row._replace(params=row.name, op=_own(row)) if row.params else row for row in self._rows)
        part = object.__new__(type(self))
        part._set(self._signature, self._keys, rows, self._results, self._tree, None, [None] * len(rows))
        return part

    def copies(self, params: Params) -> dict[str, Any]:
        """Return the parameters of `graph.unshared()`: each use has the entry that it shares.

        Args:
            params: as for a call.

        Returns:
            A tree with one entry for each node that has parameters, of the same arrays.

        Raises:
            FuncconvError: if the parameters are not those of the graph.
        """
        return _nested(
            {row.name: entry for row, entry in zip(self._rows, self._uses(params), strict=True) if row.params}
        )

    def copies_of_state(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the state of `graph.unshared()`: each use has the entry that it shares.

        Args:
            state: of this graph; None where it keeps none.

        Returns:
            A tree with one entry for each node that keeps a state, of the same arrays.

        Raises:
            FuncconvError: if the state is not that of the graph.
        """
        states = self._mode(state).states
        return _nested({row.name: states[str(row.params)] for row in self._rows if row.op.stateful})

    def _parts(self) -> tuple[Any, ...]:
        # Not the hash: in another process it is another. Not the tree of JAX, which knows no types of the user's.
        outputs = jax.tree.unflatten(self._tree, self._results)
        return type(self), self._signature, self._keys, self._rows, outputs, self._name, self._places

    def __reduce__(self) -> Any:
        for row in self._rows:
            try:
                row.op.__reduce__()
            except pickle.PicklingError as error:
                msg = f"node {row.name!r}: {error}"
                raise pickle.PicklingError(msg) from None
        return _restored, self._parts()

    def __copy__(self: Same) -> Same:
        return _restored(*self._parts())  # type: ignore[no-any-return]

    def __deepcopy__(self: Same, memo: dict[int, Any]) -> Same:
        return _restored(*copy.deepcopy(self._parts(), memo))  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        names = self.nodes
        lines = [f"{each.name}: {each.shape}" for each in self._signature]
        for row in self._rows:
            entry = "" if row.params in (None, row.name) else f" with {row.params}"
            lines.append(f"{row.name} = {row.op!r}({', '.join(names[i] for i in row.inputs)}){entry}")
        title = f"Graph {self.name}" if self.name else "Graph"
        return "\n  ".join([f"{title}:", *lines, f"-> {', '.join(self.outputs)}"])

    def _wanted(self) -> str:
        count = len(self._signature)
        return f"{count} input{'s' * (count != 1)} ({', '.join(self.inputs)})"


def _restored(kind: type[Same], signature: Any, keys: Any, rows: Any, outputs: Any, name: Any, places: Any) -> Same:
    graph = object.__new__(kind)
    results, tree = jax.tree.flatten(outputs)
    graph._set(signature, keys, rows, tuple(results), tree, name, places)
    return graph


def _own(row: Row) -> Layer:
    """Return the layer of a row as another object, and under no name that other rows have."""
    params = None if row.op.draws else row.name.replace("@", "_").replace("/", "_")
    return replace(row.op, name=None, params=params)


def _declared(inputs: Any) -> tuple[list[Input], tuple[Any, ...] | None]:
    """Return the inputs in order, and the keys of a dict of them."""
    keys = tuple(inputs) if isinstance(inputs, Mapping) else None
    if keys is not None:
        inputs = tuple(inputs.values())
    declared = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    for each in declared:
        if not isinstance(each, Input):
            msg = f"the inputs of a graph must be an fc.Input, a tuple or a dict of them; got {each!r}"
            raise FuncconvError(msg)
    return declared, keys


def _infer(rows: Sequence[Row], specs: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Return the decided op of each row, the shapes of the parameters that it draws, and those of its inputs.

    A row is not known if it fails, or if nothing draws its parameters; then those that need its value are not.
    """
    values = list(specs)
    entries: dict[str | None, Any] = {None: None}
    known = []
    for row in rows:
        xs = [values[i] for i in row.inputs]
        op, own, value = row.op, None, None
        if all(x is not None for x in xs):
            own = _unless_it_fails(lambda op=op, xs=xs: drawn(op, xs)) if op.draws else None
            entry = entries.setdefault(row.params, own)
            if entry is not None or row.params is None:
                op = _in_node(row, lambda op=op, entry=entry, xs=xs: op.decided(entry, xs))
                value = _unless_it_fails(lambda op=op, entry=entry, xs=xs: result(op, entry, xs))
        values.append(value)
        known.append((op, own, xs))
    return known


def _unless_it_fails(infer: Any) -> Any:
    try:
        return infer()
    except Exception:  # Graph.init reports it
        return None


def _shape_error(row: Row, op: Layer, entry: Any, expected: Any, xs: Any) -> str:
    """Return the op's own error for parameters of these shapes, which says more, or else one that shows the shapes."""
    dtype = jax.tree.leaves((xs, expected))[0].dtype  # dtypes are not at issue here
    given = jax.tree.map(lambda leaf: spec(leaf).update(dtype=dtype), entry)
    try:
        result(op, given, xs)
    except FuncconvError as error:
        return retold(row.name, op, xs, error)
    except Exception:  # of a function of the user's
        return _other_shapes(row, "as given", entry, expected)
    return _other_shapes(row, "as given", entry, expected)


def _check_shapes(row: Row, whose: str, entry: Any, xs: Sequence[Any]) -> None:
    """Refuse parameters of other shapes than the layer would draw."""
    if not row.op.draws:
        return
    expected = _reported(row, xs, lambda: drawn(row.op, xs))
    if shapes(entry) != shapes(expected):
        raise FuncconvError(_other_shapes(row, whose, entry, expected))


def _other_shapes(row: Row, whose: str, entry: Any, expected: Any) -> str:
    return (
        f"node {row.name!r}: the parameters {row.params!r}, {whose}, have shapes {shapes(entry)}, "
        f"but it needs {shapes(expected)}"
    )


def _warn_of_narrowing(params: Params) -> None:
    """Tell that JAX rounds parameters of 64 bits, such as those that a file has, which it else does in silence."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if isinstance(leaf, np.ndarray) and not is_kept(leaf.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            warnings.warn(
                f"graph: the parameter {name!r} is a NumPy array of {leaf.dtype}, which JAX computes with in "
                f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}. Set jax_enable_x64, or cast the parameters yourself",
                stacklevel=5,
            )
            return


def _fits(entry: Any, expected: Any) -> bool:
    """Whether parameters have the shapes that a layer draws; a bias may be missing, which means that there is none."""
    if isinstance(entry, Mapping) and isinstance(expected, Mapping):
        given = {name: value for name, value in entry.items() if value is not None}
        wanted = {name: value for name, value in expected.items() if value is not None}
        return (
            given.keys() <= wanted.keys() <= given.keys() | {"bias"}
            and all(_fits(value, wanted[name]) for name, value in given.items())
        )  # fmt: skip
    given_shapes, wanted_shapes = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (entry, expected))
    return given_shapes == wanted_shapes


def _inferred(row: Row, entry: Any, xs: Sequence[Any]) -> Any:
    """Return the shape and dtype of a row's value, without batch axes; what is alike is traced once."""
    entry = jax.tree.map(spec, entry)
    op = _in_node(row, lambda: row.op.decided(entry, xs))
    return _reported(row, xs, lambda: result(op, entry, xs))


def _nested(states: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, state in states.items():
        _entries.put(tree, tuple(path.split("/")), state)
    return tree


def _in_node(row: Row, infer: Any) -> Any:
    """Call, and retell errors of funcconv as errors of the node."""
    try:
        return infer()
    except FuncconvError as error:
        msg = f"node {row.name!r}: {error}"
        raise FuncconvError(msg) from None


def _reported(row: Row, xs: Sequence[Any], infer: Any) -> Any:
    """Call, and retell what goes wrong as an error of the node."""
    try:
        return infer()
    except Exception as error:
        raise FuncconvError(retold(row.name, row.op, xs, error)) from (
            None if isinstance(error, FuncconvError) else error
        )
