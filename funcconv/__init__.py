"""Convolutional networks as pure functions in JAX."""

from ._adaptive import adaptive_pool as adaptive_pool
from ._compose import add as add
from ._compose import concat as concat
from ._compose import parallel as parallel
from ._compose import residual as residual
from ._compose import serial as serial
from ._compose import siamese as siamese
from ._conv import conv as conv
from ._conv import conv_transpose as conv_transpose
from ._dense import dense as dense
from ._dense import flatten as flatten
from ._errors import FuncconvError as FuncconvError
from ._graph import Graph as Graph
from ._init import init_conv as init_conv
from ._init import init_conv_transpose as init_conv_transpose
from ._init import init_dense as init_dense
from ._init import init_local_conv as init_local_conv
from ._layers import Conv as Conv
from ._layers import ConvTranspose as ConvTranspose
from ._layers import Dense as Dense
from ._layers import Flatten as Flatten
from ._layers import LocalConv as LocalConv
from ._layers import Pool as Pool
from ._local_conv import local_conv as local_conv
from ._matrix import conv_matrix as conv_matrix
from ._matrix import conv_to_dense as conv_to_dense
from ._matrix import dense_to_conv as dense_to_conv
from ._node import Input as Input
from ._node import node as node
from ._pool import avg_pool as avg_pool
from ._pool import global_pool as global_pool
from ._pool import max_pool as max_pool
from ._pool import min_pool as min_pool
from ._pool import pool as pool
from ._pool import sum_pool as sum_pool
from ._unpool import max_unpool as max_unpool

__version__ = "0.1.0"
