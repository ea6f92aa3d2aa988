"""Six small networks that between them use every kind of convolution, written once for every library.

A network is a function `net(ops, x)`, where `ops` has the layers of one library: see `libraries.py`.
"""

from typing import Any


def lenet(ops: Any, x: Any) -> Any:
    """5x5 convolutions, pools and dense layers, on digits."""
    for channels in (32, 64):
        x = ops.max_pool(ops.relu(ops.conv(x, channels, 5)))
    return ops.dense(ops.relu(ops.dense(ops.flatten(x), 128)), 10)


def mobile(ops: Any, x: Any) -> Any:
    """Depthwise 3x3 and pointwise 1x1 convolutions."""
    x = ops.relu(ops.conv(x, 32, 3, stride=2, padding=1))
    for inputs, outputs, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)):
        x = ops.relu(ops.conv(x, inputs, 3, stride=stride, padding=1, groups=inputs))
        x = ops.relu(ops.conv(x, outputs, 1))
    return ops.dense(ops.mean(x), 10)


def resnext(ops: Any, x: Any) -> Any:
    """Residual bottlenecks with 8 groups."""
    x = ops.relu(ops.conv(x, 64, 3, padding=1))
    for block in range(4):
        x = ops.max_pool(x) if block == 2 else x
        y = ops.relu(ops.conv(x, 64, 1))
        y = ops.relu(ops.conv(y, 64, 3, padding=1, groups=8))
        x = ops.relu(x + ops.conv(y, 64, 1))
    return ops.dense(ops.mean(x), 10)


def unet(ops: Any, x: Any) -> Any:
    """Down and up again with transposed convolutions, and shortcuts between."""

    def twice(x: Any, channels: int) -> Any:
        for _ in range(2):
            x = ops.relu(ops.conv(x, channels, 3, padding=1))
        return x

    high = twice(x, 16)
    middle = twice(ops.max_pool(high), 32)
    low = twice(ops.max_pool(middle), 64)
    middle = twice(ops.concat(middle, ops.conv_transpose(low, 32, 2)), 32)
    return ops.conv(twice(ops.concat(high, ops.conv_transpose(middle, 16, 2)), 16), 1, 1)


def wavenet(ops: Any, x: Any) -> Any:
    """Dilated causal convolutions along one axis, with residuals."""
    x = ops.conv(x, 32, 1)
    for i in range(8):
        y = ops.tanh(ops.conv(x, 32, 2, padding=((2**i, 0),), dilation=2**i))
        x = x + ops.conv(y, 32, 1)
    return ops.conv(ops.relu(x), 1, 1)


def voxels(ops: Any, x: Any) -> Any:
    """3x3x3 convolutions and pools along three axes."""
    for channels in (16, 32, 64):
        x = ops.max_pool(ops.relu(ops.conv(x, channels, 3, padding=1)))
    return ops.dense(ops.mean(x), 10)


# With a batch of its usual images; and with a small one, where many programs are to be compared.
NETWORKS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "LeNet": (lenet, (128, 28, 28, 1), (64, 28, 28, 1)),
    "MobileNet-like": (mobile, (32, 64, 64, 3), (16, 32, 32, 3)),
    "ResNeXt-like": (resnext, (32, 32, 32, 3), (8, 16, 16, 3)),
    "U-Net": (unet, (16, 64, 64, 1), (8, 32, 32, 1)),
    "WaveNet-like": (wavenet, (8, 2048, 1), (4, 512, 1)),
    "3-d": (voxels, (8, 24, 24, 24, 1), (4, 16, 16, 16, 1)),
}
