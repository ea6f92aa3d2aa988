"""The layer that computes copies of a block one after another, by one loop."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._ops.masks import Masked
from ..declare.inference import result, spec
from ..declare.layer import Layer
from ..evaluate.inside import NOTHING, InnerEdit, Inside, for_copies
from ..evaluate.parts import Paths
from ..evaluate.rows import Mode, evaluate
from ..infer.init import draw_parameters, first_state
from ..infer.rows import in_node, none_if_it_fails
from ..masked.values import unmasked
from ..name import entries as _entries
from ..name.block import INPUT, Block
from ..name.flatten import InputRow
from ..use.fold_norms import fold_norms
from ..use.graph import Graph
from ..use.structure import from_parts


@dataclass(frozen=True, repr=False)
class Repeat(Layer):
    """`n` copies of a block, one after another. Each copy has its own parameters, along the first axis of each array.

    Attributes:
        block: the rows of the block.
        n: the number of copies.
        remat: what is computed again for derivatives: None, `"block"`, or a policy of `jax.checkpoint`.
    """

    block: Block
    n: int
    remat: str | Callable[..., Any] | None = field(default=None, kw_only=True)

    takes_masked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            msg = f"repeat: n, the number of copies, must be a positive integer; got {self.n!r}"
            raise FuncconvError(msg)
        if not (self.remat in (None, "block") or callable(self.remat)):
            msg = f'repeat: remat must be None, "block", or a policy such as fc.checkpoint_policy; got {self.remat!r}'
            raise FuncconvError(msg)

    def __repr__(self) -> str:
        name = getattr(self.remat, "__name__", repr(self.remat))
        options = [f"remat={name}"] if self.remat else []
        options += [f"{name}={value!r}" for name in ("name", "params") if (value := getattr(self, name))]
        return f"repeat({', '.join([f'[{self.block!r}]', str(self.n), *options])})"

    def __reduce__(self) -> Any:
        for row in self.block.rows:
            row.op.__reduce__()  # whose error says what cannot be pickled
        return super().__reduce__()

    @property
    def copies(self) -> int:
        """The number of copies."""
        return self.n

    @property
    def parametric(self) -> bool:  # type: ignore[override]
        """Whether a layer of the block has parameters."""
        return any(self.block.paths)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether a layer of the block keeps a state."""
        return any(row.op.stateful for row in self.block.rows)

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether a layer of the block draws in training."""
        return any(row.op.random for row in self.block.rows)

    @property
    def batched(self) -> bool:
        """Whether a function of the block is written for a batch."""
        return any(getattr(row.op, "batched", False) for row in self.block.rows)

    @property
    def draws(self) -> bool:
        """Whether it can draw all its parameters."""
        first_rows = {row.params: row for row in reversed(self.block.rows) if row.params}
        return self.parametric and all(row.op.draws for row in first_rows.values())

    @property
    def undecided(self) -> bool:
        """Whether it is not known how a function of the block is written."""
        return self.block.undecided

    @cached_property
    def mapped(self) -> "Repeat":
        """The same copies, with functions that are written for one example; one object, so that its uses share."""
        return replace(self, block=self.block.mapped)

    def decided(self, entry: Any, xs: Any) -> "Repeat":
        """Return the copies with functions that are mapped over examples.

        Raises:
            FuncconvError: if a function computes something else when it is called on a batch.
        """
        if not self.undecided:
            return self
        values = list(xs)
        for row, own in zip(self.block.rows, self._row_entries(one_copy(entry)), strict=True):
            operands = [values[i] for i in row.inputs]
            op = in_node(row, lambda row=row, own=own, xs=operands: row.op.decided(own, xs))  # type: ignore[misc]
            value = none_if_it_fails(lambda op=op, own=own, xs=operands: result(op, own, xs))  # type: ignore[misc]
            if value is None:  # the error of the node is raised where the copies are evaluated
                return self
            values.append(value)
        return self.mapped

    def graph(self, x: Any) -> Graph:
        """Return the block as a graph, for an input of this shape and dtype."""
        key = (x.shape, x.dtype)
        if key not in self._graphs:
            self.check_input(x.shape)
            parts = (None, self.block.rows, (self.block.result,), jax.tree.structure(0), None)
            self._graphs[key] = from_parts(Graph, (InputRow(INPUT, *key),), *parts, [None] * len(self.block.rows))
        return self._graphs[key]

    @cached_property
    def _graphs(self) -> dict[Any, Graph]:
        return {}

    def check_input(self, shape: Shape) -> None:
        """Refuse other channels than those of the graph that is the block."""
        declared = self.block.declared
        if declared is not None and (len(shape), shape[-1:]) != (len(declared), declared[-1:]):
            msg = (
                f"repeat: the block is a graph that declares an input of shape {declared}, so the input must have as "
                f"many axes and as many channels (the last axis); got {shape}. Declare fc.Input with this shape, or "
                "pass the layers themselves, for example an fc.serial, which take inputs of any shape"
            )
            raise FuncconvError(msg)

    def draw_for(self, key: Array, *xs: Any) -> Any:
        """Draw the parameters of each copy with its own key."""
        graph = self.graph(*xs)
        return jax.vmap(lambda own: draw_parameters(graph, own, {}))(self._keys(key))

    def _keys(self, key: Array) -> Array:
        """Return a key for each copy, which does not depend on the number of copies."""
        return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(self.n, dtype=jnp.uint32))

    def first_state_for(self, entry: Any, *xs: Any) -> Any:
        """Return the state of the block once for each copy."""
        state = first_state(self.graph(*xs), one_copy(entry) or {})
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.n, *leaf.shape)), state)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the copies, in evaluation and from the first state."""
        (x,) = xs
        one = spec(x).update(shape=x.shape[len(batch) :])
        state = self.first_state_for(jax.tree.map(spec, params), one) if self.stateful else None
        return self.run(params, state, x, batch=batch, key=None, train=False)[0]

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Compute the copies, in training or not, and the next state of each."""
        return self.run_inside(params, state, *xs, batch=batch, key=key, train=train, inside=NOTHING)[:2]

    def run_inside(
        self,
        params: Any,
        state: Any,
        *xs: Any,
        batch: Shape,
        key: Array | None,
        train: bool,
        inside: Inside,
        evaluating: Paths = frozenset(),
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Compute the copies; return the values inside too, each with an axis of copies in front."""
        (x,) = xs
        if not hasattr(unmasked(x), "shape"):
            msg = (
                f"repeat: the input must be one array; got {type(x).__name__}. Select one with node[0] or node['name']"
            )
            raise FuncconvError(msg)
        self.check_input(unmasked(x).shape[len(batch) :])
        self._check_copies(params)
        keys = self._keys(key) if self.random and train and key is not None else None
        numbers = jnp.arange(self.n) if inside.edits else None
        step = self._step(batch, inside, evaluating, train=train)
        y, (states, found) = lax.scan(step, x, (params, state, keys, numbers), length=self.n)
        return y, states if train else state, found or {}

    def _step(self, batch: Shape, inside: Inside, evaluating: Paths, *, train: bool) -> Callable[..., Any]:
        """Return the function of one copy: one object for each kind of call, by which JAX knows compiled loops."""
        collects = inside.found is not None
        kind = (batch, evaluating, train, collects)
        if not inside.edits and kind in self._steps:
            return self._steps[kind]

        def step(x: Any, copy: Any) -> tuple[Any, Any]:
            params, state, key, number = copy
            edits = for_copies(inside.edits, self.block.rows, number, self.n) if inside.edits else {}
            within = Inside(edits, {} if collects else None) if edits or collects else NOTHING
            mode = Mode(key=key, train=train, evaluating=evaluating)
            y, state = self._of_one_copy(x, params, state, batch, mode, within)
            _check_result(x, y)
            return y, (state if train else None, within.found)

        if self.remat is not None:
            policy = self.remat if callable(self.remat) else None
            step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        if not inside.edits:
            self._steps[kind] = step
        return step

    @cached_property
    def _steps(self) -> dict[Any, Callable[..., Any]]:
        return {}

    def _of_one_copy(self, x: Any, params: Any, state: Any, batch: Shape, mode: Mode, inside: Inside) -> Any:
        states = {str(row.params): _entries.get(state, path) for row, path in self._kept() if _entries.has(state, path)}
        rows, entries, names = self.block.rows, self._row_entries(params), [row.name for row in self.block.rows]
        edits = {1 + names.index(name): _of_value(edit) for name, edit in inside.edits.items() if name in names}
        values, states = evaluate(rows, entries, [x], batch, mode._replace(states=states), edits, inside)
        if inside.found is not None:
            inside.found.update(zip(names, values[1:], strict=True))
        return values[self.block.result], _entries.tree_of(states)

    def with_folded_norms(self, params: Any, state: Any, x: Any) -> tuple["Repeat", Any, Any]:
        """Return the copies without the batch norms that follow a layer with a kernel."""
        graphs: list[Graph] = []

        def fold(params: Any, state: Any) -> tuple[Any, Any]:
            graph, params, state = fold_norms(self.graph(x), params, state)
            graphs.append(graph)
            return params, state

        params, state = jax.vmap(fold)(params, state)
        rows, results = graphs[0].rows, graphs[0]._results
        return replace(self, block=Block(rows, results[0], self.block.declared)), params, state

    def _kept(self) -> list[tuple[Any, Any]]:
        """Return the rows with a state, with the paths of their entries."""
        rows = zip(self.block.rows, self.block.paths, strict=True)
        return [(row, path) for row, path in rows if row.op.stateful]

    def _row_entries(self, params: Any) -> list[Any]:
        """Return the parameters of each row of one copy, None where it has none."""
        rows = zip(self.block.rows, self.block.paths, strict=True)
        return [
            _entries.get(params, path) if path and (not row.op.optional or _entries.has(params, path)) else None
            for row, path in rows
        ]

    def _check_copies(self, params: Any) -> None:
        rows = list(zip(self.block.rows, self.block.paths, strict=True))
        needed = [path for row, path in rows if path and not row.op.optional]
        _entries.check(params or {}, needed, optional=[path for row, path in rows if path and row.op.optional])
        for path, leaf in jax.tree.leaves_with_path(params):
            if jnp.shape(leaf)[:1] != (self.n,):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                msg = (
                    f"repeat: the first axis of each parameter has the size {self.n}, the number of copies; "
                    f"{name!r} has the shape {jnp.shape(leaf)}. Stack the arrays of the copies with jnp.stack"
                )
                raise FuncconvError(msg)


def one_copy(tree: Any) -> Any:
    """Return the shapes and dtypes of one copy's arrays, from those of all copies."""
    return jax.tree.map(lambda leaf: spec(leaf).update(shape=leaf.shape[1:]), tree)


def _of_value(edit: InnerEdit) -> Callable[[Any], Any]:
    return lambda value: edit(value, ())


def _check_result(x: Any, y: Any) -> None:
    """Refuse a block whose value cannot be the input of the next copy."""
    given, returned = _type(x), _type(y)
    if given != returned:
        msg = (
            f"repeat: the block must return an array of the shape and dtype of its input, {given}, which the next copy "
            f"takes; it returns {returned}. Choose its channels, padding and stride so that both agree"
        )
        raise FuncconvError(msg)


def _type(value: Any) -> str:
    if isinstance(value, Masked):
        return f"{_type(value.x)} with a mask {list(value.mask.shape)}"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
