"""The model of a shape, in the shape's published layout."""

from model import Huginn
from parcae import Parcae

LAYOUTS = {"huginn": Huginn, "parcae": Parcae}


def build(shape):
    return LAYOUTS[shape.layout](shape)
