"""Modules of PyTorch as graphs: the usual families, with random weights, compute the same, as do their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close, rounding
from torch_models import import_torchvision

import funcconv as fc
from funcconv._weight_files.arrays import as_numpy

torch = needed("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.once

# These programs run once.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
        tensors = [x]
        for layer in self.layers:
            tensors.append(layer(torch.cat(tensors, 1)))
        return self.last(torch.cat(tensors, dim=-3))


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
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
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
            nn.Conv2d(1, 6, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
            nn.Softmax(dim=-1),
        ),
        [(1, 28, 28)],
    ),
    "alexnet": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d((3, 2)),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(48, 7),
            nn.ELU(),
        ),
        [(3, 67, 63)],
    ),
    "vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU6(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(4 * 20, 3),
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
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 1),
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
}


def prepared(name):
    torch.manual_seed(0)
    make, shapes = FAMILIES[name]
    module = make().double()
    for key, tensor in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
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
        for submodule in module.modules():
            if isinstance(submodule, nn.Dropout):
                submodule.eval()
        if train and any(isinstance(submodule, nn.Dropout) for submodule in module.modules()):
            continue
        inputs = [x.clone().requires_grad_() for x in xs]
        out = module(*inputs)
        out = out if isinstance(out, tuple) else (out,)
        sum(torch.sin(y).sum() for y in out).backward()

        def s(params, xs, train=train):
            own_outputs, after = graph.apply(params, state, *xs, train=train)
            own_outputs = own_outputs if isinstance(own_outputs, tuple) else (own_outputs,)
            return sum(jnp.sin(y).sum() for y in own_outputs), (own_outputs, after)

        (by_params, by_xs), (own_outputs, after) = jax.jit(jax.grad(s, argnums=(0, 1), has_aux=True))(params, arrays)
        for a, b in zip(own_outputs, out, strict=True):
            close(a, b.detach().numpy(), ulps=256)
        for a, b in zip(by_xs, inputs, strict=True):
            close(a, b.grad.numpy(), ulps=slack)
        gradients = fc.interop.to_torch(graph, by_params, state)
        for name, parameter in module.named_parameters():
            close(gradients[name], parameter.grad.numpy(), ulps=slack)
        if train:
            state_dict = fc.interop.to_torch(graph, params, after)
            for name, buffer in module.named_buffers():
                close(state_dict[name], buffer.numpy(), np.float64, ulps=64)
        module.zero_grad()


def test_channels_last_where_asked():
    module, (x,) = prepared("resnet")
    graph, params, state = fc.interop.trace_torch(module, x, layout="NHWC")
    module.eval()
    y, _ = graph.apply(params, state, jnp.asarray(np.moveaxis(x.numpy(), 1, -1)))
    close(y, module(x).detach().numpy(), ulps=256)
    assert "transposed" not in repr(graph.rows)


def test_a_module_that_is_called_twice_is_one_entry():
    module, xs = prepared("siamese")
    graph, _, _ = fc.interop.trace_torch(module, tuple(xs))
    assert graph.entries == ("trunk/0", "trunk/1", "trunk/4")
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
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    jax.tree.map(np.testing.assert_array_equal, (traced, read), before)


def test_the_modes_of_modules_are_left_as_they_were():
    module, xs = prepared("resnet")
    module.train()
    module[0].norm1.eval()
    before = [submodule.training for submodule in module.modules()]
    x = xs[0].clone()
    fc.interop.trace_torch(module, x)
    assert [submodule.training for submodule in module.modules()] == before
    assert torch.equal(x, xs[0])


class Calls(nn.Module):
    """A module whose `forward` is a function of itself, with weights of several kinds."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.weight, self.row = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(5, 3))
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.register_buffer("table", torch.randn(7, 4))
        self.register_buffer("places", torch.tensor([[0, 6, 2], [1, 1, 5]]))
        self.register_buffer("kept_out", torch.randn(3, 1, 1), persistent=False)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, *xs):
        return self.f(self, *xs)


