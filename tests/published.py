"""Networks as they were published, with the numbers of their parameters and multiply-adds.

Each is counted by hand here, from the table of its paper; where the paper or a later survey gives the total, it is the
same. Sze et al. are "Efficient Processing of Deep Neural Networks: A Tutorial and Survey", Proceedings of the IEEE
2017, table 2.
"""

from functools import partial

import jax

import funcconv as fc


def dense(features):
    return [fc.flatten, *(layer for n in features[:-1] for layer in (fc.Dense(n), jax.nn.relu)), fc.Dense(features[-1])]


def graph(shape, *layers):
    x = fc.Input("image", shape)
    return fc.Graph(x, fc.serial(*layers)(x))


def lenet5():
    """LeCun et al. 1998, figure 2, with every map of C3 connected to all of S2, and a plain pool."""
    pool = partial(fc.avg_pool, window=2)
    return graph((28, 28, 1), fc.Conv(6, 5, padding=2), pool, fc.Conv(16, 5), pool, *dense((120, 84, 10)))


def alexnet():
    """Krizhevsky et al. 2012, of two groups where it had two cards, on 227 x 227 pixels as the table of sizes needs."""
    pool = fc.Pool(3, stride=2)
    relu = jax.nn.relu
    return graph(
        (227, 227, 3),
        fc.Conv(96, 11, stride=4),
        relu,
        pool,
        fc.Conv(256, 5, padding=2, groups=2),
        relu,
        pool,
        fc.Conv(384, 3, padding=1),
        relu,
        fc.Conv(384, 3, padding=1, groups=2),
        relu,
        fc.Conv(256, 3, padding=1, groups=2),
        relu,
        pool,
        *dense((4096, 4096, 1000)),
    )


def vgg16():
    """Simonyan and Zisserman 2015, table 1, column D."""
    layers = []
    for channels, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(times):
            layers += [fc.Conv(channels, 3, padding=1), jax.nn.relu]
        layers.append(fc.max_pool)
    return graph((224, 224, 3), *layers, *dense((4096, 4096, 1000)))


def resnet18():
    """He et al. 2016, table 1, without the two numbers for each channel of batch normalisation."""

    def block(channels, stride):
        shortcut = fc.Conv(channels, 1, stride=stride, bias=False) if stride > 1 else None
        first = fc.Conv(channels, 3, stride=stride, padding=1, bias=False)
        inner = fc.serial(first, jax.nn.relu, fc.Conv(channels, 3, padding=1, bias=False))
        return fc.serial(fc.residual(inner, shortcut), jax.nn.relu)

    stages = [block(64 << i, 2 if i and not j else 1) for i in range(4) for j in range(2)]
    stem = fc.Conv(64, 7, stride=2, padding=3, bias=False)
    pool = fc.Pool(3, stride=2, padding=1)
    return graph((224, 224, 3), stem, jax.nn.relu, pool, *stages, fc.global_pool, fc.Dense(1000))


def mobilenet():
    """Howard et al. 2017, table 1, without batch normalisation."""
    layers, channels = [fc.Conv(32, 3, stride=2, padding=1, bias=False), jax.nn.relu], 32
    for out, stride in MOBILENET:
        depthwise = fc.Conv(channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        layers += [depthwise, jax.nn.relu, fc.Conv(out, 1, bias=False), jax.nn.relu]
        channels = out
    return graph((224, 224, 3), *layers, fc.global_pool, fc.Dense(1000))


MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def by_hand(*layers):
    """Add up parameters and multiply-adds of `(positions, taps times inputs, outputs, has a bias)`."""
    return (
        sum((taps + bias) * out for _, taps, out, bias in layers),
        sum(places * taps * out for places, taps, out, _ in layers),
    )


def mobilenet_by_hand():
    layers, side, channels = [(112**2, 27, 32, 0)], 112, 32
    for out, stride in MOBILENET:
        side //= stride
        layers += [(side**2, 9, channels, 0), (side**2, channels, out, 0)]
        channels = out
    return by_hand(*layers, (1, 1024, 1000, 1))


def resnet18_by_hand():
    layers, channels = [(112**2, 147, 64, 0)], 64
    for i, side in enumerate((56, 28, 14, 7)):
        out = 64 << i
        layers += [(side**2, 9 * channels, out, 0)] + [(side**2, 9 * out, out, 0)] * 3
        layers += [(side**2, channels, out, 0)] if i else []
        channels = out
    return by_hand(*layers, (1, 512, 1000, 1))


def vgg16_by_hand():
    sides = (224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    convs = [(s**2, 9 * a, b, 1) for s, a, b in zip(sides, widths[:-1], widths[1:], strict=True)]
    return by_hand(*convs, (1, 25088, 4096, 1), (1, 4096, 4096, 1), (1, 4096, 1000, 1))


def alexnet_by_hand():
    return by_hand(
        (55**2, 363, 96, 1),
        (27**2, 1200, 256, 1),
        (13**2, 2304, 384, 1),
        (13**2, 1728, 384, 1),
        (13**2, 1728, 256, 1),
        (1, 9216, 4096, 1),
        (1, 4096, 4096, 1),
        (1, 4096, 1000, 1),
    )


def lenet5_by_hand():
    return by_hand((28**2, 25, 6, 1), (10**2, 150, 16, 1), (1, 400, 120, 1), (1, 120, 84, 1), (1, 84, 10, 1))


# The network; its count by hand; parameters and multiply-adds as published, in units of the last digit given.
PUBLISHED = {
    "LeNet-5": (lenet5, lenet5_by_hand, (61_706, 1), (416_520, 1)),
    "AlexNet": (alexnet, alexnet_by_hand, (61, 10**6), (724, 10**6)),  # Sze et al.
    "VGG-16": (vgg16, vgg16_by_hand, (138, 10**6), (155, 10**8)),  # the paper; 15.5 G by Sze et al.
    # torchvision's count less that of its norms, and the paper's
    "ResNet-18": (resnet18, resnet18_by_hand, (11_689_512 - 9_600, 1), (18, 10**8)),
    "MobileNet": (mobilenet, mobilenet_by_hand, (42, 10**5), (569, 10**6)),  # the paper, table 8
}
