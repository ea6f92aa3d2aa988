"""A deep-learning course's numbers and claims on DAG networks, convolution and pooling, each under its name."""

import digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once


def image(*values):
    """Return a signal of one channel, `(positions, 1)`."""
    return jnp.array(values, jnp.float64).reshape(-1, 1)


def kernel(*values):
    """Return the parameters of a 1-d kernel of one channel in and out."""
    return {"kernel": jnp.array(values, jnp.float64).reshape(-1, 1, 1)}


def values(y):
    return np.asarray(y).ravel().tolist()


# convolution -----------------------------------------------------------------------------------------------


def test_convolution_is_correlation():
    assert values(fc.conv(kernel(3, 2), image(1, 2, 3, 4))) == [7, 12, 17]


def test_a_kernel_finds_the_edges():
    signal = image(0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4)
    assert values(fc.conv(kernel(-1, 1), signal)) == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_true_convolution_flips_the_kernel():
    x, w = image(1, 2, 3, 4), kernel(3, 2)
    flipped = values(fc.conv(w, x, flip=True))
    assert flipped == [8, 13, 18]
    assert flipped == np.convolve([1, 2, 3, 4], [3, 2], mode="valid").tolist()
    assert values(fc.conv(w, x, flip=True, padding="FULL")) == np.convolve([1, 2, 3, 4], [3, 2]).tolist()


def test_true_convolution_commutes_and_correlation_does_not():
    a, b = (1.0, 2.0, 3.0), (4.0, 5.0, 7.0)

    def apply(a, b, flip):
        return values(fc.conv(kernel(*b), image(*a), padding="FULL", flip=flip))

    assert apply(a, b, flip=True) == apply(b, a, flip=True)
    assert apply(a, b, flip=False) == apply(b, a, flip=False)[::-1]


def test_half_padding_and_stride():
    x, w = image(1, 2, 3, 4), kernel(1, 2, 3)
    assert values(fc.conv(w, x, padding="HALF")) == [8, 14, 20, 11]
    assert values(fc.conv(w, x, padding="HALF", stride=2)) == [8, 20]


def test_a_template_matcher_peaks_at_the_template(rng):
    scene = rng.normal(size=(12, 15, 1))
    for row, column in [(0, 0), (3, 7), (8, 10)]:
        template = scene[row : row + 4, column : column + 5]
        windows = {"kernel": np.ones((4, 5, 1, 1))}
        match = fc.conv({"kernel": template[..., None]}, scene) / jnp.sqrt(fc.conv(windows, scene**2))
        assert np.unravel_index(np.argmax(match), match.shape) == (row, column, 0)


IMAGE = [
    [[1, -2, 2, 2], [2, 1, 3, -2], [-2, 3, -3, 1], [-1, 2, -4, 2]],
    [[3, 0, 0, 0], [-2, -2, 1, -1], [2, -1, 3, 1], [5, -2, 0, 1]],
]
KERNELS = [  # output, input
    [[[1, -2], [-2, 1]], [[1, 0], [0, 1]]],
    [[[3, 1], [2, 2]], [[0, 0], [0, 4]]],
]
BIAS = jnp.array([0.1, 0.2])


def test_two_channels_in_and_two_out():
    """The course prints -3.1 for the first entry of the first map: a slip, it is 3.1."""
    weights = jnp.array(KERNELS, jnp.float64).transpose(2, 3, 1, 0)  # (kh, kw, in, out)
    maps = fc.conv({"kernel": weights, "bias": BIAS}, jnp.array([IMAGE], jnp.float64), layout="NCHW")[0]
    close(maps[0], [[3.1, -3.9, -10.9], [4.1, -12.9, 16.1], [-3.9, 0.1, 9.1]])
    close(maps[1], [[-0.8, 8.2, 6.2], [5.2, 18.2, 7.2], [-8.8, 2.2, -7.8]])


