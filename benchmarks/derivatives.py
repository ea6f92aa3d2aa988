"""What derivatives cost, in gradients of the same function.

A product with the Hessian should cost at most 2.5 gradients; the gradients of 64 examples at most 3 gradients of their
mean, and a fifth of what `vmap(grad)` costs through the convolutions of `jax.lax`.
"""

from typing import Any

import jax
import jax.numpy as jnp

import funcconv as fc

from .libraries import on_jax
from .networks import NETWORKS
from .tables import Table
from .timing import medians

PATIENCE = 2.0  # seconds for each of some sixty ways


def problem(name: str, library: str = "funcconv") -> tuple[Any, Any, Any]:
    """Return the loss `f(params, x)`, parameters and a small batch; the loss of an example depends on it alone."""
    net, _, shape = NETWORKS[name]
    params, predict, x = on_jax()[library](net, jax.random.normal(jax.random.key(0), shape))
    return lambda params, x: jnp.square(predict(params, x) - 1).mean(), params, x


def products_with_the_hessian(rounds: int) -> Table:
    """Return, for each network, the cost of a product in each mode over that of a gradient."""
    table = {}
    for name in NETWORKS:
        loss, params, x = problem(name)
        gradient = jax.jit(jax.grad(loss))
        ways = {"gradient": lambda g=gradient, p=params, x=x: g(p, x)}
        for mode in ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"):
            product = jax.jit(lambda p, x, f=loss, mode=mode: fc.hvp(lambda p: f(p, x), p, p, mode))
            ways[mode] = lambda h=product, p=params, x=x: h(p, x)
        seconds = medians(ways, rounds, PATIENCE)
        table[name] = {"gradient, ms": 1e3 * seconds["gradient"]} | {
            mode: seconds[mode] / seconds["gradient"] for mode in ways if mode != "gradient"
        }
    return table


def gradients_of_examples(rounds: int) -> Table:
    """Return, for each network, the cost of all gradients of 64 examples over that of the gradient of their mean."""
    table = {}
    for name in NETWORKS:
        loss, params, x = problem(name)
        through_lax, _, _ = problem(name, "lax")
        x = jax.numpy.resize(x, (64, *x.shape[1:]))

        def of_one(params, x, loss=loss):
            return loss(params, x[None])

        def of_one_lax(params, x, loss=through_lax):
            return loss(params, x[None])

        functions = {
            "gradient": jax.grad(loss),
            "per_example_grad": fc.per_example_grad(of_one),
            "vmap(grad)": jax.vmap(jax.grad(of_one), (None, 0)),
            "per_example_grad_norm": fc.per_example_grad_norm(of_one),
            "vmap(grad) through lax": jax.vmap(jax.grad(of_one_lax), (None, 0)),
        }
        compiled = {way: jax.jit(f) for way, f in functions.items()}
        ways = {way: lambda f=f, p=params, x=x: f(p, x) for way, f in compiled.items()}
        seconds = medians(ways, rounds, PATIENCE)
        table[name] = {"gradient, ms": 1e3 * seconds["gradient"]} | {
            way: seconds[way] / seconds["gradient"] for way in functions if way != "gradient"
        }
    return table


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return all tables."""
    rounds = 3 if quick else 9
    return {
        "a product with the Hessian, in gradients": products_with_the_hessian(rounds),
        "gradients of 64 examples, in gradients of their mean": gradients_of_examples(rounds),
    }
