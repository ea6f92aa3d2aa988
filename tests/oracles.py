"""What the ops mean, by loops over positions and taps in NumPy, for one example `(*spatial, channels)`.

Nothing here is shared with the library: extents, paddings and counts come from walking over the places.
"""

from functools import partial
from itertools import product

import numpy as np

NUMPY_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "symmetric": "symmetric",
    "replicate": "edge",
    "circular": "wrap",
}


def tuples(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def pairs(padding, n):
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in tuples(padding, n))


def starts(padded, window, stride, dilation, *, last=None):
    """Where windows begin: as long as they fit, and with `last` (the end of the image) one that hangs over it."""
    starts = [i for i in range(0, max(padded, 1), stride) if i + (window - 1) * dilation < padded]
    if last is not None:
        following = starts[-1] + stride if starts else 0
        hangs = not starts or starts[-1] + (window - 1) * dilation + 1 < padded
        if hangs and following < last:
            starts.append(following)
    return starts


def extended(x, padding, modes):
    """Pad each spatial axis in its mode; negative padding crops."""
    for axis, ((lo, hi), mode) in enumerate(zip(padding, modes, strict=True)):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (max(lo, 0), max(hi, 0))
        x = np.pad(x, widths, NUMPY_MODES[mode])
        x = np.take(x, range(max(-lo, 0), x.shape[axis] - max(-hi, 0)), axis)
    return x


def conv(params, x, *, stride=1, padding=0, dilation=1, groups=1, pad_mode="zeros", flip=False):
    kernel = np.asarray(params["kernel"])
    *window, per_group, outputs = kernel.shape
    n = len(window)
    strides, dilations = tuples(stride, n), tuples(dilation, n)
    modes = (pad_mode,) * n if isinstance(pad_mode, str) else pad_mode
    x = extended(x, pairs(padding, n), modes)
    begin = [starts(x.shape[i], window[i], strides[i], dilations[i]) for i in range(n)]
    y = np.zeros([len(b) for b in begin] + [outputs], x.dtype)
    for position in product(*(range(len(b)) for b in begin)):
        for tap in product(*map(range, window)):
            place = tuple(begin[i][position[i]] + tap[i] * dilations[i] for i in range(n))
            weight = kernel[tuple(k - 1 - t for k, t in zip(window, tap, strict=True)) if flip else tap]
            for d in range(outputs):
                first = d // (outputs // groups) * per_group
                for c in range(per_group):
                    y[(*position, d)] += x[(*place, first + c)] * weight[c, d]
    return y + (0 if params.get("bias") is None else np.asarray(params["bias"]))


def conv_transpose(params, y, size, **options):
    """The transpose, from what the convolution does to each unit image."""
    kernel = np.asarray(params["kernel"])
    groups = options.get("groups", 1)
    shape = (*tuples(size, kernel.ndim - 2), kernel.shape[-2] * groups)
    x = np.zeros(shape, y.dtype)
    for place in np.ndindex(shape):
        unit = np.zeros(shape, y.dtype)
        unit[place] = 1
        response = conv({"kernel": kernel}, unit, **options)[tuple(map(slice, y.shape))]  # there may be further windows
        x[place] = (response * y).sum()
    return x + (0 if params.get("bias") is None else np.asarray(params["bias"]))


def local_conv(params, x, **options):
    """At each position the convolution with that position's kernel."""
    kernel = np.asarray(params["kernel"])
    n = (kernel.ndim - 2) // 2
    y = np.zeros((*kernel.shape[:n], kernel.shape[-1]), x.dtype)
    for position in np.ndindex(kernel.shape[:n]):
        y[position] = conv({"kernel": kernel[position]}, x, **options)[position]
    return y + (0 if params.get("bias") is None else np.asarray(params["bias"]))