def attend(m, x):
    n, c, h, w = x.shape
    q, k, v = (y.reshape(n, 3, 1, h * w).permute(0, 2, 3, 1) for y in (x, x * 2, x + 1))
    bias = m.table[m.places.view(-1)].view(2, 3, 4).sum() * torch.ones(h * w, h * w, dtype=x.dtype)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias) + (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return y.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


def windows(m, x):  # of the attention of Swin
    n, c, h, w = x.shape
    y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    y = F.layer_norm(y, (c,), m.weight) * y.mean(1, keepdim=True)
    return y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def halos(_, x):  # of the attention of HaloNet
    y = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return y.reshape(x.shape[0], 3, -1, 16).permute(0, 2, 3, 1).flatten(0, 1).mean(1).view(x.shape[0], -1, 3)


def standardized(m, x):
    mean, var = m.kernel.mean((1, 2, 3), keepdim=True), m.kernel.var((1, 2, 3), keepdim=True)
    return F.conv2d(x, (m.kernel - mean) / torch.sqrt(var + 1e-5), bias=m.weight.repeat(2), stride=2)


def batched(m, x):
    kernel = F.batch_norm(m.kernel.view(1, 6, -1), None, None, m.weight.repeat(2), training=True)
    y = F.batch_norm(x, None, None, m.weight, m.weight * 2, training=True)
    return F.conv2d(y, kernel.view_as(m.kernel), padding=1, groups=1)


def masked(_, x):
    mask = x.new_zeros(6, 6)
    for count, rows in enumerate((slice(0, -2), slice(-2, None))):
        mask[rows, 1:4] = count + 1
    mask = (mask.flatten()[:, None] - mask.flatten()).masked_fill(mask.view(-1, 1) == 0, 7.0)
    return x.flatten(2) @ mask


def resized(mode, **options):
    return lambda _, x: F.interpolate(x, mode=mode, **options)


FUNCTIONS = {
    "a weight": lambda m, x: x * m.weight[None, :, None, None] + m.weight[0],
    "a weight that is read twice": lambda m, x: x * m.weight.view(3, 1, 1) - m.weight.exp().reshape(1, 3, 1, 1),
    "buffers": lambda m, x: x * m.kept_out + m.table[m.places].mean() + m.table[1:3, ::2].sum(),
    "outer product": lambda _, x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True),
    "of a pooled image": lambda _, x: x * x.mean((2, 3))[:, :, None, None],
    "products": lambda m, x: (
        x.flatten(2).transpose(1, 2) @ m.row.t() + torch.einsum("nchw,kc->nhwk", x, m.row).flatten(1, 2)
    ),
    "linear over the last axis": lambda m, x: F.linear(x.permute(0, 2, 3, 1), m.row) + m.row[:, 0],
    "norms": lambda m, x: F.group_norm(x, 3, m.weight) + F.layer_norm(x, x.shape[1:]) + F.instance_norm(x),
    "running statistics": lambda m, x: F.batch_norm(x, m.norm.running_mean[1:], m.norm.running_var[:3], m.weight),
    "statistics of the batch": batched,
    "standardized": standardized,
    "attention": attend,
    "windows": windows,
    "halos": halos,
    "unfold": lambda _, x: F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2),
    "folded": lambda _, x: F.fold(F.unfold(x, (3, 2), padding=1, stride=2) * 2, (6, 6), (3, 2), padding=1, stride=2),
    "shuffles": lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(F.conv2d(x, m.kernel[:4], padding=1), 2), 2) * 2,
    "channel shuffle": lambda m, x: (
        torch.channel_shuffle(torch.cat([x, x * 2], 1), 3) + m.weight.repeat(2)[:, None, None]
    ),
    "an empty part": lambda _, x: torch.cat(
        [x, x.new_empty(x.shape[0], 0, *x.shape[2:]), torch.empty_like(x[:, :0])], 1
    ),
    "joins": lambda _, x: torch.stack(torch.cat([x, x[:, :1] * 2], 1).split([1, 3], 1)[1].unbind(1), -1),
    "a token": lambda m, x: torch.cat([m.row[:1].expand(x.shape[0], 1, 3), x.flatten(2).transpose(1, 2)], 1),
    "chunks": lambda _, x: sum(y.sum(2) for y in x.chunk(3, -1)),
    "reshapes": lambda _, x: x.view(x.size(0), -1, 2).unflatten(1, (3, -1)).squeeze(0).unsqueeze(1).flatten(2),
    "permuted before flattening": lambda _, x: x.permute(0, 2, 3, 1).flatten(1),
    "an index": lambda _, x: x[:, :, 1:, [0, 2]] + x[..., -1:, :2] + x[:, 0, None, :5, 3:5],
    "expanded": lambda m, x: m.weight.view(1, 3, 1, 1).expand_as(x) + x[:, :1].expand(-1, 3, -1, -1),
    "flips and rolls": lambda _, x: x.flip(1, 3) + x.roll((1, -1), (2, 3)) + torch.flip(x.flatten(2), [2]).view_as(x),
    "reflected": lambda _, x: F.pad(x, (2, 1, 0, 1), "reflect") * 2,
    "replicated": lambda _, x: nn.ReplicationPad2d((1, 0, 2, 1))(x),
    "circular": lambda _, x: F.pad(x, (1, 2, 2, 1), "circular"),
    "cropped": lambda _, x: F.pad(x, (-1, 0, 1, -2)),
    "reductions": lambda _, x: torch.cat(
        [f(x, (2, 3)) for f in (torch.amax, torch.amin, torch.sum, torch.std, torch.var)], 1
    ),
    "extremes": lambda _, x: x.max(1, keepdim=True)[0] - x.min(2, keepdim=True).values + x.norm(dim=1, keepdim=True),
    "positions": lambda _, x: x * x.argmax(1, keepdim=True) + x.permute(0, 2, 3, 1).max(-1)[1][:, None],
    "comparisons": lambda _, x: torch.where(x > 0.1, x, x * 2).masked_fill(x < -1, 3.0) + (x >= 0).to(x.dtype),
    "powers": lambda _, x: x**2 + x.pow(3) + 2**x + (x.abs() + 1) ** -0.5 + x.square().rsqrt(),
    "divisions": lambda _, x: x / 3 + 2 / (x + 9) + torch.div(x, 0.7, rounding_mode="floor") + x.remainder(0.3),
    "activations": lambda m, x: (
        F.prelu(x, m.weight) + F.elu(x, 0.5) + F.celu(x, 2.0) + F.selu(x) + F.mish(x) + F.softsign(x)
    ),
    "more activations": lambda _, x: (
        F.hardshrink(x) + F.softshrink(x) + F.threshold(x, 0.1, 2.0) + F.tanhshrink(x) + F.logsigmoid(x)
    ),
    "gates": lambda m, x: F.glu(m.conv(x), 1) + F.hardtanh(x[:, :2]) + F.normalize(x[:, 1:]),
    "nearest": resized("nearest", size=(7, 9)),
    "nearest by a factor": resized("nearest", scale_factor=1.7),
    "nearest-exact": resized("nearest-exact", size=(5, 3)),
    "bilinear": resized("bilinear", size=(9, 3)),
    "bilinear by a factor": resized("bilinear", scale_factor=1.6),
    "bilinear, corners aligned": resized("bilinear", scale_factor=2, align_corners=True),
    "bicubic": resized("bicubic", size=(7, 3)),
    "bicubic, corners aligned": resized("bicubic", size=(7, 3), align_corners=True),
    "bilinear, antialiased": resized("bilinear", size=(4, 7), antialias=True),
    "bicubic, antialiased": resized("bicubic", scale_factor=0.6, antialias=True),
    "a resized weight": lambda m, x: x * F.interpolate(m.kernel[:1], size=(6, 6), mode="bicubic"),
    "resized beside the batch": lambda _, x: (
        F.interpolate(x.transpose(0, 1), size=(4, 3), mode="bilinear").transpose(0, 1) * 2
    ),
    "pools": lambda _, x: F.lp_pool2d(x.abs(), 2, 2) + F.max_pool2d(x, 3, 2, 1, ceil_mode=False),
    "numbers": lambda _, x: (
        x + torch.arange(6, dtype=x.dtype) * torch.linspace(0, 1, 6) - torch.full_like(x, 0.5) + torch.eye(6)
    ),
    "casts": lambda _, x: (x.float() * 2).double() + x.to(torch.float64).type_as(x),
    "sums with factors": lambda _, x: (
        torch.add(x, x, alpha=2) - torch.addcmul(x, x, x, value=0.5) + torch.lerp(x, x * 2, 0.3)
    ),
    "a loss of gradients": lambda m, x: x * m.weight.detach().sum() + x.detach(),
    "without gradients": lambda m, x: x + _without_gradients(m, x),
    "cumulated": lambda _, x: x.cumsum(2) + x.flatten(2).cumsum(-1).view_as(x),
    "several outputs": lambda m, x: {"b": [x, (m.conv(x), x.mean((2, 3)))], "a": x * 2},
    "transposed convolution": lambda m, x: F.conv_transpose2d(
        x, m.kernel.transpose(0, 1), stride=2, padding=1, output_padding=1
    ),
    "pairs": lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x.flip(3))),
    "a mask that is written in place": masked,
    "shared in other ways": lambda m, x: m.conv(x) + F.conv2d(x, m.conv.weight * 2, m.linear.bias, padding=1),
    "of tokens": lambda m, x: m.linear(m.conv(x).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:]),
}


