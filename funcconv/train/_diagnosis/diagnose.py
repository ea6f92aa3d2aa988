"""`diagnose`: from which operation of a step a NaN or an infinity comes."""

import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from ..._common.patterns import path_of
from .._state import State, steps_of
from .._step.step import Step
from .loops import first_bad_pass
from .operations import KINDS, Operation, Operations, kinds_of, scope_of
from .report import Cause, Diagnosis, Numbers, summarized

_MAX_CAUSES = 3
_PACKAGES = (str(Path(__file__).parents[2]), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "<")


def diagnose(step: Step, state: Any, batch: Any) -> Diagnosis:
    """Find out why the loss, the gradient or the update of a step is not finite.

    The step is traced and computed once more, with a test of each value. The result says which operation returned the
    first NaN or infinity that reaches the loss, the gradient or the next state: the name of its node in the graph and
    the range of its operands. It also says whether the state or the batch had such numbers before. Values on which no
    result depends are ignored, such as a `-inf` that a `jnp.where` removes.

    A step that is not finite changes only the counters of a state, and the metric `"skipped"` of `fit` counts it. So
    `fit(..., steps=n - 1)` gives the state before step `n`, and `data[n - 1]` is its batch if `data` is the result of
    `train.batches`. The random numbers are those of the step, because their key is derived from the state.

    The test compiles another program than the step itself, so the last bits of its numbers may differ. Passes of loops
    are computed one after another, until the first one whose results are not finite.

    Args:
        step: the step that `make_step` returned, or any pure function of a state and a batch.
        state: the state before the step.
        batch: the batch of the step.

    Returns:
        A `Diagnosis`. Print it, or use its attributes.

    Raises:
        Exception: whatever the step raises for this state and this batch, for example because an array was deleted.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> x = fc.Input("x", (2,))
        >>> graph = fc.Graph(x, fc.serial(fc.Dense(1), fc.node(jnp.log, name="logarithm"))(x))
        >>> def loss(params, batch, *, key, state):
        ...     return graph(params, batch).mean()
        >>> init, step = fc.train.make_step(loss, optax.sgd(0.1))
        >>> state = init({"dense1": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}, jax.random.key(0))
        >>> found = fc.train.diagnose(step, state, jnp.array([[1.0, 2.0], [1.0, -3.0]]))
        >>> found.results, found.causes[0].node, found.causes[0].operation
        (('loss',), 'logarithm', 'log')
    """
    traced, shapes = jax.make_jaxpr(step, return_shape=True)(state, batch)
    args = jax.tree.leaves((state, batch))
    names = [_argument_name(path) for path, _ in jax.tree.leaves_with_path((state, batch))]
    program = Operations(traced)
    kinds = _Kinds(program, args)
    numbered = enumerate(zip(names, args, strict=True), len(program.consts))
    before = {name: summarized(name, arg) for number, (name, arg) in numbered if kinds.of(number)}
    results = [_result_name(path) for path, _ in jax.tree.leaves_with_path(shapes)]
    # The state may have infinities on purpose, such as the best value of an optimizer that has none yet.
    bad = [i for i, name in enumerate(results) if kinds.of(program.results[i]) and name not in before]
    losses = [i for i in bad if results[i] == "loss"]
    causes = _causes(program, kinds, args, bad, losses, names, ())
    number = steps_of(state) + 1 if isinstance(state, State) else None
    return Diagnosis(number, tuple(sorted((results[i] for i in bad), key=_loss_first)), (*before.values(),), causes)


class _Kinds:
    """Which values of a program have a NaN, and which an infinity."""

    def __init__(self, program: Operations, args: Sequence[Any]) -> None:
        table = program.kinds(args)
        self._by_number = [{name for name, has in zip(KINDS, row, strict=True) if has} for row in table.tolist()]

    def of(self, value: Any) -> set[str]:
        """Return the kinds of a value, by its number, or of a literal."""
        return self._by_number[value] if isinstance(value, int) else kinds_of([value.val])

    def of_all(self, values: Iterable[Any]) -> set[str]:
        """Return the kinds of several values."""
        return set().union(*map(self.of, values))


