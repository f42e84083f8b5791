"""The dense MLPs.

`swiglu`: down(silu(gate(x)) * up(x)) (arXiv 2002.05202). `relu2`: down(max(up(x), 0)**2) (Primer, arXiv 2109.08668);
`leaky_relu2` squares x where it is positive and x / 2 elsewhere (nanoGPT speedruns). The last two have no gate.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.spec.layout import MlpLayout
from limbeck.spec.parts import Activation


def activate(activation: Activation, up: Tensor, gate: Tensor | None) -> Tensor:
    """What goes into the last matrix."""
    match activation:
        case "swiglu":
            assert gate is not None
            return F.silu(gate) * up
        case "relu2":
            return F.relu(up).square()
        case "leaky_relu2":
            return F.leaky_relu(up, negative_slope=0.5).square()


class Mlp(nn.Module):
    """Two matrices, or three where the activation has a gate."""

    def __init__(self, layout: MlpLayout, *, hidden_size: int) -> None:
        super().__init__()
        self.activation = layout.activation
        self.gate_proj = nn.Linear(hidden_size, layout.size, bias=False) if layout.activation == "swiglu" else None
        self.up_proj = nn.Linear(hidden_size, layout.size, bias=False)
        self.down_proj = nn.Linear(layout.size, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF = None if self.gate_proj is None else self.gate_proj(x_BTD)
        return self.down_proj(activate(self.activation, self.up_proj(x_BTD), gate_BTF))
