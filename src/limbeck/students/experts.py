"""Mixture of experts as in DeepSeek-V3 (arXiv 2412.19437): sigmoid scores, balancing by biases, gates that sum to a constant.

Scores s = sigmoid(router(x)), float32. Experts are chosen by s + b, within the best groups of experts where there are groups
(a group is as good as the sum of its two best); gates are s of the chosen ones over their sum, times `route_scale`: b chooses
and never weighs. After each optimizer step b moves by `bias_step` towards experts that saw fewer tokens than the mean.

The balance loss is alpha sum_i f_i P_i for each sequence, with f_i = E / (k T) times how often i is among the k largest s, and
P_i the mean of its share of s (eqs. 17 to 20); gradients flow through P alone. Nothing here counts by side effect: how many
tokens each expert saw is an output, so that recomputed activations count once, and evaluation counts nothing. Padding goes
through experts as all else does, and is neither counted nor balanced.

Tokens are sorted by expert and go through one grouped product a matrix; the plain twin, a loop, is in the tests.

Shapes: B rows, T positions, N = B T tokens, k experts of a token, M = N k, E experts, G groups, D hidden size, F channels of an
expert, I and O channels in and out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.spec.layout import ExpertsLayout, MlpLayout
from limbeck.students.mlp import Mlp, activate


@dataclass(frozen=True)
class Routing:
    """Where tokens go."""

    expert_Nk: Tensor  # int64
    gate_Nk: Tensor  # float32, sums to `route_scale`
    score_NE: Tensor  # float32


class Router(nn.Module):
    """Scores, and the biases that keep experts evenly busy: a buffer, float32 whatever the model's dtype."""

    def __init__(self, layout: ExpertsLayout, *, hidden_size: int) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(layout.num_experts, hidden_size))
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(layout.num_experts, dtype=torch.float32))

    def _apply(self, function, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Casts of the whole model leave the biases as they are: steps of 0.001 would be lost in bfloat16."""
        bias = self.bias
        super()._apply(function, recurse)
        self.bias = self.bias.float() if bias.is_meta else bias.to(self.bias.device)
        return self

    def forward(self, x_ND: Tensor) -> Routing:
        with torch.autocast(x_ND.device.type, enabled=False):
            wide = torch.promote_types(self.weight.dtype, torch.float32)
            score_NE = torch.sigmoid(x_ND.to(wide) @ self.weight.to(wide).T)
            expert_Nk = self._choose(score_NE.detach() + self.bias)
            chosen_Nk = score_NE.gather(1, expert_Nk)
            gate_Nk = self.layout.route_scale * chosen_Nk / (chosen_Nk.sum(1, keepdim=True) + 1e-20)
        return Routing(expert_Nk, gate_Nk, score_NE)

    def _choose(self, biased_NE: Tensor) -> Tensor:
        groups, kept = self.layout.groups, self.layout.groups_per_token
        if kept < groups:
            grouped_NGe = biased_NE.unflatten(1, (groups, -1))
            best_NG = grouped_NGe.topk(min(2, grouped_NGe.shape[2]), dim=2).values.sum(2)
            keep_NG = torch.zeros_like(best_NG, dtype=torch.bool).scatter(1, best_NG.topk(kept, dim=1).indices, True)
            biased_NE = grouped_NGe.masked_fill(~keep_NG[:, :, None], -torch.inf).flatten(1)
        return biased_NE.topk(self.layout.per_token, dim=1).indices

    @torch.no_grad()
    def rebalance(self, load_E: Tensor) -> None:
        """Move the biases, given how many tokens of a step each expert saw, over all processes."""
        short_E = load_E.double().mean() - load_E.double()  # in float32 large counts would miss their mean
        delta_E = self.layout.bias_step * torch.sign(short_E)
        self.bias += delta_E - delta_E.mean()


class ExpertStack(nn.Module):
    """All routed experts' matrices, one stack for each place in the MLP."""

    def __init__(self, num_experts: int, layout: MlpLayout, *, hidden_size: int) -> None:
        super().__init__()
        self.activation = layout.activation
        inward = (num_experts, hidden_size, layout.size)
        self.gate_EDF = nn.Parameter(torch.empty(inward)) if layout.activation == "swiglu" else None
        self.up_EDF = nn.Parameter(torch.empty(inward))
        self.down_EFD = nn.Parameter(torch.empty(num_experts, layout.size, hidden_size))

    def forward(self, x_ND: Tensor, end_E: Tensor) -> Tensor:
        """Tokens in the order of their experts; `end_E` (int32) says where each one's end."""
        up_NF = grouped_product(x_ND, self.up_EDF, end_E)
        gate_NF = None if self.gate_EDF is None else grouped_product(x_ND, self.gate_EDF, end_E)
        return grouped_product(activate(self.activation, up_NF, gate_NF), self.down_EFD, end_E)


def grouped_product(x_NI: Tensor, weight_EIO: Tensor, end_E: Tensor) -> Tensor:
    """Rows up to `end_E[0]` times the first matrix, those up to `end_E[1]` times the second, and so on; in autocast's dtype.

    `grouped_mm` knows no float64, whose matrices go one by one. It wants rows of whole 16 bytes.
    """
    device = x_NI.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_NI, weight_EIO = x_NI.to(dtype), weight_EIO.to(dtype)
    if x_NI.dtype == torch.float64:
        ends = [0, *end_E.tolist()]
        return torch.cat([x_NI[a:b] @ weight for a, b, weight in zip(ends, ends[1:], weight_EIO, strict=False)])
    return F.grouped_mm(x_NI, weight_EIO, offs=end_E)


@dataclass(frozen=True)
class ExpertsOutput:
    """What a mixture gives."""

    x_BTD: Tensor
    load_E: Tensor
    """Tokens that each expert saw; float32, no gradient."""
    balance: Tensor
    """The balance loss with its weight, the mean over sequences."""


class Experts(nn.Module):
    """Router, routed experts and the shared one."""

    def __init__(self, layout: ExpertsLayout, *, hidden_size: int) -> None:
        super().__init__()
        self.layout = layout
        self.router = Router(layout, hidden_size=hidden_size)
        self.experts = ExpertStack(layout.num_experts, layout.expert, hidden_size=hidden_size)
        self.shared = None if layout.shared_mlp is None else Mlp(layout.shared_mlp, hidden_size=hidden_size)
        self.shared_share: Tensor
        self.register_buffer("shared_share", torch.ones((), dtype=torch.float32))

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None = None) -> ExpertsOutput:
        """`real_BT` is False where there is padding; None: nowhere."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND)
        expert_M, order_M = routing.expert_Nk.flatten().sort(stable=True)
        # Where an expert's tokens end, without waiting for the device, as counting them would.
        each_E = torch.arange(self.layout.num_experts, device=expert_M.device)
        end_E = torch.searchsorted(expert_M, each_E, right=True, out_int32=True)
        # Not index_select, whose gradient adds a token's copies in any order on CUDA.
        out_MD = self.experts(x_ND[order_M // self.layout.per_token], end_E)
        # Back in the tokens' order, so that the sum over a token's experts is the same every time.
        out_NkD = out_MD.index_select(0, order_M.argsort()).unflatten(0, (len(x_ND), -1))
        y_ND = torch.einsum("nk,nkd->nd", routing.gate_Nk.to(out_NkD.dtype), out_NkD)
        y_BTD = y_ND.view_as(x_BTD)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared_share.to(y_BTD.dtype) * self.shared(x_BTD)
        load_E = self._load(routing.expert_Nk, end_E, real_BT)
        return ExpertsOutput(y_BTD, load_E, self._balance(routing.score_NE, rows=len(x_BTD), real_BT=real_BT))

    def _load(self, expert_Nk: Tensor, end_E: Tensor, real_BT: Tensor | None) -> Tensor:
        if real_BT is None:
            return end_E.diff(prepend=end_E.new_zeros(1)).float()
        weight_M = real_BT.flatten()[:, None].expand_as(expert_Nk).flatten().float()
        return torch.zeros(self.layout.num_experts, device=end_E.device).scatter_add(0, expert_Nk.flatten(), weight_M)

    def _balance(self, score_NE: Tensor, *, rows: int, real_BT: Tensor | None) -> Tensor:
        if not self.layout.balance_weight:
            return score_NE.new_zeros(())
        score_BTE = score_NE.unflatten(0, (rows, -1))
        picked_BTE = torch.zeros_like(score_BTE).scatter(2, score_BTE.topk(self.layout.per_token, dim=2).indices, 1.0)
        often_BE = _mean_of_real(picked_BTE, real_BT) * self.layout.num_experts / self.layout.per_token
        share_BE = _mean_of_real(score_BTE / score_BTE.sum(2, keepdim=True), real_BT)
        return self.layout.balance_weight * (often_BE * share_BE).sum(1).mean()


def _mean_of_real(x_BTE: Tensor, real_BT: Tensor | None) -> Tensor:
    """Over the positions of each sequence that are no padding; 0 of a sequence that is all padding."""
    if real_BT is None:
        return x_BTE.mean(1)
    weight_BT = real_BT.to(x_BTE.dtype)
    return torch.einsum("bte,bt->be", x_BTE, weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1))
