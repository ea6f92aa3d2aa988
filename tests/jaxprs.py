"""Walking over traced programs."""

from jax.extend import core


def equations(jaxpr):
    """Return all equations of a jaxpr, and of those within it."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def primitives(jaxpr):
    """Return the names of all operations."""
    return {eqn.primitive.name for eqn in equations(jaxpr)}