def _without_gradients(m, x):
    with torch.no_grad():
        return x * m.weight[0]


def test_functions_that_funcconv_has_too_are_its_own():
    module = Calls(
        lambda m, x: F.fold(F.unfold(F.interpolate(F.pixel_shuffle(m.conv(x), 2), scale_factor=3), 2), (36, 36), 2)
    )
    graph, _, _ = fc.interop.trace_torch(module, torch.randn(2, 3, 6, 6))
    functions = [getattr(getattr(row.op, "op", None), "func", None) for row in graph.rows]
    own = [fc.pixel_shuffle, fc.resize, fc.unfold, fc.fold]
    assert [function for function in functions if function in own] == own


def same_tree(actual, expected, ulps):
    if isinstance(expected, dict):
        assert list(actual) == sorted(expected)
        expected = {key: expected[key] for key in sorted(expected)}
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, b in zip(actual, expected, strict=True):
        close(a, b.detach().numpy(), np.float64, ulps=ulps)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_tensors_and_weights(name):
    torch.manual_seed(2)
    module = Calls(FUNCTIONS[name]).double().eval()
    module.norm.num_batches_tracked.fill_(5)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    expected = module(x)
    graph, params, state = fc.interop.trace_torch(module, x.detach())
    assert fc.Graph.from_json(graph.to_json()) == graph
    sum(torch.sin(y).sum() for y in jax.tree.leaves(expected) if y.is_floating_point()).backward()

    def s(params, x):
        y, _ = graph.apply(params, state, x)
        floats = [leaf for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return sum(jnp.sin(leaf).sum() for leaf in floats), y

    # The same for a batch of another size, on several batch axes.
    many = torch.randn(6, 3, 6, 6, dtype=torch.float64)

    def run(params, x, many):
        return jax.grad(s, argnums=(0, 1), has_aux=True)(params, x), graph.apply(params, state, many)[0]

    images = many.numpy().reshape(2, 3, 3, 6, 6)
    ((by_params, by_x), y), folded = jax.jit(run, compiler_options=FAST)(params, x.detach().numpy(), images)
    same_tree(y, expected, ulps=512)
    if "batch" not in name:
        same_tree(jax.tree.map(lambda y: np.asarray(y).reshape(6, *y.shape[2:]), folded), module(many), ulps=512)
    close(by_x, np.zeros(x.shape) if x.grad is None else x.grad.numpy(), ulps=4096)
    gradients = fc.interop.to_torch(graph, by_params, state)
    for key, parameter in module.named_parameters():
        if parameter.grad is not None:
            close(gradients[key], parameter.grad.numpy(), ulps=4096)
    arrays = fc.interop.to_torch(graph, params, state)
    assert arrays.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(arrays[key], value.numpy(), err_msg=key)
    has_constant = "mask" in name or name == "attention"  # no buffer of the module, so that only a trace finds it
    again = fc.interop.from_torch(graph, module, x.detach() if has_constant else None)
    jax.tree.map(np.testing.assert_array_equal, again, (params, state))


class Plain(nn.Conv2d):
    """A subclass of a layer."""


class Nested(nn.Conv2d):
    """A layer with a layer in it."""

    def __init__(self):
        super().__init__(3, 3, 1)
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return super().forward(x) + self.inner(x)


BARE = {
    "a convolution": (lambda: nn.Conv2d(3, 4, 3), (3, 5, 6)),
    "a subclass": (lambda: Plain(3, 4, 3, bias=False), (3, 5, 6)),
    "a layer in a layer": (Nested, (3, 4, 4)),
    "a linear map": (lambda: nn.Linear(4, 2), (4,)),
    "a norm": (lambda: nn.BatchNorm1d(4), (4,)),
    "a norm without a counter": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 4)),
    "a plain mean": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 4)),
    "slopes": (lambda: nn.PReLU(3), (3, 4, 4)),
    "padding": (
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 2, 3, padding_mode="circular", padding=1)),
        (3, 4, 5),
    ),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (3, 5, 5)),
    "weight norm of a transposed convolution": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2))),
        (4, 7),
    ),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), (4,)),
    "spectral norm of convolutions": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, (3, 2)), n_power_iterations=2),
            nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(4, 4, (3, 2), stride=2, groups=2)),
        ),
        (3, 5, 5),
    ),
    "a transposed convolution": (lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1, groups=2, dilation=2), (4, 7)),
    "a volume": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1)), (2, 6, 5, 7)),
    "a sequence": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), None),
    "rms": (lambda: nn.RMSNorm(4), (5, 4)),
    "rms of images": (lambda: nn.RMSNorm((5, 4), eps=0.1, elementwise_affine=False), (5, 4)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 7)),
    "local response norm": (lambda: nn.LocalResponseNorm(4, alpha=2.0, beta=0.6, k=0.5), (7, 3, 2)),
    "a linear map of a map": (lambda: nn.Linear(6, 2), (3, 5, 6)),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", BARE)
