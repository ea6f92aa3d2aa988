"""Make a training step, and compile it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.types import Array, DTypeLike, Number
from ..._primitives.compiler import compiled_with, compiler_options
from .._distributed.partition import Partition, check_batch, shardings
from .._state import State
from .options import checked_options
from .update import initial_state, update

Init: TypeAlias = Callable[..., State]
Step: TypeAlias = Callable[[State, Any], tuple[State, dict[str, Array]]]


def make_step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema: Number | None = None,
    compute_dtype: DTypeLike | None = None,
    inputs: str | Sequence[str] | None = None,
    loss_scale: Number | str | None = None,
    clip: Number | None = None,
    frozen: str | Sequence[str] = (),
    mesh: Mesh | None = None,
    partition: Partition | None = None,
    has_aux: bool = False,
) -> tuple[Init, Step]:
    """Build a training step. Returns two pure functions, which you can `jit`, `scan` and differentiate.

    `init` makes the first `State`. `step` computes the gradient of the loss on a batch and lets the optimizer update
    the parameters. If the loss or an entry of the gradient is not finite, the step updates nothing and counts itself in
    `State.skipped`.

    Args:
        loss: `loss(params, batch, *, key, state)`, a scalar that is a mean over the batch; with `has_aux` also a dict
            of numbers to be reported. `key` is another one at each step. `state` is `State.model`; an entry `"state"`
            of the dict is the next one.
        optimizer: of optax.
        accumulate: the number of parts in which a batch is computed, one after the other, to save memory. The
            gradient is that of the whole batch; those of 16-bit parameters are added in float32. Part `i` of `n` has
            the examples `i`, `i + n`, `i + 2n`, …, so that each device computes its share of each part; its key is
            `jax.random.fold_in(key, i)`. Default: 1.
        ema: the decay `d` of a moving average of the parameters, `ema = d * ema + (1 - d) * params`; None for none.
            It has the dtypes of the parameters; that of 16-bit parameters is kept in float32 as well.
        compute_dtype: the dtype that the model computes in. The floating parameters and the floating inputs of the
            batch are cast to it before the loss is called. Targets and the model's state keep their dtypes, as do
            parameters, gradients and the optimizer outside of the loss. None casts nothing.
        inputs: the entries of the batch that `compute_dtype` casts: patterns of their paths, such as `"image"`,
            `("left", "right")` or, for the first of a tuple, `"0"`. None chooses by name: `x`, `input`, `inputs`,
            `image` and `images` are inputs; `y`, `target`, `targets`, `label` and `labels` are not. Of a tuple the
            first entry is an input, and the second of two is not. A batch that is one array is an input. Any other
            floating entry raises an error.
        loss_scale: by what the loss is multiplied before it is differentiated, and the gradient divided after; a
            number, or `"dynamic"`: halved when the gradient is not finite, doubled after 2,000 steps that were,
            up to 2^127. None is `"dynamic"` for float16 and 1 otherwise.
        clip: the largest norm of the whole gradient by the parameters that are trained; None for any.
        frozen: patterns of paths such as `"trunk/*"` whose parameters stay as they are. No gradient is computed for
            them, and the optimizer keeps nothing for them. The model's state under the same name, such as the running
            statistics of `"trunk/batch_norm1"`, stays as well if a pattern fits it or all parameters of that name are
            frozen. The loss decides how such a norm normalizes: by its batch in `graph.apply(..., train=True)`, by
            its running statistics with `train=False`.
        mesh: of devices, from `jax.make_mesh`. The first axis of every entry of a batch is spread along the first axis
            of the mesh, and the state lies whole on all devices, but for what `partition` says. If the axes of the mesh
            are Explicit, the state has them in its types; inside the step they are Auto. None leaves both to the
            caller.
        partition: a dict from patterns of paths such as `"dense*/kernel"` to the `PartitionSpec` by which those
            parameters, their averages and what the optimizer keeps for them are spread over the mesh. The first
            pattern that fits counts.
        has_aux: whether the loss returns a pair.

    Returns:
        `init(params, key, model=None) -> State`, and `step(state, batch) -> (state, metrics)`. `init` copies the arrays
        that it is given. The metrics are `"loss"`, `"grad_norm"` (before `clip`), `"skipped"`, and those of the loss.

    Raises:
        FuncconvError: if an option is out of range, a pattern meets no parameter, or one cannot be cut; in a step, if a
            batch cannot be cut or spread evenly over the mesh, its inputs are not known, or the loss takes or returns
            something else.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.flatten, fc.Dense(2))(x))
        >>> def loss(params, batch, *, key, state):
        ...     logits = graph(params, batch["image"])
        ...     return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        >>> init, step = fc.train.make_step(loss, optax.adam(1e-2), clip=1.0)
        >>> batch = {"image": jnp.ones((6, 8, 8, 1)), "label": jnp.zeros(6, int)}
        >>> state, metrics = jax.jit(step)(init(graph.init(jax.random.key(0)), jax.random.key(1)), batch)
        >>> int(state.step), sorted(metrics)
        (1, ['grad_norm', 'loss', 'skipped'])
    """
    options = checked_options(
        loss,
        optimizer,
        accumulate=accumulate,
        ema=ema,
        compute_dtype=compute_dtype,
        inputs=inputs,
        loss_scale=loss_scale,
        clip=clip,
        frozen=frozen,
        mesh=mesh,
        partition=partition,
        has_aux=has_aux,
    )
    has_explicit_axes = mesh is not None and AxisType.Explicit in mesh.axis_types

    def init(params: Any, key: Array, model: Any = None) -> State:
        return initial_state(options, params, key, model)

    def step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        if accumulate > 1 or mesh is not None:
            check_batch(batch, accumulate, mesh)
        if mesh is None or not has_explicit_axes:
            return update(options, state, batch)
        # The types of the results say how they are sharded; inside, XLA decides.
        replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
        out_shardings = shardings(state, mesh, options.partition), replicated
        update_with_auto_axes = jax.sharding.auto_axes(
            lambda state, batch: update(options, state, batch), axes=mesh.axis_names, out_sharding=out_shardings
        )
        results: tuple[State, dict[str, Array]] = update_with_auto_axes(state, batch)
        return results

    step.options = options.recorded()  # type: ignore[attr-defined]  # `fit` compares them when a run is resumed
    return init, step


def compile(step: Step) -> Step:
    """Compile a step for a loop: it takes over the memory of the state it is given, and has `compiler_options`.

    Args:
        step: of `make_step`, or any function of a state and a batch that returns a pair.

    Returns:
        The compiled step. The state that it is given cannot be used again. JAX may read the NumPy arrays of a batch
        after the call has returned: do not refill them, or pass copies, as `fit` does.

    Raises:
        Nothing.

    Example:
        >>> import funcconv as fc
        >>> step = fc.train.compile(lambda state, batch: (state + batch, {}))
        >>> int(step(1, 2)[0])
        3
    """
    options = compiler_options()
    return jax.jit(compiled_with(options)(step), donate_argnums=0, compiler_options=options)
