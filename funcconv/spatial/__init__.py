"""Convolutions and pools of images whose spatial axes are spread over devices, for use inside of `jax.shard_map`.

Each device holds a block of the image and borrows from its neighbours what its windows reach beyond it (a halo).
"""

from ._halo import halo_exchange as halo_exchange
from ._ops import conv as conv
from ._ops import pool as pool
