"""The three maps of a convolution: closed under derivatives and batching, and the same in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from jaxprs import primitives

import funcconv as fc
from funcconv._primitives import conv as family
from funcconv._primitives import forms as lowering
from funcconv._primitives.forms import lax_conv as _lax
from funcconv._primitives.forms.products import im2col as _windows
from funcconv._windows import geometry as geometry

OPTIONS = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2)}
FAMILY = {"conv", "conv_input_grad", "conv_kernel_grad"}


@pytest.fixture
def problem(rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2, 2, 6))), "bias": jnp.asarray(rng.normal(size=6))}
    return params, jnp.asarray(rng.normal(size=(3, 7, 6, 4)))


def loss(params, x, implementation=None):
    return jnp.sin(fc.conv(params, x, groups=2, implementation=implementation, **OPTIONS)).sum()


def hvp(params, x, v, implementation=None):
    return jax.jvp(lambda params: jax.grad(loss)(params, x, implementation), (params,), (v,))[1]


def product(a, b):
    return sum((one * other).sum() for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def third(params, x, v):
    return jax.grad(lambda params: product(hvp(params, x, v), v))(params)


DERIVATIVES = {
    "gradient": lambda params, x: jax.grad(loss, argnums=(0, 1))(params, x),
    "hvp": lambda params, x: hvp(params, x, params),
    "third": lambda params, x: third(params, x, params),
    "jacobian": lambda params, x: jax.jacrev(lambda x: fc.conv(params, x, groups=2, **OPTIONS))(x[:1]),
    "hessian": lambda params, x: jax.hessian(loss)(params, x),
    "vmap of grad": lambda params, x: jax.vmap(jax.grad(loss), (None, 0))(params, x),
    "vmap of hvp": lambda params, x: jax.vmap(lambda x: hvp(params, x, params))(x),
    "transposed": lambda params, x: jax.grad(lambda p: (fc.conv_transpose(p, x[..., :2], padding=1) ** 2).sum())(
        {"kernel": params["kernel"][..., :2]}
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_no_derivative_leaves_the_family(name, problem):
    names = primitives(jax.make_jaxpr(DERIVATIVES[name])(*problem))
    assert names & FAMILY
    assert not names & {"conv_general_dilated", "dot_general", "scatter-add", "gather"}


def test_lax_binds_none_of_it(problem):
    params, x = problem
    for f in (loss, jax.grad(loss), lambda params, x, how: hvp(params, x, params, how)):
        names = primitives(jax.make_jaxpr(lambda params, x, f=f: f(params, x, "lax"))(params, x))
        assert "conv_general_dilated" in names
        assert not names & FAMILY
    kernel = {"kernel": params["kernel"][..., :4]}
    back = primitives(jax.make_jaxpr(lambda x: fc.conv_transpose(kernel, x, groups=2, implementation="lax"))(x))
    assert not back & FAMILY
    close(fc.conv_transpose(kernel, x, groups=2, implementation="lax"), fc.conv_transpose(kernel, x, groups=2))
    close(hvp(params, x, params, "lax")["kernel"], hvp(params, x, params)["kernel"])


def test_the_backward_pass_is_the_transposed_convolution(problem):
    params, x = problem
    kernel = {"kernel": params["kernel"]}
    y, pullback = jax.vjp(lambda x: fc.conv(kernel, x, groups=2, **OPTIONS), x)
    (by_vjp,) = pullback(y)
    close(by_vjp, fc.conv_transpose(kernel, y, groups=2, size=x.shape[1:-1], **OPTIONS), ulps=0)
    text = str(jax.make_jaxpr(lambda y: fc.conv_transpose(kernel, y, groups=2, **OPTIONS))(y))
    assert "= conv_input_grad[" in text


def form_of(sizes, window, groups, **options):
    return lowering.Form(geometry.resolve("op", sizes, window, **options), groups)


def draw(rng, form, batch, stack=()):
    """Return an image, a kernel and a result for it."""
    x = rng.normal(size=(*stack, batch, *form.spatial, 2 * form.groups))
    w = rng.normal(size=(*stack, *form.window, 2, 3 * form.groups))
    g = rng.normal(size=(*stack, batch, *form.positions, 3 * form.groups))
    return tuple(map(jnp.asarray, (x, w, g)))


def maps_of(form):
    """The three maps as functions of two arrays, by their operands."""

    def transposed(x, w, g, by):
        _, pullback = jax.vjp(lambda x, w: family.conv(x, w, form), x, w)
        return pullback(g)[by]

    return {
        "xw": lambda x, w: family.conv(x, w, form),
        "wg": lambda w, g: family.conv_input_grad(w, g, form),
        "xg": lambda x, g: transposed(x, jnp.zeros((*form.window, 2, g.shape[-1]), x.dtype), g, 1),
    }


@pytest.mark.parametrize("operands", ["xw", "wg", "xg"])
@pytest.mark.parametrize("groups", [1, 3])
def test_batching_is_a_loop_and_stays_in_the_family(operands, groups, rng):
    form = form_of((5, 4), (3, 2), groups, stride=(2, 1), padding=((1, 0), (2, 1)))
    f = maps_of(form)[operands]
    one = dict(zip("xwg", draw(rng, form, 2), strict=True))
    many = dict(zip("xwg", draw(rng, form, 2, (4, 3)), strict=True))
    a, b = operands
    for axes in [((0, 1), None), (None, (1, 0)), ((0, 0), (1, 1)), ((1, None), (0, 0)), ((None, 1), (0, None))]:
        # The outer and the inner map of each operand: it has one axis for each that is not None.
        arrays = []
        for name, mapped in zip((a, b), axes, strict=True):
            array = many[name] if mapped is not None else one[name]
            if mapped is not None and None in mapped:
                array = array[:, 0] if mapped[0] is not None else array[0]
                array = array if mapped[0] is not None else jnp.stack([array[i % 3] for i in range(3)])
            arrays.append(array)
        outer = [None if mapped is None or mapped[0] is None else 0 for mapped in axes]
        inner = [None if mapped is None or mapped[1] is None else 0 for mapped in axes]
        mapped = jax.vmap(jax.vmap(f, inner, out_axes=1), outer)
        loop = [
            [
                f(*(_at(_at(array, o, i), n, j) for array, o, n in zip(arrays, outer, inner, strict=True)))
                for j in range(3)
            ]
            for i in range(4)
        ]
        close(jax.jit(mapped)(*arrays), np.moveaxis(np.asarray(loop), 1, 2))
        assert not primitives(jax.make_jaxpr(mapped)(*arrays)) & {"conv_general_dilated", "scan", "while"}


def _at(array, axis, i):
    return array if axis is None else array[i]


def test_every_form_is_the_reference(rng):
    geometries = [
        ((7,), (3,), 1, {"stride": 2, "padding": 2}),
        ((6, 5), (2, 3), 2, {"dilation": (2, 1), "padding": ((-1, 3), (4, 0))}),
        ((4, 3, 5), (2, 2, 1), 1, {"stride": (1, 3, 2)}),
        ((5, 5), (1, 1), 3, {"stride": 2}),
    ]
    for sizes, window, groups, options in geometries:
        form = form_of(sizes, window, groups, **options)
        x, w, g = draw(rng, form, 2)

        def value_and_gradients(conv, x, w, g, form=form):
            y, pullback = jax.vjp(lambda x, w: conv(x, w, form), x, w)
            return y, *pullback(g)

        for ours, reference in zip(
            jax.jit(value_and_gradients, static_argnums=0)(_windows.conv, x, w, g),
            jax.jit(value_and_gradients, static_argnums=0)(_lax.reference, x, w, g),
            strict=True,
        ):
            close(ours, reference)


def test_eager_calls_compile_once(problem, compilations):
    params, x = problem
    other, fewer = x + 1, x[:2]
    fc.conv(params, x, groups=2)
    jax.grad(loss)(params, x)
    compilations.clear()
    fc.conv(params, other, groups=2)
    jax.grad(loss)(params, other)
    assert not compilations
    fc.conv(params, fewer, groups=2, stride=3, padding=5)
    assert compilations  # they are heard


def test_in_control_flow(problem):
    params, x = problem
    kernel = {"kernel": params["kernel"][..., :2, :4]}

    def step(x):
        return jnp.tanh(fc.conv(kernel, x, groups=2, padding="SAME"))

    def loop(x):
        return step(step(step(x))).sum()

    def scan(x):
        return jax.lax.scan(lambda x, _: (step(x), None), x, length=3)[0].sum()

    def fori(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: step(x), x).sum()  # noqa: ARG005

    def cond(x):
        return jax.lax.cond(x[0, 0, 0, 0] > -1e9, loop, jnp.sum, x)

    expected = jax.grad(loop)(x)
    for f in (scan, cond):
        close(jax.jit(jax.grad(f))(x), expected)
        close(
            jax.jit(jax.jacfwd(lambda t, f=f: jax.grad(f)(t * x)))(1.0),
            jax.jacfwd(lambda t: jax.grad(loop)(t * x))(1.0),
        )
    close(jax.jit(fori)(x), loop(x))
    close(jax.jvp(fori, (x,), (x,))[1], jax.jvp(loop, (x,), (x,))[1])
    while_loop = jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (step(c[0]), c[1] + 1), (x, 0))[0]
    close(while_loop.sum(), loop(x))


def test_checkpoint_policy_saves_products_and_convolutions(problem):
    params, x = problem

    def f(params, x):
        y = jnp.sin(fc.conv(params, jnp.cos(x), groups=2)).reshape(len(x), -1)
        return jnp.sin(jnp.tanh(y) @ jnp.ones((y.shape[1], 2))).sum()

    def recomputed(**options):
        jaxpr = jax.make_jaxpr(jax.grad(jax.checkpoint(f, **options)))(params, x)
        (remat,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("checkpoint", "remat2", "remat")]
        return primitives(remat.params["jaxpr"])

    assert {"conv", "dot_general"} <= recomputed()
    assert not {"conv"} & recomputed(policy=fc.checkpoint_policy)
    assert "conv" in recomputed(policy=jax.checkpoint_policies.checkpoint_dots)
    jax.tree.map(close, jax.grad(jax.checkpoint(f, policy=fc.checkpoint_policy))(params, x), jax.grad(f)(params, x))
