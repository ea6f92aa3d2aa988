"""Whether a function means the same if it was written for one example as if it was written for a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from .same_programs import is_concrete, same_program

# Primes, so that no axis gets the size of the batch by accident when axes are split or merged.
_BATCH_SIZES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
_LEAST_LARGE_BATCH = 11  # the larger batch size is at least this, so that `x[:5]` crops the batch
_MOST_NUMBERS = 1 << 22  # numbers in all arrays of the programs that are run, at most
_LONGEST_KEPT_AXIS = 16  # axes of at most so many places keep their size where smaller arrays are compared


def check_readings(label: str, one: Callable[..., Any], whole: Callable[..., Any], params: Any, xs: Any) -> bool:
    """Refuse a function that computes different results for one example and for a batch.

    The function is traced both ways for two batch sizes that no axis has. Equal programs compute the same. Programs
    that differ are evaluated on random arrays. Where these would be large, smaller ones take their place, if the
    programs for them have the same operations; if they do not, the function is refused.

    Args:
        label: what messages call the function.
        one: `one(params, *xs)` for arrays of one example.
        whole: the same function, for arrays with one batch axis in front.
        params: the shapes of the parameters, None if there are none.
        xs: the shapes of the inputs of one example.

    Returns:
        Whether the function can be traced for one example.

    Raises:
        FuncconvError: if the results differ; the text shows the difference and the choices.
    """
    axes = {size for leaf in jax.tree.leaves((params, xs)) for size in leaf.shape}
    small = next(size for size in _BATCH_SIZES if size not in axes)
    large = next(size for size in _BATCH_SIZES if size not in axes and size >= max(_LEAST_LARGE_BATCH, small + 1))
    mapped = jax.vmap(one, in_axes=(None, *[0] * len(xs)))
    # A rank is promoted in one way to read the function and not in the other; and rounding is to be no difference.
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
        for i, size in enumerate((small, large)):
            batch = jax.tree.map(lambda leaf, n=size: _struct((n, *leaf.shape), leaf.dtype), xs)
            # The function is the user's. Whatever it raises, it cannot be written for what it was called on.
            try:
                by_example, example_type = jax.make_jaxpr(mapped, return_shape=True)(params, *batch)
            except Exception:
                return False
            try:
                by_batch, batch_type = jax.make_jaxpr(whole, return_shape=True)(params, *batch)
            except Exception:
                return True
            difference = _type_difference(example_type, batch_type) or (
                None
                if same_program(by_example, by_batch)
                else _result_difference((mapped, whole), (by_example, by_batch), (params, *batch), i)
            )
            if difference:
                raise FuncconvError(_message(label, xs, size, example_type, batch_type, difference))
    return True


def _message(label: str, xs: Any, size: int, by_example: Any, by_batch: Any, difference: str) -> str:
    shapes = ", ".join(map(str, _shapes(xs)))
    batches = ", ".join(str((size, *leaf.shape)) for leaf in jax.tree.leaves(xs))
    leaves = jax.tree.leaves(by_batch)
    keeps = all(leaf.shape[:1] == (size,) for leaf in leaves)
    no_batch = "" if keeps else "; this is no batch of results, so batched=True is not possible"
    return (
        f"{label}: the function gives different results if it is written for one example than if it is written for a "
        f"batch. For a batch of {size} inputs of shape {shapes}:\n"
        f"  called on each example, {shapes}: the results have shape {_shapes(by_example)}\n"
        f"  called once on the batch, {batches}: the result has shape {_shapes(by_batch)}{no_batch}\n"
        f"{difference}Say which you mean: fc.node(function, ..., batched=False) is written for one example, "
        "fc.node(function, ..., batched=True) for a batch. Or count axes from the end, as in x.mean((-3, -2)) or "
        "axis=-1, which means the same for both."
    )


def _type_difference(by_example: Any, by_batch: Any) -> str | None:
    """Return what differs in the structures, shapes and dtypes of two results, None if nothing."""
    structures: list[Any] = [jax.tree.structure(result) for result in (by_example, by_batch)]
    if structures[0] != structures[1]:
        return "The structures of the results differ.\n"
    pairs = list(zip(jax.tree.leaves(by_example), jax.tree.leaves(by_batch), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return "The shapes differ.\n"
    if any(a.dtype != b.dtype for a, b in pairs):
        return f"The dtypes differ: {', '.join(f'{a.dtype} and {b.dtype}' for a, b in pairs)}.\n"
    return None


def _result_difference(
    functions: Sequence[Callable[..., Any]], programs: Sequence[Any], arguments: Any, seed: int
) -> str | None:
    """Return by how much the results of two programs differ, None if they agree; no large array is made."""
    numbers = sum(_numbers(program.jaxpr) for program in programs)
    if numbers <= _MOST_NUMBERS:
        return _value_difference(programs, arguments, seed)
    smaller = _smaller(arguments)
    try:
        short = [jax.make_jaxpr(function)(*smaller) for function in functions]
    except Exception:  # the user's function takes no other sizes
        short = []
    # With the same operations on smaller arrays, the answer is the same.
    alike = [_operations(program.jaxpr) for program in short] == [_operations(program.jaxpr) for program in programs]
    if alike and sum(_numbers(program.jaxpr) for program in short) <= _MOST_NUMBERS:
        return _value_difference(short, smaller, seed)
    return (
        f"The programs differ. They were not run, because their arrays have {numbers:,} numbers in all, and more than "
        f"{_MOST_NUMBERS:,} are not made for a check; on smaller arrays the function fails, or has other operations.\n"
    )


def _numbers(jaxpr: Any) -> int:
    """Return how many numbers the arrays of a program have in all."""
    own = [*jaxpr.constvars, *jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]
    size: int = sum(math.prod(var.aval.shape) for var in own)
    return size + sum(_numbers(getattr(inner, "jaxpr", inner)) for eqn in jaxpr.eqns for inner in _inner(eqn))


def _operations(jaxpr: Any) -> list[Any]:
    """Return the names of a program's operations in their order, with those of the programs within it."""
    return [
        (eqn.primitive.name, [_operations(getattr(inner, "jaxpr", inner)) for inner in _inner(eqn)])
        for eqn in jaxpr.eqns
    ]


