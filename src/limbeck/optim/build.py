"""From the spec of an optimizer to the one object that the training loop steps."""

import torch
from torch import nn

from limbeck.optim.groups import parameter_groups
from limbeck.optim.muon import MuonWithAdamW
from limbeck.spec.optim import AdamW, Muon, NorMuon, Optimizer


def build_optimizer(spec: Optimizer, model: nn.Module, *, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """The optimizer of all parameters of `model`, whose groups `parameter_groups` makes.

    `dtype` is that of Muon's matrix products: bfloat16 where the device multiplies it faster. Raises `LimbeckError` where the
    model's placements do not fit its parameters.
    """
    groups = parameter_groups(spec, model)
    match spec:
        case AdamW():
            return torch.optim.AdamW(groups, fused=True)
        case Muon() | NorMuon():
            return MuonWithAdamW(groups, dtype=dtype)