def test_the_layout_trap():
    """The same numbers, grouped as H, W, C and kh, kw, in, out without being reordered, give another answer."""
    grouped = [  # the left and the right half of the first channel, then those of the second
        [[1, -2], [2, 1], [-2, 3], [-1, 2]],
        [[2, 2], [3, -2], [-3, 1], [-4, 2]],
        [[3, 0], [-2, -2], [2, -1], [5, -2]],
        [[0, 0], [1, -1], [3, 1], [0, 1]],
    ]
    np.testing.assert_array_equal(np.concatenate(np.array(grouped)[:2], axis=1), IMAGE[0])
    np.testing.assert_array_equal(np.concatenate(np.array(grouped)[2:], axis=1), IMAGE[1])
    weights = jnp.array(KERNELS, jnp.float64)  # (out, in, kh, kw) taken for (kh, kw, in, out)
    maps = fc.conv({"kernel": weights, "bias": BIAS}, jnp.array(grouped, jnp.float64))
    assert maps.shape == (3, 3, 2)
    close(maps[0], [[17.1, -4.8], [3.1, 3.2], [-15.9, 16.2]])


# the backward pass -----------------------------------------------------------------------------------------


def test_the_jacobians_are_band_matrices():
    x, w = image(1, 2, 3, 4), kernel(3, 2)
    by_image = jax.jacobian(lambda x: fc.conv(w, x)[:, 0])(x)[..., 0]
    assert by_image.tolist() == [[3, 2, 0, 0], [0, 3, 2, 0], [0, 0, 3, 2]]
    by_kernel = jax.jacobian(lambda w: fc.conv(w, x)[:, 0])(w)["kernel"][..., 0, 0]
    assert by_kernel.tolist() == [[1, 2], [2, 3], [3, 4]]


def test_the_backward_pass_is_two_more_convolutions(rng):
    x, w = image(*rng.normal(size=7)), kernel(*rng.normal(size=3))
    y, pullback = jax.vjp(fc.conv, w, x)
    y_bar = jnp.asarray(rng.normal(size=y.shape))
    w_bar, x_bar = pullback(y_bar)
    # dL/dW = correlation(I, dL/dO)
    close(w_bar["kernel"], fc.conv({"kernel": y_bar[..., None]}, x)[..., None])
    # dL/dI = correlation(W padded, dL/dO flipped), up to the order in which it comes out
    flipped = fc.conv({"kernel": y_bar[::-1][..., None]}, w["kernel"][..., 0], padding="FULL")
    close(x_bar, flipped)


def test_a_3_by_3_kernel_on_a_4_by_4_image_is_a_4_by_16_matrix(rng):
    w, x = rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    matrix = fc.conv_matrix({"kernel": w[..., None, None]}, (4, 4))
    zero = np.zeros(1)
    first = np.concatenate([w[0], zero, w[1], zero, w[2], zero, zero, zero, zero, zero])
    by_hand = np.stack([first, np.roll(first, 1), np.roll(first, 4), np.roll(first, 5)])
    np.testing.assert_array_equal(matrix, by_hand)
    y = fc.conv({"kernel": w[..., None, None]}, x[..., None])
    close(matrix @ x.ravel(), y.ravel())
    back = fc.conv_transpose({"kernel": w[..., None, None]}, y)
    close(matrix.T @ y.ravel(), back.ravel())


def test_transposed_convolution_is_the_backward_pass(rng):
    params, x = {"kernel": rng.normal(size=(3, 3, 1, 1))}, rng.normal(size=(1, 5, 5, 1))
    y, pullback = jax.vjp(lambda x: fc.conv(params, x, stride=2), x)
    assert y.shape == (1, 2, 2, 1)
    y_bar = rng.normal(size=y.shape)
    back = fc.conv_transpose(params, y_bar, stride=2)
    assert back.shape == (1, 5, 5, 1)
    close(back, pullback(y_bar)[0])