def _causes(
    program: Operations,
    kinds: _Kinds,
    args: Sequence[Any],
    bad: Sequence[int],
    losses: Sequence[int],
    names: Sequence[str],
    passes: tuple[int, ...],
) -> tuple[Cause, ...]:
    """Return the first operations from which the bad results come.

    Args:
        program: the operations.
        kinds: of its values.
        args: its arguments.
        bad: the places of the results that are not finite.
        losses: those of them that the loss depends on.
        names: of the arguments.
        passes: the numbers of the passes of the loops around it.
    """
    reaching = _reaching(program, kinds, [program.results[i] for i in bad])
    reaching_loss = _reaching(program, kinds, [program.results[i] for i in losses])
    found = [
        operation
        for operation in program.list
        if reaching.intersection(operation.outputs) and kinds.of_all(operation.outputs) - kinds.of_all(operation.inputs)
    ]
    if not found:  # a constant of the program
        found = [
            operation
            for operation in program.list
            if reaching.intersection(operation.outputs) and not kinds.of_all(operation.numbers)
        ]
    found = found[:_MAX_CAUSES]
    values = program.values(args, (number for each in found for number in (*each.numbers, *each.outputs)))
    causes: list[Cause] = []
    by_number = dict(enumerate(names, len(program.consts)))
    for operation in found:
        operands = [values[entry] if isinstance(entry, int) else entry.val for entry in operation.inputs]
        of_loss = bool(reaching_loss.intersection(operation.outputs))
        causes += _inside(operation, operands, of_loss=of_loss, passes=passes) or [
            Cause(
                operation=operation.eqn.primitive.name,
                node=scope_of(operation.stack),
                part=_part(operation, of_loss=of_loss),
                line=_line(operation),
                passes=passes,
                operands=tuple(_operands(operation, operands, by_number)),
                results=tuple(summarized("result", values[number]) for number in operation.outputs),
            )
        ]
    return tuple(causes[:_MAX_CAUSES])


def _inside(
    operation: Operation, operands: Sequence[Any], *, of_loss: bool, passes: tuple[int, ...]
) -> tuple[Cause, ...]:
    """Return the causes inside of a loop or a branch; nothing if the operation is neither."""
    found = first_bad_pass(operation, operands)
    if found is None:
        return ()
    program = Operations(found.program, operation.stack)
    bad = [i for i, result in enumerate(found.results) if kinds_of([result])]
    inner_passes = passes if found.number is None else (*passes, found.number)
    kinds = _Kinds(program, found.args)
    return _causes(program, kinds, found.args, bad, bad if of_loss else [], [""] * len(found.args), inner_passes)


def _reaching(program: Operations, kinds: _Kinds, results: Iterable[Any]) -> set[int]:
    """Return the numbers of the values that are not finite and lead to the results over values that are not finite."""
    reached: set[int] = set()
    waiting = [result for result in results if isinstance(result, int)]
    while waiting:
        number = waiting.pop()
        if number in reached or not kinds.of(number):
            continue
        reached.add(number)
        operation = program.maker.get(number)
        waiting += operation.numbers if operation else ()
    return reached


def _part(operation: Operation, *, of_loss: bool) -> str:
    if of_loss:
        return "the loss"
    return "the gradient" if "jvp(" in operation.stack else "the update"


def _operands(operation: Operation, operands: Sequence[Any], names: dict[int, str]) -> Iterable[Numbers]:
    for i, (entry, operand) in enumerate(zip(operation.inputs, operands, strict=True), 1):
        if isinstance(entry, core.Literal) and np.ndim(entry.val) == 0:
            continue
        yield summarized((names.get(entry, "") if isinstance(entry, int) else "") or f"operand {i}", operand)


def _line(operation: Operation) -> str:
    """Return the line of the user's code that an operation comes from, or an empty text if it is not known."""
    frames = getattr(operation.eqn.source_info.traceback, "frames", ())
    for frame in frames:
        if not frame.file_name.startswith(_PACKAGES):
            return f"{Path(frame.file_name).name}:{frame.line_num}"
    return ""


def _argument_name(path: Sequence[Any]) -> str:
    prefix = ("", "batch")[path[0].idx]
    return "/".join(filter(None, (prefix, path_of(path[1:])))) or "state"


def _result_name(path: Sequence[Any]) -> str:
    """Return the name of a result of a step: the path of an entry of the state, or the name of a metric."""
    return path_of(path[1:]) or path_of(path)


def _loss_first(name: str) -> tuple[bool, bool, str]:
    return name != "loss", name != "grad_norm", name
