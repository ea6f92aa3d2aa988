"""How the three maps of a convolution are computed: the forms, and the choice among them."""

from .candidates import candidates as candidates
from .choice import CHOICES as CHOICES
from .choice import choose as choose
from .choice import chosen as chosen
from .form import Form as Form
from .form import Type as Type
from .form import library as library
from .lax_conv import reference as reference
from .lax_conv import reference_input_grad as reference_input_grad
from .maps import conv as conv
from .maps import conv_input_grad as conv_input_grad
from .maps import conv_kernel_grad as conv_kernel_grad
from .measured import Key as Key
from .measured import MeasuredForms as MeasuredForms
from .measured import measured as measured
from .measured import whole as whole
from .named_axes import named_conv as named_conv
from .named_axes import named_input_grad as named_input_grad
from .problem import PLATFORMS as PLATFORMS
from .problem import Problem as Problem
from .problem import Where as Where
