"""Coming and going: files of weights and architectures."""

from ._safetensors import load as load
from ._safetensors import load_safetensors as load_safetensors
from ._safetensors import load_state as load_state
from ._safetensors import save_safetensors as save_safetensors
