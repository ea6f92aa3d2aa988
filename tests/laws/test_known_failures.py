"""What does not work fails as the documentation says."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.experimental.jet import jet

import funcconv as fc

PAGE = Path(__file__).parents[2] / "docs" / "derivatives.md"
KERNEL, IMAGE = jnp.ones((3, 3, 2, 4)), jnp.ones((4, 8, 6, 2))


def symbolic_sizes():
    sizes = export.symbolic_shape("h, w")
    return jax.eval_shape(lambda x: fc.conv({"kernel": KERNEL}, x), jax.ShapeDtypeStruct((1, *sizes, 2), KERNEL.dtype))


def jet_of_a_sort():
    x = jnp.ones((4, 1))
    return jet(lambda x: fc.pool(x, (2,), reduce=partial(jnp.quantile, q=0.5)), (x,), ((x,),))


def reverse_through_while():
    kernel = {"kernel": jnp.ones((1, 1, 2, 2))}

    def loop(x):
        return jax.lax.while_loop(lambda c: c[1] < 2, lambda c: (fc.conv(kernel, c[0]), c[1] + 1), (x, 0))[0].sum()

    return jax.grad(loop)(IMAGE)


FAILURES = {
    "symbolic spatial sizes": symbolic_sizes,
    "`jet` through a `reduce=` function that sorts": jet_of_a_sort,
    "reverse mode through `jax.lax.while_loop`": reverse_through_while,
}


def rows():
    table = PAGE.read_text().split("## Known limits")[1]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines() if line.startswith("|")][2:]
    return [(what, error.split("`")[1]) for what, error, _ in cells]


@pytest.mark.parametrize(("what", "error"), rows())
def test_fails_as_written(what, error):
    (fail,) = [f for name, f in FAILURES.items() if what.startswith(name)]
    kind, _, text = error.partition(": ")
    with pytest.raises(Exception, match=".*".join(map(re.escape, text.split("…")))) as raised:
        jax.block_until_ready(fail())
    assert type(raised.value).__name__ == kind


def test_every_failure_is_written():
    assert len(rows()) == len(FAILURES)
    assert all(any(what.startswith(name) for what, _ in rows()) for name in FAILURES)
