"""Convolutional networks as pure functions in JAX."""

import typing as _typing

from ._common.lazy import lazy_modules as _lazy_modules
from ._ops.pooling.adaptive import adaptive_pool as adaptive_pool
from ._ops.resampling.resize import blur_pool as blur_pool
from ._primitives.compiler import compiled_with as compiled_with
from ._primitives.compiler import compiler_options as compiler_options
from ._graph.combine.merge import add as add
from ._graph.combine.merge import concat as concat
from ._graph.combine.compose import parallel as parallel
from ._graph.combine.compose import residual as residual
from ._graph.combine.compose import serial as serial
from ._graph.combine.compose import siamese as siamese
from ._ops.conv import conv as conv
from ._ops.conv_transpose import conv_transpose as conv_transpose
from ._ops.dense import dense as dense
from ._ops.dense import flatten as flatten
from ._derivatives import Density as Density
from ._derivatives import Estimate as Estimate
from ._derivatives import LinearMap as LinearMap
from ._derivatives import Operator as Operator
from ._derivatives import fisher as fisher
from ._derivatives import gauss_newton as gauss_newton
from ._derivatives import hessian as hessian
from ._derivatives import hvp as hvp
from ._graph.use.importance import importance as importance
from ._derivatives import linearize_hvp as linearize_hvp
from ._derivatives import per_example_grad as per_example_grad
from ._derivatives import value_and_grad_in_batches as value_and_grad_in_batches
from ._inspect.draw import draw as draw
from ._inspect.draw import to_dot as to_dot
from ._inspect.draw import to_mermaid as to_mermaid
from ._inspect.draw import to_text as to_text
from ._inspect.draw_autodiff import draw_autodiff as draw_autodiff
from ._ops.dropout import drop_path as drop_path
from ._ops.dropout import dropout as dropout
from ._common.errors import FuncconvError as FuncconvError
from ._primitives.explain import explain as explain
from ._ops.resampling.patches import fold as fold
from ._primitives.conv import checkpoint_policy as checkpoint_policy
from ._derivatives.factored.gradient_norm import per_example_grad_norm as per_example_grad_norm
from ._derivatives.factored.kfac_operator import Kfac as Kfac
from ._derivatives.factored.kfac import kfac as kfac
from ._derivatives.factored.tangent_kernel import linearize as linearize
from ._derivatives.factored.tangent_kernel import ntk as ntk
from ._derivatives.factored.tangent_kernel import ntk_operator as ntk_operator
from ._derivatives.posterior.influence import influence as influence
from ._derivatives.posterior.laplace_posterior import Laplace as Laplace
from ._derivatives.posterior.laplace import laplace as laplace
from ._graph.use.graph import Graph as Graph
from ._ops.init import init_conv as init_conv
from ._ops.init import init_conv_transpose as init_conv_transpose
from ._ops.init import init_dense as init_dense
from ._ops.init import init_local_conv as init_local_conv
from ._ops.norms.init import init_batch_stats as init_batch_stats
from ._ops.norms.init import init_norm as init_norm
from ._ops.norms.spectral import init_spectral_norm as init_spectral_norm
from ._ops.norms.kernel import init_weight_norm as init_weight_norm
from ._graph.declare.conv_layers import Conv as Conv
from ._graph.declare.conv_layers import ConvTranspose as ConvTranspose
from ._graph.declare.layers import Dense as Dense
from ._graph.declare.layers import Flatten as Flatten
from ._graph.declare.conv_layers import LocalConv as LocalConv
from ._graph.declare.layers import Pool as Pool
from ._ops.local_conv import local_conv as local_conv
from ._ops.masks import Masked as Masked
from ._ops.masks import conv_mask as conv_mask
from ._ops.matrix import conv_matrix as conv_matrix
from ._ops.matrix import conv_to_dense as conv_to_dense
from ._ops.matrix import dense_to_conv as dense_to_conv
from ._ops.spectra import operator_norm as operator_norm
from ._ops.spectra import singular_values as singular_values
from ._graph.declare.node import Input as Input
from ._graph.declare.function import node as node
from ._ops.norms.batch import batch_norm as batch_norm
from ._ops.norms.group import group_norm as group_norm
from ._ops.norms.group import instance_norm as instance_norm
from ._ops.norms.layer import layer_norm as layer_norm
from ._ops.norms.spectral import spectral_norm as spectral_norm
from ._ops.norms.layer import rms_norm as rms_norm
from ._ops.norms.response import local_response_norm as local_response_norm
from ._ops.norms.kernel import weight_norm as weight_norm
from ._ops.norms.kernel import weight_standardize as weight_standardize
from ._ops.resampling.pixels import pixel_shuffle as pixel_shuffle
from ._ops.resampling.pixels import pixel_unshuffle as pixel_unshuffle
from ._ops.pooling.named import avg_pool as avg_pool
from ._ops.pooling.global_pool import global_pool as global_pool
from ._ops.pooling.named import max_pool as max_pool
from ._ops.pooling.named import min_pool as min_pool
from ._ops.pooling.pool import pool as pool
from ._ops.pooling.named import sum_pool as sum_pool
from ._inspect.receptive_field import receptive_field as receptive_field
from ._graph.repeat.repeat import repeat as repeat
from ._graph.to_file.registry import register_op as register_op
from ._graph.to_file.registry import registered_by as _registered_by
from ._ops.resampling.resize import resize as resize
from ._graph.repeat.unstack import stack as stack
from ._graph.stream.stream import Stream as Stream
from ._graph.stream.stream import stream as stream
from ._inspect.summary import summary as summary
from ._primitives.tune import tune as tune
from ._primitives.tuning import Tuning as Tuning
from ._primitives.tuning import tuned as tuned
from ._graph.declare.training_layers.batch_norm import BatchNorm as BatchNorm
from ._graph.declare.training_layers.dropout import DropPath as DropPath
from ._graph.declare.training_layers.dropout import Dropout as Dropout
from ._graph.declare.training_layers.norms import GroupNorm as GroupNorm
from ._graph.declare.training_layers.norms import InstanceNorm as InstanceNorm
from ._graph.declare.training_layers.norms import LayerNorm as LayerNorm
from ._graph.declare.training_layers.norms import RMSNorm as RMSNorm
from ._graph.declare.training_layers.spectral_norm import SpectralNorm as SpectralNorm
from ._graph.declare.training_layers.kernels import WeightNorm as WeightNorm
from ._graph.declare.training_layers.kernels import WeightStandardize as WeightStandardize
from ._ops.resampling.patches import unfold as unfold
from ._graph.repeat.unstack import unstack as unstack
from ._ops.pooling.unpool import max_unpool as max_unpool
from ._inspect.versions import versions as versions

if _typing.TYPE_CHECKING:
    from . import attribution as attribution
    from . import interop as interop
    from . import plot as plot
    from . import spatial as spatial
    from . import train as train
    from . import zoo as zoo
else:  # these take as long as the rest
    __getattr__, __dir__ = _lazy_modules(__name__, ("attribution", "interop", "plot", "spatial", "train", "zoo"))

_registered_by("funcconv.torch.", "funcconv.interop")  # functions in files of traced modules
_registered_by("funcconv.zoo.", "funcconv.zoo")  # initializers in files of ready-made networks

__version__ = "0.1.0"
