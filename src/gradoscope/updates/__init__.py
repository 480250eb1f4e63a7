"""Update rules as optimizers: the lecture's in its exact form, averaging, and steps that are not the gradient's."""

from gradoscope.updates import lecture as lecture
from gradoscope.updates.averaging import PolyakAveraging
from gradoscope.updates.forward_only import ForwardOnlySGD
from gradoscope.updates.newton import DampedNewton, Newton, SaddleFreeNewton
from gradoscope.updates.preconditioned import Preconditioned, whitened_groups
from gradoscope.updates.schedules import PowerDecay
from gradoscope.updates.searched import LineSearch

__all__ = [
    "DampedNewton",
    "ForwardOnlySGD",
    "LineSearch",
    "Newton",
    "PolyakAveraging",
    "PowerDecay",
    "Preconditioned",
    "SaddleFreeNewton",
    "lecture",
    "whitened_groups",
]
