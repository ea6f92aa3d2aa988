"""Modules of PyTorch as graphs: the usual families, with random weights, compute the same, as do their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv.interop._trace_torch import _entry_name

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("climate_of_a_user")]
F32 = np.float32


class Residual(nn.Module):
    def __init__(self, channels, out, stride, n=2):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if n == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv1, self.norm1 = conv(channels, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.norm2 = conv(out, out, 3, 1, 1, bias=False), norm(out)
        self.short = (
            nn.Sequential(conv(channels, out, 1, stride, bias=False), norm(out)) if stride > 1 else nn.Identity()
        )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.short(x)
        return torch.relu(y)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4 + 2 * i), nn.ReLU(inplace=True), nn.Conv2d(4 + 2 * i, 2, 3, padding=1))
            for i in range(3)
        )
        self.last = nn.AvgPool2d(2, padding=1, ceil_mode=True)

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.last(torch.cat(found, dim=-3))


class Squeeze(nn.Module):
    """A block of MobileNet v3."""

    def __init__(self):
        super().__init__()
        self.up, self.depth = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 5, 2, 2, groups=12)
        self.down, self.fc1, self.fc2 = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.act = nn.Hardswish()

    def forward(self, x):
        x = self.act(self.depth(self.act(self.up(x))))
        s = F.adaptive_avg_pool2d(x, 1)
        x = x * F.hardsigmoid(self.fc2(F.relu(self.fc1(s))))
        return self.down(x).mean([2, 3])


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4)
        )

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(n, -1, h, w)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = (
            nn.Conv2d(3, 4, 3, padding="same"),
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        )
        self.up, self.last = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        first = F.silu(self.down1(x))
        second = F.gelu(self.down2(self.pool(first)))
        x = self.last(torch.cat([first, self.up(second)], 1))
        return F.interpolate(x, scale_factor=2)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(3, 2, 1),
            nn.Sequential(nn.Conv2d(3, 2, (1, 7), padding=(0, 3)), nn.Conv2d(2, 3, (7, 1), padding=(3, 0))),
        )
        self.c = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        pooled = F.avg_pool2d(x, 3, 1, 1)
        both = torch.cat([self.a(x), self.b(x), self.c(pooled), F.max_pool2d(x, 3, stride=1, padding=1)], 1)
        return torch.flatten(F.adaptive_max_pool2d(both, (2, 3)), 1)


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4))
        self.out = nn.Conv1d(8, 3, 1)

    def forward(self, x):
        x, total = self.first(x), 0.5
        for i, gate in enumerate(self.gates):
            a, b = gate(F.pad(x, (2**i, 0))).split(8, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + y, total + y
        return F.log_softmax(self.out(total / 2), dim=1)


class Next(nn.Module):
    """A block of ConvNeXt: its norm and products are over the last axis."""

    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4, eps=1e-6)
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y), approximate="tanh"))
        return x + y.permute(0, 3, 1, 2)


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 3)
        )

    def forward(self, a, b):
        return abs(self.trunk(a) - self.trunk(b)), 1 - self.trunk(a)[:, 1:]


FAMILIES = {
    "lenet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 5), nn.Tanh(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(128, 10), nn.Softmax(dim=-1),
        ),
        [(1, 28, 28)],
    ),
    "alexnet": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Dropout(), nn.Linear(48, 7), nn.ELU(),
        ),
        [(3, 67, 63)],
    ),
    "vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6(),
            nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(4 * 20, 3),
        ),
        [(3, 9, 7)],
    ),
    "resnet": (
        lambda: nn.Sequential(Residual(3, 4, 2), Residual(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        [(3, 12, 9)],
    ),
    "resnet-3d": (
        lambda: nn.Sequential(Residual(2, 4, 2, n=3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)),
        [(2, 6, 8, 4)],
    ),
    "densenet": (Dense, [(4, 7, 9)]),
    "mobilenet-v1": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1),
        ),
        [(3, 10, 8)],
    ),
    "mobilenet-v3": (Squeeze, [(3, 9, 8)]),
    "shufflenet": (Shuffle, [(8, 5, 6)]),
    "unet": (UNet, [(3, 8, 12)]),
    "inception": (Inception, [(3, 9, 8)]),
    "wavenet": (Wave, [(2, 20)]),
    "convnext": (Next, [(4, 8, 9)]),
    "siamese": (Twins, [(1, 8, 8), (1, 8, 8)]),
    "instance-norm": (
        lambda: nn.Sequential(
            nn.ZeroPad2d((1, 2, 0, 1)), nn.InstanceNorm2d(3, affine=True), nn.Mish(), nn.Upsample(scale_factor=3)
        ),
        [(3, 5, 4)],
    ),
}  # fmt: skip


def prepared(name):
    torch.manual_seed(0)
    make, shapes = FAMILIES[name]
    module = make()
    for key, each in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            each.copy_(torch.rand(each.shape) + 0.5)
    return module, [torch.randn(4, *shape) for shape in shapes]


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_the_same(name):
    module, xs = prepared(name)
    graph, params, state = fc.interop.trace_torch(module, tuple(xs))
    arrays = [jnp.asarray(x.numpy()) for x in xs]
    for train in (False, True):
        module.train(train)
        for each in module.modules():
            if isinstance(each, nn.Dropout):
                each.eval()
        if train and any(isinstance(each, nn.Dropout) for each in module.modules()):
            continue
        inputs = [x.clone().requires_grad_() for x in xs]
        out = module(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        sum(torch.sin(y).sum() for y in out).backward()

        def s(params, xs, train=train):
            found, after = graph.apply(params, state, *xs, train=train)
            found = found if isinstance(found, tuple) else (found,)
            return sum(jnp.sin(y).sum() for y in found), (found, after)

        (by_params, by_xs), (found, after) = jax.jit(jax.grad(s, argnums=(0, 1), has_aux=True))(params, arrays)
        for a, b in zip(found, out, strict=True):
            close(a, b.detach().numpy(), F32, ulps=256)
        for a, b in zip(by_xs, inputs, strict=True):
            close(a, b.grad.numpy(), F32, ulps=4096)
        modules = {_entry_name(name): each for name, each in module.named_modules()}
        for entry, gradient in by_params.items():
            for leaf, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
                if leaf in gradient:
                    ours = _as_torch(np.asarray(gradient[leaf]), modules[entry])
                    close(ours, getattr(modules[entry], theirs).grad.numpy(), F32, ulps=8192)
        if train:
            for entry, kept in after.items():
                close(kept["mean"], modules[entry].running_mean.numpy(), F32, ulps=64)
                close(kept["var"], modules[entry].running_var.numpy(), F32, ulps=64)
        module.zero_grad()


def _as_torch(array, module):
    if isinstance(module, nn.Linear):
        return array.T
    return np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 2 else array


def test_channels_last_where_asked():
    module, (x,) = prepared("resnet")
    graph, params, state = fc.interop.trace_torch(module, x, layout="NHWC")
    module.eval()
    y, _ = graph.apply(params, state, jnp.asarray(np.moveaxis(x.numpy(), 1, -1)))
    close(y, module(x).detach().numpy(), F32, ulps=256)
    assert "_to_last" not in repr(graph)


def test_a_module_that_is_called_twice_is_one_entry():
    module, xs = prepared("siamese")
    graph, _, _ = fc.interop.trace_torch(module, tuple(xs))
    assert graph.entries == ("trunk_0", "trunk_1", "trunk_4")
    assert graph == fc.interop.trace_torch(module, tuple(xs))[0]


class Odd(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.f(self, x)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Odd(lambda _, x: torch.fft.fft(x)), "a call of 'fft_fft': it has no counterpart"),
        (Odd(lambda self, x: x * self.weight[0]), "a weight or buffer outside of a layer"),
        (Odd(lambda _, x: x if x.sum() > 0 else -x), "torch.fx cannot trace the module"),
        (Odd(lambda _, x: x.flatten()), "no tensor with a batch|the batch changes"),
        (Odd(lambda _, x: x.permute(1, 0, 2, 3)), "it moves the batch"),
        (Odd(lambda _, x: x.mean(0)), "that of the batch"),
        (Odd(lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear")), "only whole multiples"),
        (nn.Sequential(nn.PReLU()), "a module PReLU has no counterpart"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "indices of a pool|cannot trace"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "without running statistics"),
        (nn.Sequential(nn.AvgPool2d(2), nn.LSTM(2, 2)), "LSTM|cannot trace"),
    ],
)
def test_what_has_no_counterpart_is_told(module, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.trace_torch(module, torch.ones(2, 3, 4, 4))
