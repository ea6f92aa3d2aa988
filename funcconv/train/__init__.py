"""Training: a pure step, and a loop that can be killed at any moment and goes on as if nothing had been."""

from .._checkpoint_leaves import digest as digest
from ._batches import batches as batches
from ._fit import fit as fit
from ._history import History as History
from ._idx import read_idx as read_idx
from ._save import about as about
from ._save import restore as restore
from ._save import save as save
from ._state import State as State
from ._step import compile as compile
from ._step import make_step as make_step
from ._tensorboard import TensorBoard as TensorBoard