def _inner(eqn: Any) -> list[Any]:
    return list(core.jaxprs_in_params(eqn.params))


def _smaller(arguments: Any) -> Any:
    """Return shapes in which each long axis is a shorter one: equal sizes stay equal, and others stay different."""
    sizes = {size for leaf in jax.tree.leaves(arguments) for size in leaf.shape}
    known = {size: size for size in sizes if size <= _LONGEST_KEPT_AXIS}
    for size in sorted(sizes - known.keys()):  # halves and quarters of an axis stay whole
        known[size] = next(
            (n for n in range(_LONGEST_KEPT_AXIS + size % 8, size, 8) if n not in known.values() and n not in sizes),
            size,
        )
    return jax.tree.map(lambda leaf: _struct(tuple(known[size] for size in leaf.shape), leaf.dtype), arguments)


def _value_difference(programs: Sequence[Any], arguments: Any, seed: int) -> str | None:
    """Return by how much the results of two programs differ on random arrays, None if they agree."""
    leaves = jax.tree.leaves(arguments)
    if any(program.effects for program in programs):
        return "The programs differ, and were not run because they have side effects.\n"

    @jax.jit
    def run(consts: Any, xs: Any) -> Any:
        closed = [core.ClosedJaxpr(program.jaxpr, part) for program, part in zip(programs, consts, strict=True)]
        return [core.jaxpr_as_fun(program)(*xs) for program in closed]

    try:
        # Positive numbers too, since many functions are NaN elsewhere: logarithms, roots.
        for positive in (False, True):
            rng = np.random.default_rng(seed)
            xs = [_random(rng, leaf, positive=positive) for leaf in leaves]
            consts = _concrete_consts(programs, rng, positive=positive)
            # Evaluate at once, also if the graph is declared inside of a function that JAX is tracing.
            with jax.ensure_compile_time_eval(), jax.debug_nans(new_val=False), jax.debug_infs(new_val=False):
                results = [[np.asarray(array) for array in arrays] for arrays in run(consts, xs)]
            for one, other in zip(*results, strict=True):
                difference = _distance(one, other, leaves)
                if difference:
                    return difference
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        return f"The programs differ, and their results could not be compared: {type(error).__name__}: {reason}\n"
    return None


def _concrete_consts(programs: Sequence[Any], rng: np.random.Generator, *, positive: bool) -> list[list[Any]]:
    """Return the arrays that programs have taken from around them; random ones for those that are being traced."""
    drawn: dict[int, Any] = {}

    def concrete(array: Any) -> Any:
        if is_concrete(array):
            return array
        if id(array) not in drawn:
            drawn[id(array)] = _random(rng, array, positive=positive)
        return drawn[id(array)]

    return [[concrete(array) for array in program.consts] for program in programs]


def _distance(one: Any, other: Any, arguments: Sequence[Any]) -> str | None:
    """Return by how much two arrays differ beyond rounding, None if they agree."""
    if not jnp.issubdtype(one.dtype, jnp.inexact):
        unequal = int((one != other).sum())
        return f"{unequal} of {one.size} values differ.\n" if unequal else None
    dtypes = [one.dtype, *(leaf.dtype for leaf in arguments if jnp.issubdtype(leaf.dtype, jnp.inexact))]
    epsilon = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)  # type: ignore[no-untyped-call]
    terms = max([1, *(math.prod(leaf.shape) for leaf in arguments)])
    kind = np.complex128 if jnp.issubdtype(one.dtype, jnp.complexfloating) else np.float64
    a, b = one.astype(kind), other.astype(kind)
    if (np.isnan(a) != np.isnan(b)).any():
        return "Some values are NaN in only one of the results.\n"
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        equal = (a == b) | np.isnan(a)
    if not (equal | finite).all():
        return "Some values are infinite in only one of the results.\n"
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    largest = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
    distance = float(np.abs(a - b).max(initial=0))
    # Rounding errors of sums grow like the root of the number of terms. In 16 bits or less, this would allow any value.
    if distance <= min(8 * math.sqrt(terms) * epsilon, max(0.05, epsilon)) * largest:
        return None
    return f"On random inputs their values differ by up to {distance:.3g}, where the largest value is {largest:.3g}.\n"


def _random(rng: np.random.Generator, leaf: Any, *, positive: bool) -> Any:
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if jnp.issubdtype(dtype, jnp.integer):
        largest = int(jnp.iinfo(dtype).max)  # type: ignore[no-untyped-call]
        return rng.integers(0, min(100 if positive else 3, largest), shape).astype(dtype)
    parts = [rng.uniform(0.5, 1.5, shape) if positive else rng.normal(size=shape) for _ in range(2)]
    return (parts[0] + 1j * parts[1] if jnp.issubdtype(dtype, jnp.complexfloating) else parts[0]).astype(dtype)


def _struct(shape: Shape, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _shapes(tree: Any) -> Any:
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
    return list(shapes) if isinstance(tree, list) else shapes