# shapes ----------------------------------------------------------------------------------------------------


def shape_of(window, channels, x, layout="NCHW", **options):
    params = {"kernel": jnp.zeros((*window, *channels))}
    return jax.eval_shape(lambda x: fc.conv(params, x, layout=layout, **options), jnp.zeros(x)).shape


def test_shapes_of_conv2d():
    assert shape_of((2, 3), (4, 5), (117, 4, 10, 3)) == (117, 5, 9, 1)  # weight (5, 4, 2, 3)
    assert shape_of((3, 3), (1, 1), (1, 1, 3, 5), padding=(2, 1), stride=(2, 2)) == (1, 1, 3, 3)
    assert shape_of((3, 3), (1, 1), (1, 1, 20, 30), dilation=4) == (1, 1, 12, 22)


def test_a_dilated_filter_extends_over_1_plus_k_minus_1_times_d():
    for k in range(1, 6):
        for d in range(1, 5):
            extent = 1 + (k - 1) * d
            assert shape_of((k,), (1, 1), (1, 1, extent), "NCW", dilation=d) == (1, 1, 1)
            spread = fc.conv(kernel(*range(1, k + 1)), jnp.eye(extent)[..., None], dilation=d)
            assert np.flatnonzero(spread).tolist() == [i * d for i in range(k)]


def test_the_dense_layer_that_a_convolution_spares():
    """256 x 256 x 3 to as many: 3.87e10 parameters, about 150 GB in float32; the convolution has a handful."""
    x = fc.Input("x", (256, 256, 3))
    dense = fc.Graph(x, fc.serial(fc.Flatten(), fc.Dense(256 * 256 * 3, bias=False))(x))
    conv = fc.Graph(x, fc.Conv(3, 3, padding="SAME")(x))

    def count(graph):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(graph.init, jax.random.key(0))))

    assert count(dense) == 196_608**2
    assert round(count(dense) / 1e10, 2) == 3.87
    assert 140 < count(dense) * 4 / 2**30 < 160
    assert count(conv) == 3 * 3 * 3 * 3 + 3


# on a real digit -------------------------------------------------------------------------------------------


def test_five_hand_written_filters_on_a_digit():
    digit = digits.load(None)[0].images[0, ..., 0].astype(np.float64)
    filters = np.array(
        [
            [[0, 0, 0], [0, 1, 0], [0, 0, 0]],  # the digit itself
            [[1, 1, 1], [1, 1, 1], [1, 1, 1]],  # blur
            [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],  # vertical edges
            [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],  # horizontal edges
            [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],  # outline
        ],
        np.float64,
    )
    params = {"kernel": filters.transpose(1, 2, 0)[:, :, None]}
    maps = fc.conv(params, digit[..., None])
    assert maps.shape == (26, 26, 5)
    for row, column in np.ndindex(26, 26):
        close(maps[row, column], (digit[row : row + 3, column : column + 3] * filters).sum((1, 2)))
    np.testing.assert_array_equal(maps[..., 0], digit[1:-1, 1:-1])
    assert maps[..., 1].max() > 5  # there is ink
    assert abs(maps[..., 2:].sum((0, 1))).max() < 1e-9  # edges cancel, as the border is empty
    turned = fc.conv(params, digit.T[..., None])
    close(turned[..., 2], maps[..., 3].T)  # the vertical edges of the transposed digit are its horizontal ones


# invariances -----------------------------------------------------------------------------------------------


def test_convolution_is_equivariant_to_translation(rng):
    params, x = {"kernel": rng.normal(size=(3, 3, 2, 4))}, rng.normal(size=(9, 8, 2))
    y = fc.conv(params, x, padding=1, pad_mode="circular")
    for shift in [(1, 0), (0, 3), (-2, 5)]:
        close(fc.conv(params, jnp.roll(x, shift, (0, 1)), padding=1, pad_mode="circular"), jnp.roll(y, shift, (0, 1)))
    moved = jnp.pad(x, ((2, 0), (1, 0), (0, 0)))  # without wrapping: the result moves with the image
    close(fc.conv(params, moved)[2:, 1:], fc.conv(params, x))


