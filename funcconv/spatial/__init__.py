"""Convolution and pooling of images whose spatial axes are sharded over devices, for use inside `jax.shard_map`.

Each device holds a block of the image. It receives the positions that its windows read beyond the block (a halo) from
its neighbours.
"""

from ._halo import halo_exchange as halo_exchange
from ._ops import conv as conv
from ._ops import pool as pool
