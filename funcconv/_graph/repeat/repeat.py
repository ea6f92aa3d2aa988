"""`repeat`: copies of a block one after another."""

from collections.abc import Callable
from typing import Any

from ..name.block import block_of
from .layer import Repeat


def repeat(
    block: Any,
    n: int,
    remat: str | Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    params: str | None = None,
) -> Repeat:
    """Apply `n` copies of a block one after another, each with its own weights: `block_n(... block_2(block_1(x)))`.

    The result is that of `fc.serial` of `n` blocks, up to rounding. The copies are computed by one `jax.lax.scan`, so
    the size of the program and the time to compile it do not depend on `n`. The parameters are those of the block, and
    each array has one more axis in front, of size `n`: entry `i` along this axis belongs to copy `i`. The state of
    batch norms has this axis too. The arrays are one entry of the parameters, `repeat1`. In training, each copy draws
    other random numbers. If you call the layer several times, its uses share the parameters and the state.

    `graph.values` returns the values inside too, as `repeat1/conv1` with an axis of copies in front. With `edits=`,
    `repeat1/conv1` is the node in all copies, and `repeat1/3/conv1` that in copy 3. `fc.unstack` makes each copy
    separate nodes.

    Args:
        block: a layer, a composition such as `fc.serial(...)` or `fc.residual(...)`, a graph with one input and one
            output, or a plain function of arrays. Its value must have the shape and dtype of its input. A function must
            compute the same for one example and for a batch; for a function that is written for a batch, pass
            `fc.node(f, batched=True)`.
        n: number of copies, a positive integer.
        remat: what is computed again when derivatives are taken, to save memory. None: nothing, all intermediate values
            are kept. `"block"`: only the inputs of the copies are kept, and the forward pass of each copy is repeated.
            A policy of `jax.checkpoint`, such as `fc.checkpoint_policy`: the values that it selects are kept too.
            Default: None.
        name: name of its nodes and of its entry in the parameters and in the state. Default: None, which gives
            `repeat1`, `repeat2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Returns:
        A layer, which you call on a node.

    Raises:
        FuncconvError: if the block is not a layer, composition, graph or function, if it takes several inputs or
            returns several values, if `n` is not a positive integer, or if `remat` has another value. If the value of
            the block has another shape or dtype than its input, `graph.init` raises the error, with the name of the
            node.

    Source: remat: Chen et al., "Training deep nets with sublinear memory cost", 2016, arXiv:1604.06174.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 4))
        >>> block = fc.residual(fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh))
        >>> graph = fc.Graph(x, fc.repeat(block, 100)(x))
        >>> params = graph.init(jax.random.key(0))
        >>> jax.tree.map(jnp.shape, params)
        {'repeat1': {'conv1': {'bias': (100, 4), 'kernel': (100, 3, 3, 4, 4)}}}
        >>> graph(params, jnp.ones((2, 8, 8, 4))).shape
        (2, 8, 8, 4)
    """
    return Repeat(block_of(block, "repeat"), n, remat=remat, name=name, params=params)
