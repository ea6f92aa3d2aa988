"""How the three maps of a convolution are computed: the forms, and the choice among them."""

from ._choice import CHOICES as CHOICES
from ._choice import choose as choose
from ._form import Form as Form
from ._form import Type as Type
from ._form import library as library
from ._lax import reference as reference
from ._maps import conv as conv
from ._maps import conv_input_grad as conv_input_grad
from ._maps import conv_kernel_grad as conv_kernel_grad
from ._named import named_conv as named_conv
from ._named import named_input_grad as named_input_grad
from ._problem import Problem as Problem
from ._problem import Where as Where
