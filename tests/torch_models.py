"""The models of torchvision and timm, with random weights, and how their graphs differ from them."""

import copy
import warnings
from functools import partial

import jax
import numpy as np
from available import needed

import funcconv as fc

_LIBRARIES = []  # an operation is registered as long as its library exists


def import_torchvision():
    """Import torchvision, or skip the test.

    The wheel on PyPI is built for CUDA. With the CPU build of PyTorch its compiled operations cannot be loaded, and the
    import fails because these two are not registered. The models compute without them.
    """
    torch = needed("torch")
    try:
        return needed("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
    return needed("torchvision")


def random_model(name):
    """Return a model such as `"timm/convnextv2_atto"`, with random weights and statistics.

    Dropout and drop path have the rate 0, because they draw other numbers in PyTorch.
    """
    torch = needed("torch")
    torchvision = import_torchvision()
    library, _, model_name = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        create = needed("timm").create_model
    else:
        backbone = {"weights_backbone": None} if hasattr(torchvision.models.segmentation, model_name) else {}
        create = partial(torchvision.models.get_model, weights=None, **backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of names that it has replaced, torchvision of its initialization
        model = create(model_name)
    for part in model.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.fill_(3)
        for rate in {"p", "drop_prob", "drop_rate"} & set(vars(part)):
            setattr(part, rate, 0.0)
    return model


class Comparison:
    """A model and its graph, on one batch. Differences are relative to the largest value of an array.

    Args:
        model: the module.
        size: of the images.
    """

    def __init__(self, model, size):
        import torch

        self.torch, self.model = torch, model
        self.images = torch.randn(4, 3, size, size)
        self.graph, self.params, self.state = fc.interop.trace_torch(model, self.images)

    def outputs(self):
        """Compare the outputs in evaluation mode."""
        outputs, _ = jax.jit(self.graph.apply)(self.params, self.state, self.images.numpy())
        with self.torch.no_grad():
            expected = tensors_in(self.model.eval()(self.images))
        return max(_difference(*pair) for pair in zip(jax.tree.leaves(outputs), expected, strict=True))

    def rounding(self):
        """Return how far the outputs of PyTorch in float32 are from those in float64."""
        model = copy.deepcopy(self.model).eval()
        with self.torch.no_grad():
            outputs = tensors_in(model(self.images))
            exact = tensors_in(model.double()(self.images.double()))
        return max(_difference(*pair) for pair in zip(outputs, exact, strict=True))

    def training(self, *, gradients, traced_in_float64=False):
        """Compare the outputs in training mode, the running statistics afterwards, and the gradients of all weights.

        Both compute in float64, because a batch norm over a few numbers enlarges the errors of rounding.

        Args:
            gradients: whether to compare gradients, those of a weighted sum of the outputs.
            traced_in_float64: whether the module is traced again, in float64. Otherwise the parameters are cast; then
                arrays that the module computes without an input stay in float32.
        """
        if traced_in_float64:
            with jax.enable_x64(True):
                self.graph, self.params, self.state = fc.interop.trace_torch(
                    copy.deepcopy(self.model).double(), self.images.double()
                )
        module = copy.deepcopy(self.model).double().train()
        expected = tensors_in(module(self.images.double()))
        rng = np.random.default_rng(0)
        weights = [rng.normal(size=output.shape) for output in expected]

        def loss(params, state, x):
            outputs, state = self.graph.apply(params, state, x, train=True, key=jax.random.key(0))
            outputs = jax.tree.leaves(outputs)
            return sum((a * b).sum() for a, b in zip(outputs, weights, strict=False)), (outputs, state)

        with jax.enable_x64(True):
            function = jax.value_and_grad(loss, has_aux=True) if gradients else lambda *xs: (loss(*xs), None)
            trees = jax.tree.map(_wide, (self.params, self.state))
            (_, (outputs, state)), gradient = jax.jit(function)(*trees, self.images.double().numpy())
            arrays = fc.interop.to_torch(self.graph, self.params, state)
            gradients_of_torch = fc.interop.to_torch(self.graph, gradient, self.state) if gradients else {}
        expected = expected[: len(outputs)]  # some models have more in training mode
        pairs = list(zip(outputs, expected, strict=True))
        # A graph follows the evaluation mode. It lacks the modules that only training uses, as an auxiliary classifier.
        used = self._modules_in_evaluation()
        buffers = {name: tensor for name, tensor in module.named_buffers() if name.rpartition(".")[0] in used}
        pairs += [(arrays[name], tensor) for name, tensor in buffers.items() if name in arrays]
        differences = [_difference(own, tensor) for own, tensor in pairs]
        if gradients:
            sum((a * self.torch.from_numpy(b)).sum() for a, b in zip(expected, weights, strict=False)).backward()
            weights_of_torch = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            # The gradient of a bias in front of a batch norm is 0 up to rounding, so it is compared with the others.
            scale = 1e-3 * max(float(tensor.abs().max()) for tensor in weights_of_torch.values())
            differences += [
                _difference(gradients_of_torch[name], tensor, scale) for name, tensor in weights_of_torch.items()
            ]
        return max(differences)

    def _modules_in_evaluation(self):
        """Return the names of the modules that are called in evaluation mode."""
        names = set()
        model = copy.deepcopy(self.model).eval()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: names.add(name))
        with self.torch.no_grad():
            model(self.images)
        return names

    def casts_to_float32(self):
        """Return whether the module computes a part in float32, whatever the dtype of its input."""
        ops = [str(row.op) for row in self.graph.rows]
        return any("function cast" in op and "float32" in op for op in ops)

    def check_round_trip(self):
        """Assert that PyTorch loads the converted weights, and that they are the same bit by bit."""
        arrays = fc.interop.to_torch(self.graph, self.params, self.state)
        module = copy.deepcopy(self.model)
        for tensor in module.state_dict().values():
            tensor.zero_()
        converted = module.state_dict()  # it has the versions of the modules too, which some of them require
        converted.update({name: self.torch.from_numpy(array) for name, array in arrays.items()})
        assert converted.keys() == arrays.keys()
        module.load_state_dict(converted, strict=True)
        expected = self.model.state_dict()
        loaded = module.state_dict()
        assert [name for name in expected if not self.torch.equal(expected[name], loaded[name])] == []
        # A state dict lacks buffers that are not persistent; the module has them.
        is_complete = {name for name, _ in self.model.named_buffers()} <= expected.keys()
        source = (expected,) if is_complete else (self.model, self.images)
        params, state = fc.interop.from_torch(self.graph, *source)
        for own, first in zip(
            jax.tree.leaves((params, state)), jax.tree.leaves((self.params, self.state)), strict=True
        ):
            assert np.array_equal(own, first)


def tensors_in(output):
    """Return the tensors of a module's output, in the order of JAX."""
    if isinstance(output, dict):
        return [tensor for key in sorted(output) for tensor in tensors_in(output[key])]
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in tensors_in(part)]
    return [output]


def _wide(leaf):
    return np.asarray(leaf, np.float64) if np.asarray(leaf).dtype.kind == "f" else leaf


def _difference(own, tensor, smallest_scale=0.0):
    own, expected = np.asarray(own, np.float64), tensor.detach().numpy().astype(np.float64)
    assert own.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0), smallest_scale)
    return np.abs(own - expected).max(initial=0) / scale if scale else np.abs(own).max(initial=0)
