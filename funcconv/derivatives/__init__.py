"""Derivatives of a function of a tree: second-order products, curvature as operators, gradients by example and batch.

Nothing here knows of layers or graphs: `f` is a function of a tree, closed over its data, that gives a number.

Example:
    >>> import funcconv as fc, jax.numpy as jnp
    >>> def f(params):
    ...     return params["a"] ** 2 * params["b"]
    >>> point = {"a": jnp.float32(3), "b": jnp.float32(5)}
    >>> fc.derivatives.hessian(f, point).dense().tolist()
    [[10.0, 6.0], [6.0, 0.0]]
"""

from ._curvature import fisher as fisher
from ._curvature import gauss_newton as gauss_newton
from ._curvature import hessian as hessian
from ._density import Density as Density
from ._hutchinson import Estimate as Estimate
from ._hvp import hvp as hvp
from ._hvp import linearize_hvp as linearize_hvp
from ._in_batches import value_and_grad_in_batches as value_and_grad_in_batches
from ._linear_map import LinearMap as LinearMap
from ._operator import Operator as Operator
from ._per_example import per_example_grad as per_example_grad
