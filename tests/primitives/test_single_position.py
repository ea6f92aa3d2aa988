"""The form for a single position of the image or of the result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._primitives.forms import Form, reference
from funcconv._primitives.forms.products import single_position
from funcconv._windows.geometry import resolve

# The size, the window and the options of each axis, and the groups.
CASES = {
    "the window is the image": (((4, 4, {}), (5, 5, {})), 1),
    "three axes, groups": (((2, 2, {}), (3, 3, {}), (2, 2, {})), 3),
    "cropped and dilated": (((11, 3, {"dilation": 2, "padding": ((-3, -1),), "stride": 3}),), 2),
    "taps on padding": (((3, 5, {"padding": ((1, 1),)}), (2, 4, {"padding": ((2, 0),)})), 1),
    "one position of the image": (((1, 4, {"padding": "FULL"}), (1, 3, {"padding": "FULL"})), 1),
    "image of one position, groups": (((1, 4, {"padding": ((3, 5),)}),), 2),
    "stride and dilation": (((1, 7, {"padding": ((9, 11),), "stride": 2, "dilation": 3}),), 1),
    "stride with a common factor": (((1, 5, {"padding": ((8, 10),), "stride": 4, "dilation": 2}),), 2),
    "one of both": (((1, 4, {"padding": "FULL"}), (5, 5, {}), (1, 3, {"padding": ((2, 1),)})), 1),
    "one of both, groups": (((6, 6, {}), (1, 3, {"padding": "FULL"})), 2),
}


def form_of(name):
    axes, groups = CASES[name]
    return Form(tuple(resolve("op", (size,), window, **options)[0] for size, window, options in axes), groups).trimmed


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("name", CASES)
def test_each_map_is_the_reference(name, dtype, rng):
    form = form_of(name)
    assert single_position.applies(form)

    def draw(*shape):
        values = rng.normal(size=shape)
        return jnp.asarray(values + 1j * rng.normal(size=shape) if dtype == np.complex128 else values, dtype)

    x = draw(3, *form.spatial, 2 * form.groups)
    kernel = draw(*form.window, 2, 5 * form.groups)
    g = draw(3, *form.positions, 5 * form.groups)

    @jax.jit
    def all_maps(x, kernel, g):
        conv = partial(reference, form=form)
        return (
            (single_position.conv(x, kernel, form), conv(x, kernel)),
            (
                single_position.input_grad(kernel, g, form),
                *jax.linear_transpose(lambda x: conv(x, kernel), x)(g),
            ),
            (
                single_position.kernel_grad(x, g, form),
                *jax.linear_transpose(lambda kernel: conv(x, kernel), kernel)(g),
            ),
        )

    for actual, expected in all_maps(x, kernel, g):
        close(*(np.stack([np.real(array), np.imag(array)]) for array in (actual, expected)))


@pytest.mark.parametrize(
    "axis",
    [(4, 3, {}), (1, 3, {"padding": 1}), (1, 2, {"padding": 3, "dilation": 6})],
    ids=["several positions", "several positions on padding", "no tap on the image"],
)
def test_it_applies_to_one_position_only(axis):
    size, window, options = axis
    form = Form(resolve("op", (size,), window, **options)).trimmed
    assert single_position.applies(form) == (form.axes[0].inside > 0 and 1 in (size, form.axes[0].outputs))
    assert single_position.applies(form) == (axis == (1, 3, {"padding": 1}))


def forms(op, kernel, x, **options):
    """Return the forms of an op and of its gradients."""
    kernel, x = jax.ShapeDtypeStruct(kernel, np.float32), jax.ShapeDtypeStruct(x, np.float32)

    def all_maps(kernel, x):
        y, pullback = jax.vjp(lambda kernel, x: op({"kernel": kernel}, x, **options), kernel, x)
        return y, pullback(y)

    return {row.map: row.form for row in fc.explain(all_maps, kernel, x, platform="cpu")}


def test_it_is_chosen():
    transposed = forms(fc.conv_transpose, (28, 28, 1, 1, 50), (200, 1, 1, 1, 50))
    assert transposed["conv_input_grad"] == transposed["conv_kernel_grad"] == "single_position"
    covering = forms(fc.conv, (7, 7, 16, 128), (32, 7, 7, 64), groups=4)
    assert covering["conv_input_grad"] == covering["conv_kernel_grad"] == "single_position"
    assert set(forms(fc.conv, (4, 4, 32, 64), (64, 1, 1, 32), padding="FULL").values()) == {"single_position"}
    assert forms(fc.conv, (2, 32, 32), (1, 2, 32))["conv"] == "single_position"  # a sample of a stream
    assert "single_position" not in forms(fc.conv, (3, 3, 32, 64), (64, 8, 8, 32)).values()
    assert "single_position" not in forms(fc.conv, (3, 3, 64, 64), (64, 1, 1, 64), padding=1).values()  # one tap


def test_derivatives_of_a_transposed_convolution(rng):
    kernel, y = (jnp.asarray(rng.normal(size=shape)) for shape in ((14, 15, 2, 20), (16, 1, 1, 20)))

    @partial(jax.jit, static_argnums=0)
    def derivatives(how, kernel, y):
        def s(kernel, y):
            return jnp.sin(fc.conv_transpose({"kernel": kernel}, y, implementation=how)).sum()

        gradient = jax.grad(s, argnums=(0, 1))
        return gradient(kernel, y), jax.jvp(gradient, (kernel, y), (kernel, y))[1]

    jax.tree.map(partial(close, terms=512), derivatives(None, kernel, y), derivatives("lax", kernel, y))