def test_modules_of_one_layer(name, train):
    torch.manual_seed(4)
    make, shape = BARE[name]
    module = make().double()
    x = torch.randn(4, *shape, dtype=torch.float64) if shape else torch.randint(0, 9, (4, 5))
    graph, params, state = fc.interop.trace_torch(module, x)
    for _ in range(2):  # twice, so that running means depend on the number of steps
        expected = module.train(train)(x).detach().numpy()
        y, state = graph.apply(params, state, x.numpy(), train=train)
        close(y, expected, ulps=512)
    arrays = fc.interop.to_torch(graph, params, state)
    assert arrays.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        close(arrays[key], value.numpy(), np.float64, ulps=64)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: nn.RMSNorm(4, eps=0.1), fc.RMSNorm(epsilon=0.1)),
        (lambda: nn.RMSNorm(4), fc.RMSNorm(epsilon=float(np.finfo(np.float32).eps))),
        (lambda: nn.InstanceNorm1d(4, affine=True), fc.InstanceNorm()),
        (lambda: nn.GroupNorm(2, 4), fc.GroupNorm(2)),
    ],
)
def test_norms_are_layers(make, layer):
    graph, _, _ = fc.interop.trace_torch(make(), torch.ones(2, 4, 4))
    assert layer in [dataclasses.replace(row.op, name=None, params=None) for row in graph.rows]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_default_epsilon_of_an_rms_norm_in_16_bits(dtype):
    """It decides the result where the numbers are small."""
    module, x = nn.RMSNorm(4).to(dtype), 1e-3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    graph, params, _ = fc.interop.trace_torch(module, x)
    close(graph(params, as_numpy(x)), as_numpy(module(x).detach()), jnp.dtype(str(dtype)[6:]), ulps=4)


