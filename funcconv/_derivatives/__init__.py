"""Derivatives of a function of a tree: second-order products, curvature as operators, gradients by example and batch.

Nothing here knows of layers or graphs: `f` is a function of a tree, closed over its data, that gives a number.

Example:
    >>> import funcconv as fc, jax.numpy as jnp
    >>> def f(params):
    ...     return params["a"] ** 2 * params["b"]
    >>> point = {"a": jnp.float32(3), "b": jnp.float32(5)}
    >>> fc.hessian(f, point).dense().tolist()
    [[10.0, 6.0], [6.0, 0.0]]
"""

from .curvature import fisher as fisher
from .curvature import gauss_newton as gauss_newton
from .curvature import hessian as hessian
from .density import Density as Density
from .hutchinson import Estimate as Estimate
from .hvp import hvp as hvp
from .hvp import linearize_hvp as linearize_hvp
from .in_batches import value_and_grad_in_batches as value_and_grad_in_batches
from .linear_map import LinearMap as LinearMap
from .operator import Operator as Operator
from .per_example import per_example_grad as per_example_grad
