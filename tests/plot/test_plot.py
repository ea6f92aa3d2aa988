"""Pictures hold the numbers they are drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import funcconv as fc

pytestmark = pytest.mark.once


def network():
    x = fc.Input("x", (12, 10, 1))
    return fc.Graph(x, fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh, fc.max_pool, fc.Conv(2, 3))(x))


@pytest.mark.parametrize("window", [(5,), (3, 3), (2, 3, 3)])
def test_filters(window, rng):
    kernel = rng.normal(size=(*window, 2, 6))
    figure = fc.plot.filters({"kernel": kernel})
    sheet = figure.axes[0].images[0].get_array().filled(np.nan)
    layers, height, width = (1, 1, *window)[-3:]
    assert sheet.shape == (2 * layers * (height + 1) - 1, 6 * (width + 1) - 1)
    shown = sheet[np.isfinite(sheet)]
    np.testing.assert_array_equal(np.sort(shown), np.sort(kernel.ravel()))
    assert figure.axes[0].images[0].get_clim() == (-np.abs(kernel).max(), np.abs(kernel).max())


def test_filters_are_limited(rng):
    sheet = fc.plot.filters(rng.normal(size=(3, 3, 40, 100)), most=8).axes[0].images[0].get_array()
    assert sheet.shape == (8 * 4 - 1, 8 * 4 - 1)
    with pytest.raises(fc.FuncconvError, match=r"plot.filters: the kernel must have shape .* got \(3, 4\)"):
        fc.plot.filters(np.ones((3, 4)))


def test_activations(rng):
    graph = network()
    params, x = graph.init(jax.random.key(0)), rng.normal(size=(12, 10, 1))
    figure = fc.plot.activations(graph, params, x)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["x", "conv1", "tanh1", "max_pool1", "conv2"]
    sheet = figure.axes[0].images[0].get_array().filled(np.nan)
    first = np.asarray(graph.values(params, x)["conv1"])[..., 1]
    np.testing.assert_allclose(
        sheet[14:26, 12:22], (first - first.min()) / (first.max() - first.min()), rtol=0, atol=1e-12
    )
    one = fc.plot.activations(graph, params, x, nodes=["tanh1"], most=2)
    assert one.axes[0].images[0].get_array().shape == (12, 22)
    with pytest.raises(fc.FuncconvError, match=r"no node 'tanh'.*tanh1"):
        fc.plot.activations(graph, params, x, nodes=["tanh"])


def test_saliency(rng):
    weights = rng.normal(size=(6, 7, 3))
    image = rng.uniform(size=(6, 7, 3))
    drawn = fc.plot.saliency(weights, image).axes[0].images[1]
    np.testing.assert_allclose(drawn.get_array(), np.abs(weights).max(-1))
    drawn = fc.plot.saliency(weights, image, signed=True).axes[0].images[1]
    np.testing.assert_allclose(drawn.get_array(), weights.sum(-1))
    assert drawn.get_clim() == (-np.abs(weights.sum(-1)).max(), np.abs(weights.sum(-1)).max())
    np.testing.assert_allclose(
        fc.plot.saliency(weights[..., 0], image).axes[0].images[1].get_array(), abs(weights[..., 0])
    )
    with pytest.raises(
        fc.FuncconvError, match=r"with the sizes \(6, 7\) of the image; got \(1, 6, 7, 3\). Omit the batch"
    ):
        fc.plot.saliency(weights[None], image)


def faces(ax):
    return [patch.get_facecolor() for patch in ax.patches if patch.get_fill()]


@pytest.mark.parametrize(
    ("size", "window", "options", "counts"),
    [
        ((5, 6), 3, {}, (30, 0, 12)),
        ((5, 5), 3, {"stride": 2, "padding": 1}, (25, 24, 9)),
        ((7, 7), (2, 3), {"dilation": 2}, (49, 0, 15)),
        ((8,), 3, {"padding": ((2, 0),)}, (8, 2, 8)),
    ],
)
def test_windows(size, window, options, counts):
    ax = fc.plot.windows(size, window, **options).axes[0]
    colours = faces(ax)
    assert sorted(colours.count(colour) for colour in set(colours)) == sorted(n for n in counts if n)
    taps = np.prod(np.broadcast_to(window, len(size)))
    assert len(ax.patches) - len(colours) == taps + 1


def test_windows_refuse():
    with pytest.raises(fc.FuncconvError, match=r"position must be .* size \(3, 3\); got 9"):
        fc.plot.windows((5, 5), 3, position=9)
    with pytest.raises(fc.FuncconvError, match="one or two axes"):
        fc.plot.windows((5, 5, 5), 3)


def test_receptive_field(rng):
    graph, x = network(), rng.uniform(size=(12, 10, 1))
    ax = fc.plot.receptive_field(graph, x, position=(0, 1)).axes[0]
    frame = ax.patches[-1]
    rows, columns = fc.receptive_field(graph)["x"]
    assert (frame.get_y() + 0.5, frame.get_height()) == (rows.reaches(0)[0], rows.size)
    assert (frame.get_x() + 0.5, frame.get_width()) == (columns.reaches(1)[0], columns.size)
    low, high = sorted(ax.get_ylim())
    assert low <= frame.get_y()
    assert high >= 11


def test_axes_are_taken(rng):
    figure = Figure()
    for ax, draw in zip(
        figure.subplots(1, 3),
        (
            lambda ax: fc.plot.filters(rng.normal(size=(3, 3, 1, 2)), ax=ax),
            lambda ax: fc.plot.windows((5, 5), 3, ax=ax),
            lambda ax: fc.plot.saliency(np.ones((4, 4)), np.ones((4, 4, 1)), ax=ax),
        ),
        strict=True,
    ):
        assert draw(ax) is figure


def test_a_run(rng):
    losses = rng.uniform(0.1, 1, 500)
    losses[7] = np.nan
    run = fc.train.History([{"step": i, "loss": loss} for i, loss in enumerate(losses)])
    run.records.append({"step": 499, "eval/error": 0.5})
    axes = fc.plot.history(run).axes[0]
    each, mean, error = axes.lines
    np.testing.assert_array_equal(each.get_ydata(), losses)
    assert len(mean.get_xdata()) == 491
    np.testing.assert_allclose(mean.get_ydata()[-1], losses[-10:].mean())
    assert (mean.get_label(), error.get_label(), axes.get_yscale()) == ("loss", "eval/error", "log")
    assert fc.plot.history(run, "eval/error", log=False).axes[0].get_yscale() == "linear"
    with pytest.raises(fc.FuncconvError, match="no metric 'los'; did you mean 'loss'"):
        fc.plot.history(run, "los")
