"""Weights of other libraries, files of weights and networks, and exported programs."""

from ._export import export as export
from ._export import load_exported as load_exported
from ._flax import from_linen as from_linen
from ._flax import from_nnx as from_nnx
from ._flax_modules import from_flax_module as from_flax_module
from ._flax_modules import to_linen as to_linen
from ._flax_modules import to_nnx as to_nnx
from ._onnx import to_onnx as to_onnx
from ._read_weights import read_weights as read_weights
from ._safetensors import load as load
from ._safetensors import load_safetensors as load_safetensors
from ._safetensors import load_state as load_state
from ._safetensors import save_safetensors as save_safetensors
from ._torch.state_dict import to_torch as to_torch
from ._torch.to_module.graph_module import to_torch_module as to_torch_module
from ._torch.trace import trace_torch as trace_torch
from ._torch.weights import from_torch as from_torch