def test_pooling_is_invariant_to_permutations_inside_a_cell(rng):
    x = rng.normal(size=(3, 2, 3, 2, 2))  # cells of 2 x 2
    order = rng.permutation(4)
    permuted = (
        x.transpose(0, 2, 1, 3, 4).reshape(3, 3, 4, 2)[:, :, order].reshape(3, 3, 2, 2, 2).transpose(0, 2, 1, 3, 4)
    )
    for reduce in ("max", "min", "sum", "mean"):
        close(*(fc.pool(each.reshape(6, 6, 2), (2, 2), reduce=reduce) for each in (x, permuted)))


def test_max_pooling_is_invariant_to_small_shifts():
    cells = jnp.zeros((8, 1)).at[jnp.array([1, 5])].set(jnp.array([[3.0], [2.0]]))
    pooled = [fc.max_pool(jnp.roll(cells, shift, 0), (4,)) for shift in (-1, 0, 1, 2)]
    for each in pooled:
        close(each, pooled[0])
    assert values(fc.max_pool(jnp.roll(cells, 3, 0), (4,))) != values(pooled[0])


def test_pooling_keeps_the_depth_and_has_no_parameters():
    x = fc.Input("x", (6, 6, 5))
    graph = fc.Graph(x, fc.Pool(3)(x))
    assert graph.init(jax.random.key(0)) == {}
    assert graph({}, jnp.ones((6, 6, 5))).shape == (2, 2, 5)


def test_max_and_average_pooling_with_a_window_of_two():
    x = image(1, 4, -1, 0, 2, -2, 1, 3, 3, 1)
    assert values(fc.max_pool(x, (2,))) == [4, 0, 2, 3, 3]
    assert values(fc.avg_pool(x, (2,))) == [2.5, -0.5, 0, 2, 2]


def test_the_gradient_of_max_pooling_is_one_at_each_maximum():
    x = image(1, 4, -1, 0, 2, -2, 1, 3, 3, 1)
    assert values(jax.grad(lambda x: fc.max_pool(x, (2,)).sum())(x)) == [0, 1, 0, 1, 1, 0, 0, 1, 1, 0]


def test_a_strided_convolution_in_place_of_pooling(rng):
    x = rng.normal(size=(8, 6, 3))
    average = {"kernel": jnp.full((2, 2, 1, 3), 0.25)}  # depthwise
    close(fc.conv(average, x, stride=2, groups=3), fc.avg_pool(x, (2, 2)))
    learned = {"kernel": rng.normal(size=(2, 2, 3, 3))}
    assert fc.conv(learned, x, stride=2).shape == fc.max_pool(x, (2, 2)).shape


# the DAG ---------------------------------------------------------------------------------------------------


def dag():
    """Return the three-node DAG x1 = w1 x0; x2 = x0 + w2 x1; x3 = w1 (x1 + x2): phi(1) and phi(3) share w1."""
    x0 = fc.Input("x0", (3,))
    x1 = fc.node(jnp.matmul, x0, params="w1", name="x1")
    x2 = fc.node(lambda w, x0, x1: x0 + w @ x1, x0, x1, params="w2", name="x2")
    x3 = fc.node(lambda w, x1, x2: w @ (x1 + x2), x1, x2, params="w1", name="x3")
    return fc.Graph(x0, {"x1": x1, "x2": x2, "x3": x3})


def test_a_dag_with_a_shared_weight_forward(rng):
    graph, (w1, w2), x0 = dag(), rng.normal(size=(2, 3, 3)), rng.normal(size=3)
    assert graph.entries == ("w1", "w2")
    params = graph.init(jax.random.key(0), w1=w1, w2=w2)
    x = graph(params, x0)
    x1 = w1 @ x0
    x2 = x0 + w2 @ x1
    for name, expected in {"x1": x1, "x2": x2, "x3": w1 @ (x1 + x2)}.items():
        close(x[name], expected)