@pytest.mark.parametrize("seed", range(20))
def test_random_chains_of_reshapes(seed):
    """Any chain of permutations and reshapes moves each number to where PyTorch has it."""
    rng = np.random.default_rng(seed)

    def steps(x):
        for _ in range(6):
            sizes = list(x.shape[1:])
            kind = rng.integers(5)
            if kind == 0:
                x = x.permute(0, *(1 + rng.permutation(len(sizes))).tolist())
            elif kind == 1:
                numbers = [2, 2, 3, 2, 2, 3] if np.prod(sizes) == 144 else sizes
                cut = sorted(
                    rng.choice(
                        np.arange(1, len(numbers)), min(len(numbers) - 1, int(rng.integers(1, 4))), replace=False
                    )
                )
                x = x.reshape(x.shape[0], *(int(np.prod(part)) for part in np.split(numbers, cut)))
            elif kind == 2:
                x = x.flatten(1, int(rng.integers(1, x.ndim)))
            elif kind == 3:
                x = x.unsqueeze(int(rng.integers(1, x.ndim + 1))) * 2
            else:
                x = x + x.flip(-1)
        return x

    state = rng.bit_generator.state

    def forward(_, x):
        rng.bit_generator.state = state
        return steps(x)

    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    module = Calls(forward)
    graph, params, buffers = fc.interop.trace_torch(module, x)
    np.testing.assert_array_equal(graph.apply(params, buffers, x.numpy())[0], module(x).numpy())


