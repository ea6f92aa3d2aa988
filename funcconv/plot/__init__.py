"""Pictures of filters, activations, attributions, windows and runs, drawn on matplotlib axes."""

from ._curves import history as history
from ._images import activations as activations
from ._images import filters as filters
from ._images import saliency as saliency
from ._windows import receptive_field as receptive_field
from ._windows import windows as windows
