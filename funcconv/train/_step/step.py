"""Make a training step, and compile it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Number
from ..._primitives.compiler import compiled_with, compiler_options
from ..._primitives.tuning import Tuning, checked_tuning, tuned, tuning_of_environment
from .._distributed.partition import Partition, check_batch, shardings
from .._optimizer.groups import Optimizer
from .._state import State
from .options import StepOptions, checked_options
from .update import initial_state, update

Init: TypeAlias = Callable[..., State]
Step: TypeAlias = Callable[[State, Any], tuple[State, dict[str, Array]]]


def make_step(
    loss: Callable[..., Any],
    optimizer: Optimizer,
    *,
    lr_factors: Mapping[str, float] | None = None,
    report_learning_rate: bool = False,
    optimizer_value: Literal["loss", "monitor"] = "loss",
    accumulate: int = 1,
    ema: Number | None = None,
    average: Literal["mean"] | None = None,
    average_start: int = 0,
    compute_dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
    inputs: str | Sequence[str] | Mapping[str, DTypeLike] | None = None,
    loss_scale: Number | str | None = None,
    clip: Number | None = None,
    frozen: str | Sequence[str] = (),
    mesh: Mesh | None = None,
    partition: Partition | None = None,
    has_aux: bool = False,
    tuning: Tuning | None = None,
) -> tuple[Init, Step]:
    """Build a training step: two pure functions, `init` and `step`, which you can `jit`, `scan` and differentiate.

    `init` makes the first `State`. `step` computes the gradient of the loss on a batch and lets the optimizer update
    the parameters. If the loss or an entry of the gradient is not finite, the step changes nothing and is counted in
    `State.skipped`.

    Args:
        loss: a function `loss(params, batch, *, key, state)` that returns a scalar, the mean over the batch, or a
            `train.Weighted(sum, weight)` for a mean over something else, such as tokens or the pixels of a mask. With
            `has_aux=True` it returns a pair of that and a dict of metrics. `key` is a new random key for each step.
            `state` is the model's state, such as running statistics; the loss returns the next one as the entry
            `"state"` of the dict. If the loss has a parameter `average` without a default, it also gets the average of
            the parameters before the step (of `ema` or `average`), for example as the target network of BYOL; no
            gradient is computed for it.
        optimizer: an optax optimizer, such as `optax.adam(1e-3)`, or a dict from patterns to optimizers, such as
            `{"trunk/*": optax.sgd(0.1), "*": optax.adam(1e-3)}`. The first pattern that matches the path of a parameter
            counts; `*` stands for any text. Each trained parameter needs a pattern, and each pattern a parameter.
            Optimizers that take `value`, `grad`, `value_fn`, `grad_fn` or `obj_fn` get them: the loss of the step and
            its gradient, and functions that compute them for other parameters, with the same batch, key, state of the
            model and options. So `optax.lbfgs`, `optax.contrib.sam` and `optax.contrib.sophia` work as they are.
            `optax.lookahead` keeps its slow parameters in its state; `train.eval_params` returns them.
        lr_factors: factors of the learning rate for groups of parameters, as a dict such as
            `{"trunk/*": 0.1, "*": 1.0}` with patterns as above. They multiply the updates of the optimizer, which for
            `optax.adamw` include the weight decay. Optimizers that continue from their own updates (line searches,
            schedule-free, lookahead, mechanize, SAM without `opaque_mode`) raise an error; use a dict of optimizers.
            Default: None, no factors.
        report_learning_rate: whether the metrics have the learning rate of the step: `"learning_rate"`, or one for each
            pattern of `optimizer` or `lr_factors`, such as `"learning_rate/trunk/*"`. It is read from the state of
            `optax.inject_hyperparams`, from the constant or the schedule with which an optimizer of optax scales its
            updates at last, from a line search, and includes the factor of `optax.contrib.reduce_on_plateau`. If it is
            not known in this way, there is no such metric; `optax.inject_hyperparams(optax.rprop)(0.1)` makes it known.
            Default: False.
        optimizer_value: which number is the `value` of optimizers that take one. `"loss"`: the loss of the step.
            `"monitor"`: the last value of `monitor` of `fit`, or minus it for `mode="max"`, as
            `optax.contrib.reduce_on_plateau(accumulation_size=every)` needs it; `fit` then evaluates before the first
            step too. It is `state.monitored`. A line search needs the loss. Default: `"loss"`.
        accumulate: the number of micro-batches into which a batch is cut. They are computed one after the other, which
            saves memory; the gradient is that of the whole batch. Of scalars and other metrics the mean over the
            micro-batches is taken; `Weighted` and `Sum` are added, and divided by the total weight at the end.
            Gradients of 16-bit parameters are summed in float32.
            Micro-batch `i` of `n` has the examples `i`, `i + n`, `i + 2n`, …, so that each device computes its share of
            each micro-batch. Its key is `jax.random.fold_in(key, i)`. Default: 1.
        ema: the decay `d` of an exponential moving average of the parameters, `ema = d * ema + (1 - d) * params`, from
            0 to below 1. It is `State.ema`, and has the dtypes of the parameters; for 16-bit parameters a copy is also
            kept in float32. Default: no moving average.
        average: `"mean"` keeps the mean of the parameters after each step instead (stochastic weight averaging), also
            as `State.ema`. Batch norms need new statistics for it, from `train.update_norms`. Default: None, no mean.
        average_start: the number of steps after which the average begins. Until then, it is equal to the parameters.
            Default: 0; a moving average then begins with the first parameters, and a mean with those after step 1.
        compute_dtype: the dtype in which the model computes, such as `"bfloat16"`. Floating parameters and floating
            inputs are cast to it before the loss is called. Targets, the model's state, stored parameters, gradients
            and the optimizer keep their dtypes. Or a dict from patterns of parameters to dtypes, such as
            `{"head/*": "float32", "*": "bfloat16"}`. The first pattern that matches a parameter counts; a parameter of
            no pattern keeps its dtype. `"*"` matches everything, and gives the dtype of the inputs. Layers refuse
            inputs of another dtype than their parameters, so the model must cast between two parts, for example with
            the layer `lambda x: x.astype("float32")`. Default: no cast.
        inputs: the entries of the batch that `compute_dtype` casts, as patterns of their paths: `"image"`,
            `("left", "right")`, or `"0"` for the first entry of a tuple. Default: chosen by name. Entries called `x`,
            `input`, `inputs`, `image` or `images` are inputs; `y`, `target`, `targets`, `label` and `labels` are not.
            In a tuple the first entry is an input, and the second of two is not. A batch that is one array is an input.
            Any other floating entry raises an error. A dict, such as `{"image": "bfloat16", "time": "float32"}`,
            gives each input its own dtype; the first pattern that matches counts.
        loss_scale: the factor by which the loss is multiplied before it is differentiated; the gradient is divided by
            it afterwards. A number, or `"dynamic"`: the factor is halved when a gradient is not finite, and doubled
            after 2,000 steps with finite gradients, between 1 and 2^127; it starts at 2^15. Default: None, `"dynamic"`
            if `compute_dtype` or `inputs` has float16, otherwise 1.
        clip: maximum global norm of the gradient over all trained parameters. If the norm is larger, the gradient is
            rescaled to it. Default: no clipping.
        frozen: patterns of the paths of parameters that are not trained, such as `"trunk/*"`. `*` stands for any text,
            and a pattern that matches the path of a dict matches all its entries. No gradient is computed for these
            parameters, and the optimizer has no state for them. The model's state of the same name, such as the running
            statistics of `"trunk/batch_norm1"`, also stays as it is if a pattern matches it or all parameters of that
            name are frozen. Whether a frozen batch norm normalizes by its batch or by its running statistics depends on
            the loss: with `graph.apply(..., train=True, evaluating="trunk/*")`, the trunk uses its running statistics
            and has no dropout. Default: all parameters are trained.
        mesh: the devices to train on, from `jax.make_mesh`. The first axis of every entry of a batch is spread along
            the first axis of the mesh. The state is replicated on all devices, except for `partition`. If the axes of
            the mesh are Explicit, the types of the state have its shardings; inside the step the axes are Auto.
            Default: the step does not say where arrays are.
        partition: how to spread parameters over the mesh: a dict from patterns of their paths, such as
            `"dense*/kernel"`, to a `jax.sharding.PartitionSpec`. It also applies to their averages and to the
            optimizer's state of them. The first matching pattern counts. Default: all are replicated.
        has_aux: whether the loss returns a pair of its value and a dict. Default: False.
        tuning: the result of `fc.tune` or `fc.Tuning.load`: measured forms, in which the convolutions and pools of the
            step are computed. `fit` and `compile` also use its compiler options. Default: the usual forms.

    Returns:
        `init(params, key, model=None) -> State` and `step(state, batch) -> (state, metrics)`. `init` copies its arrays;
        `model` is the first state of the model. The metrics are `"loss"`, `"grad_norm"` (before `clip`), `"skipped"`,
        the learning rates, and those that the loss returns, with the mean of each `Weighted` and the value of each
        `Sum`. If the total weight of the loss is 0, `"loss"` is NaN, and the step changes nothing and is counted in
        `State.skipped`.

    Raises:
        FuncconvError: if an option is out of range; from `init`, if a pattern matches no parameter or a parameter no
            pattern, if a pattern of `compute_dtype` only matches what earlier ones match, if the state of the optimizer
            has entries that are no arrays, or if a parameter cannot be spread as `partition` says; from `step`, if a
            batch cannot be cut or spread evenly, if it is not clear which entries are inputs, or if the loss has the
            wrong arguments or result.

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
        lr_factors=lr_factors,
        report_learning_rate=report_learning_rate,
        optimizer_value=optimizer_value,
        accumulate=accumulate,
        ema=ema,
        average=average,
        average_start=average_start,
        compute_dtype=compute_dtype,
        inputs=inputs,
        loss_scale=loss_scale,
        clip=clip,
        frozen=frozen,
        mesh=mesh,
        partition=partition,
        has_aux=has_aux,
    )
    checked_tuning("make_step", tuning)
    # Then the types of arrays have shardings.
    has_explicit_axes = mesh is not None and AxisType.Explicit in mesh.axis_types

    def init(params: Any, key: Array, model: Any = None) -> State:
        return initial_state(options, params, key, model)

    def step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        with nullcontext() if tuning is None else tuned(tuning):
            return untuned_step(state, batch)

    def untuned_step(state: State, batch: Any) -> tuple[State, dict[str, Array]]:
        if accumulate > 1 or mesh is not None:
            check_batch(batch, accumulate, mesh)
        if mesh is None or not has_explicit_axes:
            return update(options, state, batch)
        return _update_with_auto_axes(options, mesh, state, batch)

    step.options = options.recorded()  # type: ignore[attr-defined]  # `fit` compares them when a run is resumed
    step.tuning = tuning  # type: ignore[attr-defined]  # `compile` uses its compiler options
    return init, step