def test_a_resnet_has_no_transposition():
    module, (x,) = prepared("resnet")
    first, *others = [row.op.label for row in fc.interop.trace_torch(module, x)[0].rows]
    assert first == "transposed"
    assert not {"transposed", "reshaped"} & set(others[:-1])


def test_names_are_the_paths_of_modules():
    module, (x,) = prepared("resnet")
    graph, params, _ = fc.interop.trace_torch(module, x)
    assert graph.entries[:3] == ("0/conv1", "0/norm1", "0/conv2")
    assert {"0/conv1", "0/norm1", "0/relu", "1/add", "2"} <= set(graph.nodes)
    assert params["1"]["conv2"]["kernel"].shape == (3, 3, 4, 4)


def test_inputs_with_any_number_of_axes():
    module = Calls(lambda m, a, b, c: a[:, :, None] * m.weight + b.mean(-1, keepdim=True) * c[:, None, None])
    xs = [torch.randn(4, 2), torch.randn(4, 2, 3, 5)[:, :, 0], torch.randn(4)]
    graph, params, state = fc.interop.trace_torch(module, tuple(xs))
    y, _ = graph.apply(params, state, *(x.numpy() for x in xs))
    close(y, module(*xs).detach().numpy(), ulps=64)
    assert graph.inputs == ("xs_0", "xs_1", "xs_2")


def test_the_cost_is_linear():
    """The rows of a deep network are as many for each layer as those of a shallow one, and it compiles once."""

    def rows(count):
        layers = (layer for _ in range(count) for layer in (nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)))
        graph, *_ = fc.interop.trace_torch(nn.Sequential(*layers), torch.randn(2, 2, 3, 3))
        return len(graph.rows)

    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compilations.append(event) if "backend_compile" in event else None
    )
    assert rows(40) - rows(20) == 40
    # Those that convert arrays, and one for the check.
    programs = len(compilations)
    rows(80)
    jax.monitoring.clear_event_listeners()
    assert len(compilations) - programs < 5