def lower_median(taps, axis):
    return np.sort(taps, axis).take((taps.shape[axis] - 1) // 2, axis)


def log_sum_exp(taps, axis, temperature):
    return temperature * np.log(np.exp(taps / temperature).sum(axis))


def norm(taps, axis, p):
    return np.linalg.norm(taps, p, axis)


REDUCE = {"max": np.max, "min": np.min, "sum": np.sum, "mean": np.mean, "prod": np.prod, "median": lower_median}


def reducer(reduce, p=2, temperature=1.0):
    """Return the function of an array of taps and their axis that a name means."""
    if reduce == "lse":
        return partial(log_sum_exp, temperature=temperature)
    if reduce == "lp":
        return partial(norm, p=p)
    return REDUCE.get(reduce, reduce)


def pool(x, window, *, reduce="max", count_include_pad=False, p=2, temperature=1.0, indices=False, **options):
    """With `indices` the places of what is selected, in the row-major order of the image."""
    outputs, all_windows = windows(x, window, **options)
    y = np.zeros([*outputs, x.shape[-1]], x.dtype)
    for position, taps, places, reads in all_windows:
        y[position] = reducer(reduce, p, temperature)(taps, axis=0)
        if indices:
            y[position] = places[{"max": np.argmax, "min": np.argmin}[reduce](taps, axis=0)]
        if reduce == "mean" and count_include_pad:
            y[position] = taps.sum(0) / reads
    return y


def windows(x, window, *, stride=None, padding=0, dilation=1, pad_mode=None, ceil_mode=False):
    """Return how many windows there are, and of each its position, what it sees, where in the image that stands in
    row-major order (-1 where a pad mode shows a zero), and how many places it reads, padding included.
    """
    n = x.ndim - 1
    shown = np.arange(x[..., 0].size).reshape(x.shape[:n]) + 1
    window = tuples(window, n)
    strides, dilations, padding = (
        tuples(window if stride is None else stride, n),
        tuples(dilation, n),
        pairs(padding, n),
    )
    modes = (pad_mode,) * n if pad_mode is None or isinstance(pad_mode, str) else pad_mode
    real = np.ones(x.shape[:n], bool)
    for i, mode in enumerate(modes):  # padding that takes no part is not real
        alone = [padding[j] if i == j else (0, 0) for j in range(n)]
        x = extended(x, alone, ["zeros" if mode is None else mode] * n)
        real = extended(real, alone, ["zeros" if mode is None else "replicate"] * n)
        shown = extended(shown, alone, ["zeros" if mode is None else mode] * n)
    size_end = [x.shape[i] - max(padding[i][1], 0) for i in range(n)]
    begin = [
        starts(x.shape[i], window[i], strides[i], dilations[i], last=size_end[i] if ceil_mode else None)
        for i in range(n)
    ]

    def each():
        for position in product(*(range(len(b)) for b in begin)):
            places = [
                tuple(begin[i][position[i]] + tap[i] * dilations[i] for i in range(n))
                for tap in product(*map(range, window))
            ]
            inside = [place for place in places if all(p < m for p, m in zip(place, x.shape, strict=False))]
            part = [place for place in inside if real[place]]
            yield position, np.array([x[at] for at in part]), np.array([shown[at] for at in part]) - 1, len(inside)

    return [len(b) for b in begin], each()


def shares(seen, reduce, ties="first"):
    """Return how much of the derivative goes to each of a window's taps, `(taps, channels)`, by comparing all pairs."""
    weights = np.zeros(seen.shape)
    for channel, taps in enumerate(seen.T):
        if reduce == "median":
            before = [sum(a < b or (a == b and j < i) for j, a in enumerate(taps)) for i, b in enumerate(taps)]
            chosen = [before.index((len(taps) - 1) // 2)]
        else:
            extreme = [all(a >= b if reduce == "max" else a <= b for b in taps) for a in taps]
            chosen = np.flatnonzero(extreme) if ties == "split" else [extreme.index(True)]
        weights[chosen, channel] = 1 / len(chosen)
    return weights


def pool_jacobian(x, window, *, reduce="max", ties="first", **options):
    """Return the derivative of selections, `(*positions, channels, places)`: by the inputs of the own channel."""
    outputs, all_windows = windows(x, window, **options)
    jacobian = np.zeros([*outputs, x.shape[-1], x[..., 0].size])
    for position, taps, places, _ in all_windows:
        for tap, place in zip(shares(taps, reduce, ties), places, strict=True):
            if place >= 0:
                jacobian[(*position, slice(None), place)] += tap
    return jacobian


def adaptive_jacobian(x, output_size, *, reduce, ties="first"):
    places = np.arange(x[..., 0].size).reshape(x.shape[:-1])
    jacobian = np.zeros((*tuples(output_size, x.ndim - 1), x.shape[-1], places.size))
    for position, share in adaptive_shares(x, output_size):
        at = next(share for there, share in adaptive_shares(places[..., None], output_size) if there == position)
        for tap, place in zip(shares(share, reduce, ties), at[:, 0], strict=True):
            jacobian[(*position, slice(None), place)] += tap
    return jacobian


def max_unpool(y, indices, size):
    x = np.zeros((int(np.prod(size)), y.shape[-1]), y.dtype)
    for place in np.ndindex(y.shape):
        if indices[place] >= 0:
            x[indices[place], place[-1]] += y[place]
    return x.reshape(*size, y.shape[-1])


def adaptive_pool(x, output_size, reduce="mean", **options):
    y = np.zeros((*tuples(output_size, x.ndim - 1), x.shape[-1]), x.dtype)
    for position, share in adaptive_shares(x, output_size):
        y[position] = reducer(reduce, **options)(share, axis=0)
    return y


def adaptive_shares(x, output_size):
    """Return each position with the inputs it is computed from, `(inputs, channels)`."""
    sizes = tuples(output_size, x.ndim - 1)
    for position in np.ndindex(sizes):
        share = x
        for axis, (i, m) in enumerate(zip(position, sizes, strict=True)):
            size = x.shape[axis]
            share = np.take(share, range(int(np.floor(i * size / m)), int(np.ceil((i + 1) * size / m))), axis)
        yield position, share.reshape(-1, x.shape[-1])


def rms_norm(params, x, *, axes, epsilon):
    """Divide each group of last axes by the root of its mean square."""
    y = np.empty_like(x)
    for place in np.ndindex(x.shape[: x.ndim - axes]):
        numbers = x[place]
        mean = sum(number**2 for number in numbers.flat) / numbers.size
        y[place] = numbers / np.sqrt(mean + epsilon) * params.get("scale", 1)
    return y


def instance_norm(params, x, *, epsilon):
    """Normalize one channel after the other."""
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        numbers = x[..., c]
        mean = sum(numbers.flat) / numbers.size
        var = sum((number - mean) ** 2 for number in numbers.flat) / numbers.size
        y[..., c] = (numbers - mean) / np.sqrt(var + epsilon) * params["scale"][c] + params["bias"][c]
    return y


def local_response_norm(x, size, *, alpha=1e-4, beta=0.75, k=1.0):
    """Visit, for each channel, the `size` channels around it that exist."""
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        total = sum(x[..., j] ** 2 for j in range(c - size // 2, c - size // 2 + size) if 0 <= j < x.shape[-1])
        y[..., c] = x[..., c] / (k + alpha * total / size) ** beta
    return y


def weight_norm(params, v, *, axis):
    """Scale one slice after the other to its norm."""
    kept = sorted(i % v.ndim for i in axis)
    w = np.empty_like(v)
    for place in np.ndindex(*(v.shape[i] for i in kept)):
        index = tuple(place[kept.index(i)] if i in kept else slice(None) for i in range(v.ndim))
        length = np.sqrt(sum(number**2 for number in np.ravel(v[index])))
        w[index] = params["scale"][place] * v[index] / length
    return w


def unfold(x, window, *, stride=1, padding=0, dilation=1, pad_mode="zeros"):
    n = x.ndim - 1
    window, strides, dilations = (tuples(value, n) for value in (window, stride, dilation))
    x = extended(x, pairs(padding, n), (pad_mode,) * n if isinstance(pad_mode, str) else pad_mode)
    begin = [starts(x.shape[i], window[i], strides[i], dilations[i]) for i in range(n)]
    y = np.zeros([*map(len, begin), *window, x.shape[-1]], x.dtype)
    for position in product(*(range(len(b)) for b in begin)):
        for tap in product(*map(range, window)):
            y[position + tap] = x[tuple(begin[i][position[i]] + tap[i] * dilations[i] for i in range(n))]
    return y


def fold(patches, size, **options):
    """The transpose, from the windows of each unit image."""
    n = (patches.ndim - 1) // 2
    window, channels = patches.shape[n : 2 * n], patches.shape[-1]
    x = np.zeros((*tuples(size, n), channels), patches.dtype)
    for place in np.ndindex(x.shape):
        unit = np.zeros(x.shape, patches.dtype)
        unit[place] = 1
        x[place] = (unfold(unit, window, **options) * patches).sum()
    return x


def pixel_shuffle(x, factor, order="pytorch"):
    n = x.ndim - 1
    factors = tuples(factor, n)
    channels = x.shape[-1] // int(np.prod(factors))
    y = np.zeros([*(size * f for size, f in zip(x.shape, factors, strict=False)), channels], x.dtype)
    for *place, channel in np.ndindex(y.shape):
        shift = np.ravel_multi_index([p % f for p, f in zip(place, factors, strict=True)], factors)
        taken = channel * np.prod(factors) + shift if order == "pytorch" else shift * channels + channel
        y[(*place, channel)] = x[(*(p // f for p, f in zip(place, factors, strict=True)), taken)]
    return y


def pixel_unshuffle(x, factor, order="pytorch"):
    """Put each number where the shuffle takes it from."""
    factors = tuples(factor, x.ndim - 1)
    sizes = [size // f for size, f in zip(x.shape, factors, strict=False)]
    numbers = np.arange(x.size).reshape(*sizes, -1)
    shuffled = pixel_shuffle(numbers, factor, order)
    y = np.zeros(x.size, x.dtype)
    for place in np.ndindex(x.shape):
        y[shuffled[place]] = x[place]
    return y.reshape(numbers.shape)


def keys(d, a):
    """The cubic kernel of Keys, in the form of his paper."""
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0


def hat(d, a):
    del a
    return max(1 - abs(d), 0)


def resize(
    x,
    size=None,
    *,
    scale=None,
    method="nearest",
    align_corners=False,
    antialias=False,
    coordinates=None,
    cubic_coefficient=None,
    exclude_outside=None,
):
    """Axis by axis, each position from the weights of all places of an axis that goes on beyond its ends."""
    n = x.ndim - 1
    scales = tuples(scale, n) if isinstance(scale, tuple) else (scale,) * n
    sizes = tuples(size, n) if scale is None else [int(m * s) for m, s in zip(x.shape, scales, strict=False)]
    if method == "area":
        return adaptive_pool(x, tuple(sizes))
    a = (-0.5 if antialias else -0.75) if cubic_coefficient is None else cubic_coefficient
    outside = not (antialias if exclude_outside is None else exclude_outside)
    kernel = hat if method == "linear" else keys
    for axis, (new, given) in enumerate(zip(sizes, scales, strict=True)):
        old = x.shape[axis]
        step = old / new if given is None else 1 / given
        where = coordinates[axis] if isinstance(coordinates, tuple) else coordinates
        if align_corners and not antialias:
            where = (0, old - 1 if new > 1 else 0)
        elif align_corners:
            step = (old - 1) / max(new - 1, 1)
        if isinstance(where, tuple):
            centres = np.linspace(*where, new) if new > 1 else [sum(where) / 2]
            step = abs(where[1] - where[0]) / max(new - 1, 1)
        else:
            half = 0.5 if where == "half_pixel" or (where is None and method != "nearest") else 0
            centres = (np.arange(new) + half) * step - half
        y = np.zeros([*x.shape[:axis], new, *x.shape[axis + 1 :]])
        to, of = np.moveaxis(y, axis, 0), np.moveaxis(x, axis, 0)
        for i, centre in enumerate(centres):
            if method in ("nearest", "nearest-exact"):
                place = np.floor(centre + 0.5 * (method != "nearest"))
                to[i] = of[int(np.clip(place, 0, old - 1))]
                continue
            width = max(step, 1) if antialias else 1
            places = range(-3 * old - 3, 4 * old + 3) if outside else range(old)
            weights = [kernel((j - centre) / width, a) for j in places]
            to[i] = sum(w * of[min(max(j, 0), old - 1)] for w, j in zip(weights, places, strict=True)) / sum(weights)
        x = y
    return x


def blur_pool(x, window, *, stride=2, padding=None, pad_mode="reflect"):
    """Multiply windows by rows of Pascal's triangle."""
    n = x.ndim - 1
    window = tuples(window, n)
    rows = []
    for k in window:
        row = [1]
        for _ in range(k - 1):
            row = [a + b for a, b in zip([0, *row], [*row, 0], strict=True)]
        rows.append(np.array(row) / sum(row))
    padding = tuple(((k - 1) // 2, k - 1 - (k - 1) // 2) for k in window) if padding is None else padding
    y = unfold(x, window, stride=stride, padding=padding, pad_mode=pad_mode)
    for row in reversed(rows):  # the last axis of the window is the last but one
        y = (y * row[:, None]).sum(-2)
    return y
