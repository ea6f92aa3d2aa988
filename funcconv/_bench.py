"""The command `funcconv bench`: time a network, with or without measured forms."""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._common.dtypes import is_kept
from ._common.errors import FuncconvError
from ._primitives.compiler import compiled_with, compiler_options
from ._primitives.tuning import Tuning, tuned, tuning_of_environment
from .interop import _formats as formats

_TIMED_RUNS = 20


def bench(options: argparse.Namespace) -> None:
    """Print the time of a network's value and of its gradient, and the time of compiling them."""
    if options.batch < 1:
        msg = f"bench: --batch must be a positive integer; got {options.batch}"
        raise FuncconvError(msg)
    graph, params, state = formats.network(options.file)
    params = graph.init(jax.random.key(0)) if params is None else params
    shapes, state = graph.shapes(params), state or graph.init_state(params)
    check_precision(options.file, params, state, [shapes[name] for name in graph.inputs])
    xs = [jnp.zeros((options.batch, *shapes[name].shape), shapes[name].dtype) for name in graph.inputs]
    tuning = tuning_of_environment() if options.tuning is None else Tuning.load(options.tuning)
    with_options = compiler_options() if tuning is None else tuning.compiler_options

    def value(params: Any, *xs: Any) -> Any:
        return graph.apply(params, state, *xs)[0]

    def loss(params: Any, *xs: Any) -> Any:
        return sum(y.sum() for y in jax.tree.leaves(value(params, *xs)))

    for name, f in (("value", value), ("gradient", jax.grad(loss))):
        begun = time.perf_counter()
        traced = compiled_with(with_options)(f) if tuning is None else tuned(tuning)(f)
        compiled = jax.jit(traced, compiler_options=with_options).lower(params, *xs).compile()
        seconds = time.perf_counter() - begun
        jax.block_until_ready(compiled(params, *xs))  # type: ignore[no-untyped-call]
        taken = []
        for _ in range(_TIMED_RUNS):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(params, *xs))  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - begun)
        ms = 1e3 * float(np.median(taken))
        print(f"{name}: {ms:.3f} ms for {options.batch} examples, {seconds:.2f} s to compile")


def check_precision(path: str, *trees: Any) -> None:
    """Refuse a network of 64 bits where JAX has none: it would be computed with fewer, without a word."""
    for leaf in jax.tree.leaves(trees):
        if not is_kept(leaf.dtype):
            msg = f"{path} has numbers of {leaf.dtype}, which JAX has only if the environment says JAX_ENABLE_X64=1"
            raise FuncconvError(msg)