def test_a_dag_with_a_shared_weight_backward(rng):
    """The derivatives of a loss of x3 by every activation and weight, each by its formula with the Jacobians."""
    graph, (w1, w2), x0, target = dag(), rng.normal(size=(2, 3, 3)), rng.normal(size=3), rng.normal(size=3)
    params = {"w1": w1, "w2": w2}
    x = graph(params, x0)

    def loss(params, x0):
        return ((graph(params, x0)["x3"] - target) ** 2).sum()

    gradient, by_x0 = jax.grad(loss, argnums=(0, 1))(params, x0)
    by_x3 = 2 * (x["x3"] - target)
    by_x2 = w1.T @ by_x3  # J of phi(3) by x2 is w1
    by_x1 = w1.T @ by_x3 + w2.T @ by_x2  # x1 feeds phi(3) and phi(2)
    close(by_x0, w1.T @ by_x1 + by_x2, ulps=512)
    close(gradient["w2"], np.outer(by_x2, x["x1"]), ulps=512)
    # w1 is used twice: a term of phi(1) and a term of phi(3)
    close(gradient["w1"], np.outer(by_x1, x0) + np.outer(by_x3, x["x1"] + x["x2"]), ulps=512)


def test_the_gradient_of_the_norm():
    close(jax.grad(jnp.linalg.norm)(jnp.array([1.0, 2.0, 2.0])), [1 / 3, 2 / 3, 2 / 3])


def test_gradients_accumulate():
    """Two backward passes add up to (-9.4, 10.8), the gradient of the sum; the two examples are ours."""

    def loss(line, x, y):
        return (line[0] * x + line[1] - y) ** 2

    line, examples = jnp.array([1.0, 1.0]), [(-1.5, -3.9), (0.2, -0.8)]
    accumulated = jnp.zeros(2)
    for x, y in examples:
        accumulated += jax.grad(loss)(line, x, y)
    close(accumulated, [-9.4, 10.8])
    close(accumulated, jax.grad(lambda line: sum(loss(line, x, y) for x, y in examples))(line))


def test_a_gradient_is_differentiated_again():
    """With s1 = sum of x squared and g its gradient, s2 = exp(g[0]) - exp(g[2])."""

    def s2(x):
        g = jax.grad(lambda x: (x**2).sum())(x)
        return jnp.exp(g[0]) - jnp.exp(g[2])

    gradient = jax.grad(s2)(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(gradient, (14.7781, 0, -806.8576), atol=5e-5)


def test_a_loop_that_depends_on_the_data():
    """The number of steps depends on the norm, and the weights w[i] are used in turn."""
    w = jnp.array([[[1.2, -0.3], [0.4, 0.9]], [[0.7, 0.5], [-0.2, 1.1]]])

    def loop(w, x):
        i = 0
        while jnp.linalg.norm(x) < 6:
            x = w[i % 2] @ x + 0.5 * x
            i += 1
        return x.sum(), i

    x = jnp.array([1.0, 1.0])
    gradient, steps = jax.grad(loop, has_aux=True)(w, x)
    assert steps >= 3

    def unrolled(w, x):
        for i in range(steps):
            x = w[i % 2] @ x + 0.5 * x
        return x.sum()

    close(gradient, jax.jit(jax.grad(unrolled))(w, x))
    node = fc.Input("x", (2,))
    graph = fc.Graph(node, _unrolled(node, steps))
    close(graph({"w0": w[0], "w1": w[1]}, x).sum(), unrolled(w, x))


def _unrolled(x, steps):
    for i in range(steps):
        x = fc.node(lambda w, x: w @ x + 0.5 * x, x, params=f"w{i % 2}")
    return x
