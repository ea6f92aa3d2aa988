"""How much each number of an input contributes to an output, as arrays."""

from ._grad_cam import grad_cam as grad_cam
from ._gradient import gradient as gradient
from ._guided import deconvolution as deconvolution
from ._guided import guided as guided
from ._integrated_gradients import Integrated as Integrated
from ._integrated_gradients import integrated_gradients as integrated_gradients
from ._occlusion import occlusion as occlusion
from ._smooth_grad import smooth_grad as smooth_grad
