"""Learning-rate factors and momentum as functions of the fraction of the budget that is spent."""

import math

import torch

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


def set_moment(optimizer: torch.optim.Optimizer, *, lr_factor: float, fraction: float) -> None:
    """Bring every group of a `build_optimizer` to a moment of the run, before its step.

    `lr_factor` is the share of the peak learning rate; `fraction` (0 to 1) is that of the budget, for Muon's momentum warmup.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor
        if "peak_momentum" in group:
            warmed = min(fraction / group["momentum_warmup"], 1.0)
            group["momentum"] = group["start_momentum"] + (group["peak_momentum"] - group["start_momentum"]) * warmed
