"""A backward pass through a graph, one node after another, with other rules at some nodes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .._common.dtypes import wide
from .._common.types import Array
from .._graph.evaluate.rows import Mode, evaluate
from .._graph.name.flatten import Row
from ._rows import needed

Cotangents: TypeAlias = list[Array]  # by the inexact arrays of a value
Pullback: TypeAlias = Callable[[Cotangents], list[Cotangents]]  # from a value to the operands of its row
Rule: TypeAlias = Callable[[Cotangents, Pullback], list[Cotangents]]


def pull(f: Callable[..., Any], *operands: Any) -> tuple[Any, Pullback]:
    """Return the value of a function of trees, and its derivative backwards.

    Only inexact arrays have cotangents, in the order in which they are in the tree.
    """
    leaves = [jax.tree.flatten(operand) for operand in operands]
    moving = [[leaf for leaf in own if _is_inexact(leaf)] for own, _ in leaves]

    def inexact(moved: Sequence[Sequence[Array]]) -> tuple[list[Array], Any]:
        trees = []
        for (own, tree), some in zip(leaves, moved, strict=True):
            rest = iter(some)
            trees.append(jax.tree.unflatten(tree, [next(rest) if _is_inexact(leaf) else leaf for leaf in own]))
        value = f(*trees)
        return [leaf for leaf in jax.tree.leaves(value) if _is_inexact(leaf)], value

    _, pullback, value = jax.vjp(inexact, moving, has_aux=True)
    return value, lambda cotangents: pullback(cotangents)[0]


def backward_by_rows(
    graph: Any,
    entries: Sequence[Any],
    xs: Sequence[Any],
    mode: Mode,
    batch: tuple[int, ...],
    rule_of: Callable[[Row, Any, Sequence[Any]], Rule | None],
    of: Callable[[list[Any]], Array],
) -> list[Cotangents | None]:
    """Return the cotangents of the inputs, for a sum of numbers that are computed from the outputs.

    Args:
        graph: a graph.
        entries: the parameters of each row.
        xs: the inputs, arrays or `Masked`.
        mode: how the graph is evaluated.
        batch: the batch axes.
        rule_of: returns the rule of a row with its parameters and operands, None for its derivative.
        of: a function of the outputs.

    Returns:
        For each input the cotangents of its arrays, None if the numbers do not depend on it.
    """
    values, first, wanted = list(xs), len(xs), needed(graph)
    steps: dict[int, tuple[Pullback, Rule | None]] = {}
    for i, (row, entry) in enumerate(zip(graph._rows, entries, strict=True), first):
        value = None
        if i in wanted:
            operands = [values[k] for k in row.inputs]
            value, pullback = pull(partial(_value, row, entry, mode, batch), *operands)
            steps[i] = pullback, rule_of(row, entry, operands)
        values.append(value)

    totals: dict[int, Cotangents] = {}

    def add(numbers: Sequence[int], cotangents: Sequence[Cotangents]) -> None:
        for number, own in zip(numbers, cotangents, strict=True):
            terms = [leaf.astype(wide(leaf.dtype)) for leaf in own]
            totals[number] = [a + b for a, b in zip(totals[number], terms, strict=True)] if number in totals else terms

    numbers, pullback = pull(lambda *outputs: of(list(outputs)), *(values[i] for i in graph._results))
    add(graph._results, pullback([jnp.ones_like(numbers)]))
    for i, (pullback, rule) in reversed(steps.items()):
        if i in totals:
            leaves = [leaf for leaf in jax.tree.leaves(values[i]) if _is_inexact(leaf)]
            cotangents = [total.astype(leaf.dtype) for total, leaf in zip(totals[i], leaves, strict=True)]
            add(graph._rows[i - first].inputs, rule(cotangents, pullback) if rule else pullback(cotangents))
    return [totals.get(i) for i in range(first)]


def _value(row: Row, entry: Any, mode: Mode, batch: tuple[int, ...], *operands: Any) -> Any:
    """Return the value of one row, in a graph of this row alone."""
    alone = row._replace(inputs=tuple(range(len(operands))))
    return evaluate([alone], [entry], operands, batch, mode)[0][-1]


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