def _update_with_auto_axes(
    options: StepOptions, mesh: Mesh, state: State, batch: Any
) -> tuple[State, dict[str, Array]]:
    """Return the next state and the metrics, whose types say how they are sharded; inside, XLA decides."""
    replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    out_shardings = shardings(state, mesh, options.partition), replicated
    update_with_auto_axes = jax.sharding.auto_axes(
        lambda state, batch: update(options, state, batch), axes=mesh.axis_names, out_sharding=out_shardings
    )
    results: tuple[State, dict[str, Array]] = update_with_auto_axes(state, batch)
    return results


def compile(step: Step, tuning: Tuning | None = None) -> Step:
    """Compile a step for a training loop.

    The compiled step overwrites the memory of the state that it is given. It uses the compiler options of a tuning, or
    those of `fc.compiler_options()`.

    Args:
        step: the step that `make_step` returned, or any function of a state and a batch that returns a pair.
        tuning: the result of `fc.tune` or `fc.Tuning.load`. Default: the tuning of `make_step`; without one, the file
            that the environment variable `FUNCCONV_TUNING` names; otherwise none.

    Returns:
        The compiled step. You cannot use the state that you pass to it again. JAX may read the NumPy arrays of a batch
        after the call has returned: do not refill them, or pass copies, as `fit` does.

    Raises:
        FuncconvError: if `tuning` is not a `Tuning`, or `make_step` received a different one.

    Example:
        >>> import funcconv as fc
        >>> step = fc.train.compile(lambda state, batch: (state + batch, {}))
        >>> int(step(1, 2)[0])
        3
    """
    jitted: Step = compiled(step, chosen_tuning("compile", step, tuning), donate_argnums=0)
    return jitted


def compiled(f: Callable[..., Any], tuning: Tuning | None, **options: Any) -> Any:
    """Compile a function with the forms and the compiler options of a tuning, or else with the usual ones.

    Args:
        f: the function.
        tuning: the tuning, or None.
        **options: further options of `jax.jit`.

    Returns:
        The compiled function.
    """
    of_compiler = compiler_options() if tuning is None else tuning.compiler_options
    traced_with = compiled_with(of_compiler) if tuning is None else tuned(tuning)
    return jax.jit(traced_with(f), compiler_options=of_compiler, **options)


def chosen_tuning(op: str, step: Step, tuning: Tuning | None) -> Tuning | None:
    """Return the tuning for a step: the one that is passed, that of `make_step`, or that of `FUNCCONV_TUNING`."""
    own = getattr(step, "tuning", None)
    if checked_tuning(op, tuning) is not None and own is not None and tuning != own:
        msg = f"{op}: make_step received a different tuning; pass the tuning to one of them only"
        raise FuncconvError(msg)
    return tuning or own or tuning_of_environment()
