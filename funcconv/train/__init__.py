"""Training: a step that is a pure function, and a loop that can be resumed exactly after any interruption."""

from .._checkpoints.leaves import digest as digest
from .._checkpoints.parts.report import RestoreReport as RestoreReport
from .._checkpoints.save import about as about
from .._checkpoints.save import restore as restore
from .._checkpoints.save import save as save
from ._data.batches import batches as batches
from ._data.idx import read_idx as read_idx
from ._data.images import images as images
from ._data.prefetch import prefetch as prefetch
from ._diagnosis.diagnose import diagnose as diagnose
from ._diagnosis.report import Diagnosis as Diagnosis
from ._logs.history import History as History
from ._logs.tensorboard import TensorBoard as TensorBoard
from ._loop.eval_params import eval_params as eval_params
from ._loop.evaluate import evaluate as evaluate
from ._loop.fit import fit as fit
from ._loop.update_norms import update_norms as update_norms
from ._optimizer.decay_mask import decay_mask as decay_mask
from ._state import State as State
from ._step.confusion import confusion as confusion
from ._step.step import compile as compile
from ._step.step import make_step as make_step
from ._step.totals import Sum as Sum
from ._step.totals import Weighted as Weighted
