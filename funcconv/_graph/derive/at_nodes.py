"""Derivatives at the nodes of a graph.

A value can be edited on its way without changing the graph: adding a zero to it, and differentiating by that zero,
tells what the rest of the graph makes of a change there; another value in its place makes the rest a function of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Params
from ..evaluate.rows import Run
from ..name import entries as _entries
from ..name.flatten import Row


class Backward(NamedTuple):
    """What `Graph.backward` returns.

    Attributes:
        nodes: the derivative of the loss by the value of each node, by name; None by what is not floating.
        params: the derivative by the parameters.
    """

    nodes: dict[str, Any]
    params: Any

    def __repr__(self) -> str:
        arrays = len(jax.tree.leaves(self.params))
        return f"Backward: derivatives by {len(self.nodes):,} nodes and {arrays:,} parameter arrays"


def backward(run: Run, names: Sequence[str], results: Sequence[int], params: Params, cotangents: Any) -> Backward:
    """Return the derivatives by all values and by the parameters, for given cotangents of the results."""
    # A zero that is added to a value has the derivative of everything that the value reaches.
    zeros = [jax.tree.map(_zero, value) for value in run(params, {})]

    def outputs(params: Params, changes: Sequence[Any]) -> list[Any]:
        values = run(params, {i: partial(_changed, change=change) for i, change in enumerate(changes)})
        return [values[i] for i in results]

    _, pullback = jax.vjp(outputs, params, zeros)
    by_params, by_values = pullback(cotangents)
    return Backward(dict(zip(names, by_values, strict=True)), by_params)


def jacobian(run: Run, of: int, wrt: int | _entries.Path, params: Params) -> Any:
    """Return the derivative of a value by another, or by a part of the parameters, along all paths."""
    if isinstance(wrt, int):
        return _jacobian(lambda value: run(params, {wrt: lambda _: value})[of], run(params, {})[wrt])
    return _jacobian(lambda part: run(_entries.replaced(params, wrt, part), {})[of], _entries.get(params, wrt))


def own_jacobian(run: Callable[..., Any], row: Row, entry: Any, inputs: Sequence[Any], wrt: int | _entries.Path) -> Any:
    """Return the derivative of one operation by one of its inputs, wherever it takes it, or by a part of its entry."""
    if isinstance(wrt, int):

        def by_input(value: Any) -> Any:
            xs = (value if i == wrt else x for i, x in zip(row.inputs, inputs, strict=True))
            return run(entry, *xs)

        return _jacobian(by_input, inputs[row.inputs.index(wrt)])
    return _jacobian(lambda part: run(_entries.replaced(entry, wrt, part), *inputs), _entries.get(entry, wrt))


def example(value: Any, index: tuple[Any, ...]) -> Any:
    """Return the value of one example of a batch."""
    return jax.tree.map(lambda batch: batch[index], value)


def with_example(value: Any, index: tuple[Any, ...], one: Any) -> Any:
    """Return the value of a batch with that of one example replaced."""
    return jax.tree.map(lambda batch, array: batch.at[index].set(array), value, one)


def one_example(run: Run, index: tuple[Any, ...]) -> Run:
    """Return the values of one example as its batch has them: the other examples stay as they are."""

    def run_one(params: Params, edits: Mapping[int, Callable[[Any], Any]]) -> list[Any]:
        def edited(whole: Any, edit: Callable[[Any], Any]) -> Any:
            return with_example(whole, index, edit(example(whole, index)))

        values = run(params, {i: partial(edited, edit=edit) for i, edit in edits.items()})
        return [example(value, index) for value in values]

    return run_one


def _jacobian(f: Callable[[Any], Any], at: Any) -> Any:
    """Return the Jacobian in the mode that needs fewer passes."""
    results = jax.eval_shape(f, at)
    for option, tree in (("wrt", at), ("of", results)):
        for leaf in jax.tree.leaves(tree):
            if not _is_inexact(leaf):
                msg = (
                    f"jacobian: of= and wrt= must have floating values; the value of {option}= is "
                    f"{jnp.result_type(leaf)}. Choose another node or other parameters"
                )
                raise FuncconvError(msg)
    arguments, results = (sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)) for tree in (at, results))
    # Forward mode takes a pass for each argument, reverse mode one for each result.
    return (jax.jacfwd if arguments <= results else jax.jacrev)(f)(at)


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _zero(leaf: Any) -> Any:
    # Integers have no derivative. None leaves them out of the tree by which JAX differentiates.
    return jnp.zeros_like(leaf) if _is_inexact(leaf) else None


def _changed(value: Any, change: Any) -> Any:
    return jax.tree.map(lambda leaf, by: leaf if by is None else leaf + by, value, change)
