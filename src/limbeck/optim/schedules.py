"""Learning-rate factors as functions of the fraction of the budget that is spent."""

import math

from limbeck.spec.optim import Cosine, Schedule, WarmupStableDecay


def lr_factor(schedule: Schedule, fraction: float) -> float:
    """The share of the peak learning rate at `fraction` (0 to 1) of the budget."""
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < schedule.warmup:
        return fraction / schedule.warmup
    match schedule:
        case Cosine(warmup=warmup, final=final):
            through = (fraction - warmup) / (1 - warmup)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through))
        case WarmupStableDecay(decay=decay, final=final):
            remaining = (1 - fraction) / decay if decay else 1.0
            return final + (1 - final) * min(remaining, 1.0)