REFUSED = [
    (lambda m, x: x * m.table.add_(1).sum(), "it changes 'table' of the module in place"),
    (lambda _, x: torch.fft.fft(x).real, r"'aten.fft_fft.default' in the outermost module: it has no counterpart"),
    (lambda _, x: x if x.sum() > 0 else -x, "torch.export cannot export the module"),
    (lambda _, x: x.flatten(), "its batch in the axis 0; it must be the first axis alone"),
    (lambda _, x: x.mean(0), "it reduces the batch"),
    (lambda _, x: x.permute(1, 0, 2, 3), "an output has its batch in the axis 1"),
    (lambda _, x: x / x.size(0), "computes with the batch size"),
    (lambda _, x: x[:1], "a part of the batch"),
    (lambda _, x: x[0], "one example of the batch"),
    (lambda _, x: F.fractional_max_pool2d(x, 2, output_size=2), "no counterpart"),
    (lambda _, x: x + after(x.flatten(1), lambda y: y.neg_()).sum((1,)).view(-1, 1, 1, 1), "shares memory with 'x"),
    (lambda _, x: x + torch.rand_like(x), "no counterpart"),
    (lambda _, x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
    (lambda _, x: F.max_pool2d(x, 2, return_indices=True)[1], "indices of a pool"),
    (lambda _, x: F.alpha_dropout(x, 0.5, training=False), "in training it draws random numbers"),
    (lambda _, x: (x, 3), "not a tensor"),
]


@pytest.mark.parametrize(("f", "said"), REFUSED)
def test_what_has_no_counterpart_is_told(f, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.trace_torch(Calls(f), torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("module", "example", "said"),
    [
        (lambda x: x, torch.ones(1, 2), "expected a torch.nn.Module; got function"),
        (nn.ReLU(), np.ones((1, 2)), "each example must be a tensor"),
        (nn.ReLU(), torch.tensor(1.0), r"a batch axis in front; got shape \(\)"),
        (nn.Bilinear(2, 2, 1), (torch.ones(1, 2), torch.ones(2, 2)), "must have the same batch size"),
        (nn.Sequential(nn.AvgPool2d(2), nn.LSTM(2, 2)), torch.ones(2, 3, 4, 4), "LSTM|lstm|cannot export"),
    ],
)
def test_what_cannot_be_traced_is_told(module, example, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.trace_torch(module, example)


class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.conv, self.p = nn.Conv2d(3, 3, 1), p

    def forward(self, x):
        y = self.conv(x)
        if self.training and self.p:
            y = y * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.p)
        return x + y


def test_operations_of_training_alone_are_told(caplog):
    x = torch.randn(2, 3, 4, 4)
    fc.interop.trace_torch(DropPath(0.0), x)
    assert not caplog.messages
    fc.interop.trace_torch(DropPath(0.5), x)
    (message,) = caplog.messages
    assert "bernoulli in the outermost module" in message


@pytest.fixture
def drop_paths():
    """Return functions that make drop paths of a rate."""
    torchvision, timm = import_torchvision(), needed("timm")
    return {
        "row": lambda p: torchvision.ops.StochasticDepth(p, "row"),
        "batch": lambda p: torchvision.ops.StochasticDepth(p, "batch"),
        "timm": lambda p: timm.layers.DropPath(p),
        "unscaled": lambda p: timm.layers.DropPath(p, scale_by_keep=False),
    }


@pytest.mark.parametrize("kind", ["row", "timm"])
@pytest.mark.parametrize("train", [False, True])
def test_drop_paths_of_other_libraries_are_layers(kind, train, drop_paths, caplog):
    module = nn.Sequential(nn.Identity(), drop_paths[kind](0.25)).train(train)
    x = torch.ones(1000, 3, 2, 2)
    graph, params, state = fc.interop.trace_torch(module, x[:2])
    assert not caplog.messages
    assert [row.op for row in graph.rows] == [fc.DropPath(0.25)]
    assert module.training is train
    assert "forward" not in vars(module[1])
    np.testing.assert_array_equal(graph(params, x.numpy()), x)
    y, _ = graph.apply(params, state, x.numpy(), key=jax.random.key(0), train=True)
    values = {tuple(np.unique(example)) for example in np.asarray(y)}
    expected = {tuple(np.unique(example)) for example in module.train()(x).numpy()}
    assert values == expected
    assert len(values) == 2


@pytest.mark.parametrize("kind", ["batch", "unscaled"])
def test_drop_paths_without_a_layer_are_told(kind, drop_paths, caplog):
    graph, _, _ = fc.interop.trace_torch(nn.Sequential(nn.ReLU(), drop_paths[kind](0.5)), torch.ones(2, 3, 4, 4))
    assert len(graph.rows) == 1
    (message,) = caplog.messages
    assert "bernoulli in 1" in message


def test_a_drop_path_of_parts_of_examples_is_told(drop_paths, caplog):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = drop_paths["row"](0.5)

        def forward(self, x):
            return self.drop(x.flatten(0, 1)).view(-1, 3, 4)

    graph, _, _ = fc.interop.trace_torch(Parts(), torch.ones(2, 3, 4))
    assert not any(isinstance(row.op, fc.DropPath) for row in graph.rows)
    (message,) = caplog.messages
    assert "the drop path 'drop' drops parts of examples" in message


def test_a_rate_of_zero_leaves_no_drop_path(drop_paths, caplog):
    graph, _, _ = fc.interop.trace_torch(nn.Sequential(nn.ReLU(), drop_paths["timm"](0.0)), torch.ones(2, 3))
    assert len(graph.rows) == 1
    assert not caplog.messages


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.2 if self.training else 0.0)


def test_dropout_in_attention_is_told(caplog):
    fc.interop.trace_torch(Attention(), torch.randn(2, 1, 3, 4))
    (message,) = caplog.messages
    assert "scaled_dot_product_attention with dropout" in message


def test_init_state_refuses_to_invent_buffers():
    graph, *_ = fc.interop.trace_torch(Calls(FUNCTIONS["buffers"]), torch.ones(2, 3, 6, 6))
    with pytest.raises(fc.FuncconvError, match=r"buffers .* come from the PyTorch module"):
        graph.init_state()


@pytest.mark.usefixtures("climate_of_a_user")
def test_tables_that_are_read_at_indices_go_back_without_64_bits():
    """PyTorch's indices are int64, which JAX does not have unless it is asked to."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))
            self.register_buffer("index", torch.tensor([[0, 1], [3, 4]]))

        def forward(self, x):
            return x + self.table[self.index].sum((0, 1))[None]

    module = Table().eval()
    graph, params, state = fc.interop.trace_torch(module, torch.randn(2, 3))
    arrays = fc.interop.to_torch(graph, params, state)
    assert arrays["index"].dtype == np.int64
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
