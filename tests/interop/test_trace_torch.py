"""Modules of PyTorch as graphs: the usual families, with random weights, compute the same, as do their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close, rounding

import funcconv as fc

torch = needed("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.once


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


class Inverted(nn.Module):
    """A block of MobileNet v2."""

    def __init__(self, channels, out, stride, expand):
        super().__init__()
        inner = channels * expand
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.short = stride == 1 and channels == out

    def forward(self, x):
        return x + self.layers(x) if self.short else self.layers(x)


class PreActivation(nn.Module):
    """A block whose first activation changes its input in place, so that the shortcut is activated too."""

    def __init__(self):
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = self.norm(x)
        return self.conv(self.relu(x)) + x


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
    "mobilenet-v2": (lambda: nn.Sequential(Inverted(3, 4, 2, 2), Inverted(4, 4, 1, 3)), [(3, 8, 7)]),
    "mobilenet-v3": (Squeeze, [(3, 9, 8)]),
    "pre-activation": (PreActivation, [(3, 6, 5)]),
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
    module = make().double()
    for key, each in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            each.copy_(torch.rand(each.shape) + 0.5)
    return module, [torch.randn(4, *shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_the_same(name):
    module, xs = prepared(name)
    graph, params, state = fc.interop.trace_torch(module, tuple(xs))
    slack = 2**28 if name == "mobilenet-v3" else 1024  # PyTorch's derivative of hardsigmoid is 1/6 in float32
    assert fc.Graph.from_json(graph.to_json()) == graph
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
            close(a, b.detach().numpy(), ulps=256)
        for a, b in zip(by_xs, inputs, strict=True):
            close(a, b.grad.numpy(), ulps=slack)
        modules = {name.replace(".", "_"): each for name, each in module.named_modules()}
        modules |= {f"_{name}": each for name, each in modules.items()}  # those that begin with a number
        for entry, gradient in by_params.items():
            for leaf, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
                if leaf in gradient:
                    ours = _as_torch(np.asarray(gradient[leaf]), modules[entry])
                    close(ours, getattr(modules[entry], theirs).grad.numpy(), ulps=slack)
        if train:
            for entry, kept in after.items():
                close(kept["mean"], modules[entry].running_mean.numpy(), ulps=64)
                close(kept["var"], modules[entry].running_var.numpy(), ulps=64)
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
    close(y, module(x).detach().numpy(), ulps=256)
    assert "to_last" not in repr(graph.rows)


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
        self.conv, self.sum = nn.Conv2d(3, 3, 1), nn.Module()
        self.sum.x, self.sum_x = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.tied, self.half_tied = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.tied.weight, self.tied.bias = self.conv.weight, self.conv.bias
        self.half_tied.weight = self.conv.weight

    def forward(self, x):
        return self.f(self, x)


def after(x, f):
    f(x)
    return x


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: after(m.conv(x), F.relu_) * 2,
        lambda m, x: after(m.conv(x), lambda y: F.relu(y, True)) * 2,
        lambda m, x: after(m.conv(x), lambda y: F.hardtanh(y, -0.1, 0.2, inplace=True)) * 2,
        lambda m, x: after(m.conv(x), lambda y: y.mul_(2).add_(1)),
        lambda m, x: F.relu(m.conv(x).flatten(1), inplace=True),
        lambda m, x: m.sum.x(x) + m.sum_x(x).exp(),
        lambda m, x: m.conv(x) + m.tied(x.abs()),
        lambda _, x: F.softplus(x, beta=2) + F.softplus(x, threshold=0.1) + F.leaky_relu(x, 0.3),
        lambda _, x: F.avg_pool2d(x, 2, divisor_override=None) + F.adaptive_avg_pool2d(x, 2),
        lambda _, x: F.adaptive_max_pool2d(x, (3, 2)),
        lambda _, x: x.view(x.size(0), x.shape[1] * x.shape[2], -1).softmax(-1),
        lambda _, x: torch.cat([x, x.clamp(-0.5)], -1)[:, :2, ::2].log_softmax(1),
        lambda _, x: F.pad(x, (1, 0, 2, 1), value=1.5).transpose(1, 3).sigmoid(),
        lambda _, x: F.interpolate(x, size=(8, 12)).mean((1, 3), keepdim=True),
        lambda _, x: x[:, 1] * 2,
    ],
)
def test_what_modules_do_beside_layers(f):
    torch.manual_seed(1)
    module = Odd(f).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = module(x.clone()).detach().numpy()
    graph, params, _ = fc.interop.trace_torch(module, x)
    close(graph(params, x.numpy()), expected, ulps=64)
    assert fc.Graph.from_json(graph.to_json()) == graph


def test_tied_weights_are_one_entry():
    graph, *_ = fc.interop.trace_torch(Odd(lambda m, x: m.conv(x) + m.tied(x)), torch.ones(2, 3, 4, 4))
    assert graph.entries == ("conv",)


@pytest.mark.parametrize(
    ("f", "at"),
    [
        (F.relu6, [0.0, 6.0]),
        (F.leaky_relu, [0.0]),
        (F.hardsigmoid, [-3.0, 3.0]),
        (lambda x: x.clamp(-1, 2), [-1.0, 2.0]),
        (F.relu, [0.0]),
        (torch.abs, [0.0]),
    ],
)
def test_derivatives_at_kinks_are_those_of_pytorch(f, at):
    x = torch.tensor([[*at, float("nan")]], dtype=torch.float64, requires_grad=True)
    graph, *_ = fc.interop.trace_torch(Odd(lambda _, x: f(x)), torch.ones(1, len(at) + 1, dtype=torch.float64))
    y = f(x)
    y[:, :-1].sum().backward()
    np.testing.assert_allclose(graph({}, x.detach().numpy()), y.detach().numpy(), rtol=rounding(np.float64))
    ours = jax.grad(lambda x: graph({}, x)[:, :-1].sum())(jnp.asarray(x.detach().numpy()))
    np.testing.assert_allclose(ours[:, :-1], x.grad.numpy()[:, :-1], rtol=rounding(np.float64))


def test_weights_are_copies():
    module = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64))
    x = torch.randn(1, 64, 4, 4)
    _, *traced = fc.interop.trace_torch(module, x)
    image = fc.Input("x", (4, 4, 64))
    read = fc.interop.from_torch(fc.Graph(image, fc.serial(fc.Conv(64, 3), fc.BatchNorm())(image)), module.state_dict())
    before = jax.tree.map(np.array, (traced, read))
    with torch.no_grad():
        for each in (*module.parameters(), *module.buffers()):
            each.zero_()
    jax.tree.map(np.testing.assert_array_equal, (traced, read), before)


def test_the_modes_of_modules_are_left_as_they_were():
    module, xs = prepared("resnet")
    module.train()
    module[0].norm1.eval()
    before = [each.training for each in module.modules()]
    x = xs[0].clone()
    fc.interop.trace_torch(module, x)
    assert [each.training for each in module.modules()] == before
    assert torch.equal(x, xs[0])


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Odd(lambda _, x: torch.fft.fft(x)), "a call of 'fft_fft': it has no counterpart"),
        (Odd(lambda self, x: x * self.weight[0]), "a weight or buffer outside of a layer"),
        (Odd(lambda _, x: x if x.sum() > 0 else -x), "torch.fx cannot trace the module"),
        (Odd(lambda _, x: x.flatten()), "no tensor with a batch|the batch changes"),
        (Odd(lambda _, x: x.permute(1, 0, 2, 3)), "it moves the batch"),
        (Odd(lambda _, x: x.mean(0)), "that of the batch"),
        (Odd(lambda _, x: x.mean(1, dtype=torch.float64)), "dtype"),
        (Odd(lambda _, x: x / x.size(0)), "the size of the batch"),
        (Odd(lambda _, x: torch.sigmoid(x, out=None)), "its options"),
        (Odd(lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear")), "only whole multiples"),
        (Odd(lambda _, x: F.interpolate(x, scale_factor=2.1)), "only whole multiples"),
        (Odd(lambda _, x: F.fractional_max_pool2d(x, 2, output_size=2)), "has no counterpart"),
        (Odd(lambda m, x: m.conv(x) + m.half_tied(x)), "shares some of its weights with .'conv'., but not all"),
        (Odd(lambda _, x: x + after(x.flatten(1), lambda y: y.neg_()).sum()), "changes in place what 'x' shares"),
        (Odd(lambda _, x: F.dropout(x, 0.5)), "differ by .* it draws numbers"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), "divisor_override"),
        (nn.Sequential(nn.PReLU()), "a module PReLU has no counterpart"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "indices of a pool|cannot trace"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "without running statistics"),
        (nn.Sequential(nn.AvgPool2d(2), nn.LSTM(2, 2)), "LSTM|cannot trace"),
    ],
)
def test_what_has_no_counterpart_is_told(module, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.trace_torch(module, torch.ones(2, 3, 4, 4))
