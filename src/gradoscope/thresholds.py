"""Every threshold of the verdicts, each with the reason for its value. No other module holds one."""

__all__ = [
    "ALPHA",
    "BY_HEART",
    "CLIFF",
    "DEAD_SHARE",
    "EXPLAINED",
    "FLAT_CONTRACTION",
    "GAMMA_CRITICAL",
    "GAMMA_MOVING",
    "GROWTH",
    "LEVEL",
    "MATERIAL",
    "MINOR",
    "NEGATIVE_SHARE",
    "NOISE_SHARE",
    "NOISIER",
    "NOT_LEARNT",
    "OFF_SCALE",
    "OVERSHOOT",
    "SAME_GAIN",
    "SAME_GRADIENT",
    "SATURATED_SHARE",
    "SCALE_FLOOR",
    "SENSITIVITY_RATIO",
    "SIGMAS",
    "SLOW",
    "SMALL_STEP",
    "SNR_GAP",
    "STABILITY",
    "STALLED",
    "STIFF_LOWER",
    "STIFF_UPPER",
    "STRETCH",
    "TIMES_FASTER",
    "TIME_RATIO",
    "TWINS",
    "UNEXPLAINED",
]

# --- What counts as material -------------------------------------------------------------------------------------
# Shares of all the loss that there was to remove, from the start (or twice the level of the best constant answer, if
# that is lower) to the best level that any run reached.
MATERIAL = 0.25
"""A remedy that removes a quarter of all there was to remove changes what the training is worth. Another learning rate
within a factor of three, or another seed, moves healthy trainings by less."""
SCALE_FLOOR = 0.2
"""All there was to remove counts as at least a fifth of the loss above its lowest possible value: where no run has learnt
anything, the differences between runs are noise."""
MINOR = 0.15
"""Below this share nothing material can be gained: such a training is healthy. Between MINOR and MATERIAL: undetermined."""
STALLED = 0.10
"""What a remedy must remove of all there was where the training has stalled: a tenth is what separates learnt from not."""
TIMES_FASTER = 3.0
"""A stalled training removes less than a third of the excess that the remedy removes over the same steps."""
SIGMAS = 3.0
"""Standard errors that a gain must exceed: the best of a dozen counterfactuals exceeds two by chance in a quarter of cases."""

BY_HEART = 0.5
"""A gain of which surely not half shows on new examples, and maybe nothing, is examples learnt by heart."""
SAME_GAIN = 0.67
"""A remedy that gains two thirds of what another one does, often over fewer steps, does about as well."""
EXPLAINED = 0.8
"""A remedy that gains less than four fifths of what another one does may only soften the other's obstacle."""

# --- Error rates --------------------------------------------------------------------------------------------------
LEVEL = 0.05
"""Two-sided level of every interval (95%)."""
ALPHA = 0.01
"""Level of the tests for progress: one wrong trend in a hundred."""

# --- Step and curvature (dimensionless) -----------------------------------------------------------------------------
STABILITY = 1.9
"""2 is where gradient descent on a quadratic diverges, in units of the optimizer's own limit; 5% for the error of the
largest eigenvalue, which is approached from below."""
OVERSHOOT = 0.2
"""A fifth of what steps gain on the examples they were made of is lost again by steps that raise the loss of theirs: a short enough step
never does."""
SMALL_STEP = 0.1
"""A step of less than a twentieth of the stability limit leaves a factor of ten to larger ones."""
STIFF_LOWER = 0.2
"""The step is at a tenth of the limit or more: there is no room for a much larger one."""
STIFF_UPPER = 2.2
"""Beyond the stability limit (and a tenth, as curvature settles around it) the step itself is what fails."""
FLAT_CONTRACTION = 0.05
"""The gradient lies where the curvature is less than a twentieth of the largest: twenty times as slow as the stiff part."""
GAMMA_CRITICAL = 0.05
"""|G| / sqrt(2 E |lambda|): near a critical point the gradient is a small part of what the curvature could supply."""
GAMMA_MOVING = 0.005
"""Below it, a small step is not what holds the training: there is next to no gradient to step along."""
NEGATIVE_SHARE = 1e-3
"""Negative curvature of less than a thousandth of the positive is what flat directions show by rounding and sampling."""

# --- Layers and units -----------------------------------------------------------------------------------------------
SENSITIVITY_RATIO = 1e-2
"""A layer whose sensitivity is a hundredth of the most sensitive one's learns a hundred times as slowly."""
SATURATED_SHARE = 0.5
"""More than half of what an activation puts out has no slope: a layer that hardly passes a gradient."""
DEAD_SHARE = 0.95
"""Nearly all units of a layer give the same output for every example: no signal passes."""
TIME_RATIO = 1e-3
"""The first inputs of a sequence move the loss a thousandth as much as the inputs that move it most."""
TWINS = 0.5
"""Half of a layer's units are copies of others: it is at most three quarters as wide as it looks, and most often one unit wide."""
GROWTH = 100.0
"""Signal or gradient that grows a hundredfold from one end of the network to the other."""
CLIFF = 10.0
"""Gradient norms ten times their median: heavier than the tail of any stationary training that we know of."""

NOISIER = 4.0
"""Signal and noise are equal at four times the batch or more: the noise of a step is twice as long as its signal."""
# --- Inputs and targets ------------------------------------------------------------------------------------------------
OFF_SCALE = 10.0
"""Root mean square beyond a factor ten of one: the usual starts are made for inputs of size one, and a factor ten in the signal is
a hundred in the curvature."""
STRETCH = 10.0
"""Scale and offset of the features alone cost ten times the stable steps that standardised ones take."""

# --- Noise and information --------------------------------------------------------------------------------------------
NOISE_SHARE = 0.5
"""Noise adds at least half as much loss per step as the mean gradient removes."""
INFORMED = 0.02
"""A permutation test below this p-value: the gradient knows the targets. Readings below 0.1 are repeated on four times as
many examples first, so that chance alone gets here in a fifth of a hundredth of the cases."""
SLOW = 0.25
"""Less than a quarter of the excess in half of the steps: what still moves this slowly may sit at a critical point."""
NOT_LEARNT = 0.10
"""A training that removed less than a tenth of what the best constant answer leaves has learnt next to nothing."""
UNEXPLAINED = 0.5
"""More than half of the constant answer's loss is left: the loss is high, and something must explain it."""

# --- Parts and their targets --------------------------------------------------------------------------------------------
SNR_GAP = 0.1
"""The primary gradient on the parts has a tenth of the intermediate one's signal over noise, or less: it needs ten times the
examples for the same certainty about where the parts should go. Only a gain of the targets makes it an obstacle."""
SAME_GRADIENT = 0.5
"""Two losses have the same mean gradient if no test tells their means apart, and that of one along the other is between this
and its inverse beyond doubt: half as long, or twice as long, would be another gradient."""
