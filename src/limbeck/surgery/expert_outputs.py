"""What a single expert makes of tokens, by each architecture's own stacked matrices: scoring looks inside the fused products.

Shapes: N tokens, D hidden size, F neurons of an expert, k experts of a token.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from limbeck.students.mlp import activate


def expert_output(experts: Any, expert: int, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """What one expert's last matrix reads, [N, F], and what it gives, [N, D], before the router's weight."""
    if hasattr(experts, "down_EFD"):  # limbeck
        gate_NF = None if experts.gate_EDF is None else x_ND @ experts.gate_EDF[expert]
        inner_NF = activate(experts.activation, x_ND @ experts.up_EDF[expert], gate_NF)
        return inner_NF, inner_NF @ experts.down_EFD[expert]
    if hasattr(experts, "down_proj_bias"):  # gpt_oss
        inner_NF = experts._apply_gate(x_ND @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert])
        return inner_NF, inner_NF @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    gate_NF, up_NF = F.linear(x_ND, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    inner_NF = experts.act_fn(gate_NF) * up_NF
    return inner_NF, F.linear(inner_NF, experts.down_proj[expert])


def chosen(routed: Any) -> tuple[Tensor, Tensor]:
    """Of a router's output: each token's experts and their weights, both [N, k]."""
    if hasattr(routed, "expert_Nk"):  # limbeck
        return routed.expert_Nk, routed.gate_Nk
    _, gate_Nk, expert_Nk = routed
    return expert_Nk, gate_Nk
