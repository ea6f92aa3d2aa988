"""What programs for one GPU look like. None is needed: they are lowered for it, or computed on the CPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compare import close

import funcconv as fc
from funcconv._primitives.forms import lax_conv as _lax_conv
from funcconv._primitives.forms.form import Form
from funcconv._windows.geometry import resolve


def lowered(f, *args):
    return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def gradients(op):
    return jax.grad(lambda params, x: jnp.square(op(params, x)).sum(), (0, 1))


def forms_on_gpu(f, *args):
    return {row.map: row.form for row in fc.explain(f, *args, platform="gpu")}


GEOMETRIES = {
    "a stride leaves the last zero unread": {"sizes": (8, 9), "window": 3, "stride": 2, "padding": 1},
    "a stride leaves inputs unread": {"sizes": (8, 11), "window": 2, "stride": 3},
    "one tap": {"sizes": (8, 7), "window": 1, "stride": 2},
    "window and stride of two": {"sizes": (8, 7), "window": 2, "stride": 2, "padding": 1},
    "the same size": {"sizes": (8, 9), "window": (3, 5), "stride": 2, "padding": "SAME"},
    "dilation": {"sizes": (12, 9), "window": 3, "stride": 3, "dilation": 2, "padding": 2},
    "cropped": {"sizes": (12, 9), "window": 3, "stride": 2, "padding": ((-2, -1), (1, -1))},
    "causal": {"sizes": (12, 9), "window": 4, "stride": 2, "padding": "CAUSAL"},
    "more padding than taps": {"sizes": (7, 9), "window": 2, "stride": 4, "padding": 3},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_equal_padding_changes_nothing(geometry, rng):
    options = dict(geometry)
    sizes = options.pop("sizes")
    window = options.pop("window")
    axes = resolve("conv", sizes, (window,) * 2 if isinstance(window, int) else window, **options)
    form = Form(axes, groups=2)
    kernel, x = (rng.normal(size=shape) for shape in ((*form.window, 2, 6), (3, *sizes, 4)))

    @partial(jax.jit, static_argnames="symmetric")
    def maps(kernel, x, symmetric):
        y, transposed = jax.vjp(lambda *args: _lax_conv.reference(*args, form, symmetric=symmetric), x, kernel)
        return y, transposed(jnp.cos(y))

    jax.tree.map(close, maps(kernel, x, symmetric=True), maps(kernel, x, symmetric=False))


def test_a_gpu_gets_equal_padding_and_no_copies():
    """With other padding, XLA for GPUs copies the image, since cuDNN has equal padding only."""
    params = {"kernel": jnp.ones((3, 3, 4, 6), jnp.float32)}
    text = lowered(partial(fc.conv, stride=2, padding=1), params, jnp.ones((2, 8, 8, 4), jnp.float32))
    assert "pad = [[1, 1], [1, 1]]" in text
    text = lowered(
        partial(fc.conv, stride=2), {"kernel": params["kernel"][:1, :1]}, jnp.ones((2, 8, 8, 4), jnp.float32)
    )
    assert not re.search(r"stablehlo\.(pad|slice)", text)


def test_pools_are_one_operation():
    text = lowered(fc.max_pool, jnp.ones((2, 8, 8, 4), jnp.float32))
    assert text.count("stablehlo.reduce_window") == 1


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_depthwise(axes):
    """XLA is slow for these on GPUs."""
    params, x = {"kernel": jnp.ones((*(3,) * axes, 1, 32), jnp.float32)}, jnp.ones((2, *(16,) * axes, 32), jnp.float32)
    conv = partial(fc.conv, groups=32, padding=1)
    assert forms_on_gpu(gradients(conv), params, x) == {
        "conv": "shifted_sum",
        "conv_input_grad": "stride_phases",
        "conv_kernel_grad": "lax",
    }
    assert "stablehlo.convolution" not in lowered(conv, params, x)
    dilated = forms_on_gpu(gradients(partial(conv, dilation=2)), params, x)
    assert dilated["conv_kernel_grad"] == "product_per_tap"
    strided = forms_on_gpu(gradients(partial(conv, stride=2)), params, x)
    assert strided["conv_input_grad"] == "lax"


def test_what_else_xla_is_slow_at():
    params, x = {"kernel": jnp.ones((3, 3, 8, 16), jnp.float32)}, jnp.ones((2, 17, 17, 8), jnp.float32)
    usual = {"conv": "lax", "conv_input_grad": "lax", "conv_kernel_grad": "lax"}
    assert forms_on_gpu(gradients(fc.conv), params, x) == usual
    assert forms_on_gpu(gradients(partial(fc.conv, stride=2)), params, x) == usual | {
        "conv_input_grad": "stride_phases"
    }
    assert forms_on_gpu(gradients(partial(fc.conv, dilation=2)), params, x) == usual | {
        "conv_kernel_grad": "blocked_im2col"
    }
    assert set(forms_on_gpu(gradients(fc.conv), params, x[:, :3, :3]).values()) == {"single_position"}
    assert (
        forms_on_gpu(
            gradients(partial(fc.conv, stride=2, dilation=2, groups=2)), {"kernel": params["kernel"][:, :, :4]}, x
        )
        == usual
    )


def test_an_accumulate_dtype_keeps_the_form_of_xla():
    conv, x = partial(fc.conv, groups=8), jnp.ones((2, 16, 8), jnp.float32)
    params = {"kernel": jnp.ones((3, 1, 8), jnp.float32)}
    assert forms_on_gpu(conv, params, x) == {"conv": "shifted_sum"}
    assert forms_on_gpu(partial(conv, accumulate_dtype=jnp.float64), params, x) == {"conv": "lax"}
