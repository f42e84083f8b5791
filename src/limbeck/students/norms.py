"""RMS norm, with learned weights or without."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x**2) + eps), in float32 at least; the weight is multiplied before the cast back to x's dtype."""

    def __init__(self, size: int, *, eps: float, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if weighted else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed if self.weight is None else self.weight * normed).to(x.dtype)
