"""Ready-made networks: plain functions that return a graph."""

from ._convnext import convnext as convnext
from ._densenet import densenet as densenet
from ._efficientnet import efficientnet as efficientnet
from ._lenet import lenet as lenet
from ._mobilenet import mobilenet_v2 as mobilenet_v2
from ._resnet import resnet as resnet
from ._resnet import resnext as resnext
from ._resnet import wide_resnet as wide_resnet
from ._siamese import siamese as siamese
from ._unet import unet as unet
from ._vgg import vgg as vgg
from ._wavenet import wavenet as wavenet
