"""AdamW with the parameter groups that language models use."""

import torch
from torch import nn

from limbeck.spec.optim import AdamW


def build_optimizer(spec: AdamW, model: nn.Module) -> torch.optim.Optimizer:
    """`torch.optim.AdamW` over two groups: matrices decay; norms and the input embedding (with a tied head) do not."""
    embedding = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in embedding else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
