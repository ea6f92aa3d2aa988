"""One step of training as a pure function."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Number
from ..._primitives.compiler import compiled_with, compiler_options
from .._distributed.partition import (
    Partition,
    check_batch,
    check_options,
    placed,
    shardings,
    spread_batch,
    with_auto_axes,
)
from .._state import Scale, State
from .frozen import check_frozen, next_model, trained, with_frozen
from .inputs import cast, cast_inputs
from .loss import check_signature, check_state, value_and_metrics
from .memory import copied
from .sums import averaged, clipped, float32_average, like, scale_and_norm, widened

Init: TypeAlias = Callable[..., State]
Step: TypeAlias = Callable[[State, Any], tuple[State, dict[str, Array]]]

_FIRST_SCALE = 2.0**15
_LAST_SCALE = 2.0**127  # the largest that float32 has
_GOOD_STEPS = 2000  # after which the scale is doubled


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
    """Return how a run begins, and its step; both pure, so that `jit`, `scan` and `grad` take them.

    A step is `g = d mean(loss) / d params`, `params += optimizer(g)`. Where the loss or an entry of `g` is not finite
    nothing is updated but the count of such steps.

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
    _check(accumulate, ema, clip, loss_scale)
    check_options(mesh, partition)
    # Inside a step the axes are Auto: every op works, and XLA decides how intermediate results are sharded.
    inner = None if mesh is None else with_auto_axes(mesh)
    explicit = mesh is not None and AxisType.Explicit in mesh.axis_types
    patterns, named = _patterns(frozen), None if inputs is None else _patterns(inputs)
    dtype = None if compute_dtype is None else jnp.dtype(compute_dtype)
    if loss_scale is None:
        loss_scale = "dynamic" if dtype == jnp.float16 else 1.0
    transform = optax.with_extra_args_support(optimizer)

    def init(params: Any, key: Array, model: Any = None) -> State:
        if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
            msg = f"train: the key must be a typed one, jax.random.key(seed); got {jnp.result_type(key)}"
            raise FuncconvError(msg)
        params, model = copied(params), copied({} if model is None else model)
        check_frozen(params, model, patterns)
        state = State(
            step=_zero(), params=params, optimizer=copied(transform.init(trained(params, patterns))), key=copied(key),
            model=model, ema=None if ema is None else copied(params), skipped=_zero(),
            scale=Scale(jnp.float32(_FIRST_SCALE), _zero()) if loss_scale == "dynamic" else None,
            ema_float32=None if ema is None else float32_average(copied(params)),
        )  # fmt: skip
        return state if mesh is None else placed(state, shardings(state, mesh, partition or {}))

    def scaled(part: Any, params: Any, batch: Any, key: Array, model: Any, factor: Any) -> tuple[Array, Any]:
        """Return the scaled loss as a function of the trained part of the parameters, the loss and what it reports."""
        check_signature(loss)
        params, old = with_frozen(part, params), model
        if dtype is not None:
            params, batch = cast(params, dtype), cast_inputs(batch, dtype, named)
        value, aux = value_and_metrics(loss(params, batch, key=key, state=old), has_aux=has_aux)
        model = aux.pop("state", old)
        check_state(old, model)
        value = value.astype(wide(value.dtype))
        return value * jnp.asarray(factor, value.dtype), (value, aux, next_model(old, model, params, patterns))

    def gradient(state: State, batch: Any, factor: Any) -> tuple[Any, Array, dict[str, Any], Any]:
        """Return the gradient, the loss, what it reports, and the next state of the model."""
        key = jax.random.fold_in(state.key, state.step)
        part = trained(state.params, patterns)
        differentiate = jax.grad(scaled, has_aux=True)
        if accumulate == 1:
            g, (value, aux, model) = differentiate(part, state.params, batch, key, state.model, factor)
            return widened(g), value, aux, model

        # Each device has consecutive examples; every parts-th of them is a part that it shares without communication.
        columns = jax.tree.map(lambda x: x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]), batch)

        def add(carry: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], Any]:
            total, model = carry
            some = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), columns)
            some = some if inner is None else spread_batch(some, inner)
            g, (value, aux, model) = differentiate(part, state.params, some, jax.random.fold_in(key, i), model, factor)
            return (jax.tree.map(jnp.add, total, widened(g)), model), (value, aux)

        zero = jax.tree.map(jnp.zeros_like, widened(part))
        (total, model), (values, reports) = lax.scan(add, (zero, state.model), jnp.arange(accumulate))
        mean = jax.tree.map(lambda g: g / accumulate, total)
        return mean, values.mean(), jax.tree.map(lambda each: each.mean(0), reports), model

    def update(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        if inner is not None:
            batch = spread_batch(batch, inner)
        factor = state.scale.factor if state.scale else loss_scale
        g, value, aux, model = gradient(state, batch, factor)
        g = jax.tree.map(lambda each: each / jnp.asarray(factor, each.dtype), g)
        scale_of_norm, norm = scale_and_norm(g)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        part = trained(state.params, patterns)
        g = like(g if clip is None else clipped(g, clip, scale_of_norm, norm), part)
        updates, kept = transform.update(g, state.optimizer, part, value=value, grad=g)
        params = with_frozen(optax.apply_updates(part, updates), state.params)
        means = None if ema is None else averaged(params, state.ema, state.ema_float32, ema)
        new = (params, kept, model, means)
        old = (state.params, state.optimizer, state.model, None if ema is None else (state.ema, state.ema_float32))
        params, kept, model, means = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
        scale = state.scale and _rescaled(state.scale, finite)
        mean, mean_in_float32 = means or (None, None)
        state = State(state.step + 1, params, kept, state.key, model, mean, scale, skipped, mean_in_float32)
        if inner is not None:
            state = lax.with_sharding_constraint(state, shardings(state, inner, partition or {}))  # type: ignore[no-untyped-call]
        return state, {"loss": value, "grad_norm": scale_of_norm * norm, "skipped": skipped, **aux}

    def step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        if accumulate > 1 or mesh is not None:
            check_batch(batch, accumulate, mesh)
        if mesh is None or not explicit:
            return update(state, batch)
        where = shardings(state, mesh, partition or {}), NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
        found: tuple[State, dict[str, Array]] = jax.sharding.auto_axes(
            update, axes=mesh.axis_names, out_sharding=where
        )(state, batch)
        return found

    step.options = {  # type: ignore[attr-defined]  # `fit` records them, and says if they change
        "optimizer": optimizer, "accumulate": accumulate, "ema": ema, "compute_dtype": dtype, "inputs": named,
        "loss_scale": loss_scale, "clip": clip, "frozen": patterns, "mesh": mesh and dict(mesh.shape),
        "partition": {name: str(spec) for name, spec in (partition or {}).items()},
    }  # fmt: skip
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


def _check(accumulate: int, ema: Number | None, clip: Number | None, loss_scale: Number | str | None) -> None:
    for name, value, right, what in (
        ("accumulate", accumulate, isinstance(accumulate, int) and accumulate >= 1, "an integer of at least 1"),
        ("ema", ema, ema is None or 0 <= ema < 1, "a decay from 0 to below 1"),
        ("clip", clip, clip is None or clip > 0, "above 0"),
        (
            "loss_scale", loss_scale,
            loss_scale in (None, "dynamic") or (not isinstance(loss_scale, str) and 0 < loss_scale < math.inf),
            'finite and above 0, or "dynamic"',
        ),
    ):  # fmt: skip
        if not right:
            msg = f"train: {name} must be {what}; got {value!r}"
            raise FuncconvError(msg)


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _rescaled(scale: Scale, finite: Array) -> Scale:
    """Return the scale after a step."""
    good = jnp.where(finite, scale.good + 1, 0)
    grown = good >= _GOOD_STEPS
    factor = jnp.where(finite, jnp.where(grown, scale.factor * 2, scale.factor), jnp.maximum(scale.factor / 2, 1))
    return Scale(jnp.minimum(factor, _LAST_SCALE), jnp.where(grown, 0, good).astype(jnp.int32))
