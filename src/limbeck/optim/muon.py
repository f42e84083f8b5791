"""Muon and NorMuon for hidden matrices, AdamW for all else, as one `torch.optim.Optimizer`.

For a matrix W of shape [out, in] with gradient G, in float32 but for the orthogonaliser's products:

    M <- beta M + (1 - beta) G                       momentum
    U = (1 - beta) G + beta M  (Nesterov), else M
    O = orthogonalise(U)                             `limbeck.optim.orthogonalise`
    NorMuon alone: v_i <- beta2 v_i + (1 - beta2) mean_j O_ij^2;  O <- O / sqrt(v), rescaled to the Frobenius norm it had
    W <- (1 - lr lambda) W - lr s O                  s: `shape_scale`

Sources: `KellerJordan/Muon`; arXiv 2510.05491 (NorMuon; the rescaling cancels the missing bias correction of v). In a stack of
experts [E, in, out] each is a matrix of its own. A matrix without gradient (`None`, or all zeros: an expert that saw no token)
takes no step and keeps its state: O does not shrink with the momentum, so it would walk on along a stale one.

Under FSDP2 parameters, gradients and momentum are sharded `DTensor`s: each process gathers the whole U, orthogonalises it, and
keeps its shard of the step. Every process repeats the products of all; the plain twin is the same step without shards.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

from limbeck.optim.orthogonalise import orthogonalise


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps each group by its `algorithm`: "muon", "normuon" or "adamw" (`limbeck.optim.groups` makes such groups)."""

    def __init__(self, groups: list[dict[str, Any]], *, dtype: torch.dtype) -> None:
        super().__init__(groups, {})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["algorithm"] == "adamw":
                self._step_adamw(group, parameters)
            else:
                for parameter in parameters:
                    _step_matrix(parameter, group, self.state[parameter], dtype=self.dtype)

    def _step_adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            list[Tensor](parameters),
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def _step_matrix(parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any], *, dtype: torch.dtype) -> None:
    """One step of a matrix, or of each expert of a stack; everything but `_direction` is elementwise, so shards stay shards."""
    gradient, beta, lr = parameter.grad, group["momentum"], group["lr"]
    assert gradient is not None
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
        if "beta2" in group:  # a number for each output neuron, in full everywhere
            shape = (*_rows_first(parameter).shape[:-1], 1)
            state["second_moment"] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    # [1, 1] or [E, 1, 1]: 1 where there is a gradient; multiplied by 0, a change is none, bit for bit.
    seen = (gradient.abs().amax((-2, -1), keepdim=True) != 0).to(gradient.dtype)
    state["momentum"].lerp_(gradient, (1 - beta) * seen)
    update = gradient.lerp(state["momentum"], beta) if group["nesterov"] else state["momentum"]
    direction = _direction(_whole(update), group, state, seen=_whole(seen), dtype=dtype)
    parameter.mul_(1 - lr * group["weight_decay"] * seen)
    parameter.sub_(_sharded_like(direction * lr, parameter))


def _direction(update: Tensor, group: dict[str, Any], state: dict[str, Any], *, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """s O of whole matrices, zero where there was no gradient; NorMuon's running mean is brought forward."""
    rows = _rows_first(update)
    orthogonal = orthogonalise(rows, method=group["orthogonaliser"], steps=group["steps"], dtype=dtype)
    if "beta2" in group:
        state["second_moment"].lerp_(orthogonal.square().mean(-1, keepdim=True), (1 - group["beta2"]) * seen)
        orthogonal = _level_rows(orthogonal, state["second_moment"])
    scaled = orthogonal * (shape_scale(group["scale"], out=rows.shape[-2], into=rows.shape[-1]) * seen)
    return _rows_first(scaled)  # and back


def _level_rows(matrices: Tensor, second_moment: Tensor) -> Tensor:
    """Rows divided by the root of their running mean square, at the Frobenius norm that the matrix had."""
    level = matrices / (second_moment.sqrt() + 1e-10)
    norm, new_norm = (torch.linalg.matrix_norm(each, keepdim=True) for each in (matrices, level))
    return level * (norm / new_norm.clamp(min=torch.finfo(level.dtype).tiny))


def shape_scale(scale: str, *, out: int, into: int) -> float:
    """s, for a matrix from `into` to `out` channels. An orthogonal matrix has the RMS 1 / sqrt(max(out, into))."""
    match scale:
        case "original":
            return math.sqrt(max(1.0, out / into))
        case "match_rms_adamw":  # RMS 0.2, about that of AdamW's steps (arXiv 2502.16982)
            return 0.2 * math.sqrt(max(out, into))
        case _:
            assert scale == "spectral"
            return math.sqrt(out / into)


def _rows_first(matrices: Tensor) -> Tensor:
    """[out, in] as it is; experts [E, in, out] <-> [E, out, in]."""
    return matrices.mT if matrices.ndim == 3 else matrices


def _whole(shard: Tensor) -> Tensor:
    return shard.full_tensor() if isinstance(shard, DTensor) else shard


def _sharded_like(whole: Tensor, reference: Tensor) -> Tensor:
    """This process's shard of a tensor that every process has, without communication."""
    if not isinstance(reference, DTensor):
        return whole
    replicated = DTensor.from_local(whole, reference.device_mesh, [Replicate()] * reference.device_mesh.ndim, run_check=False)
    return replicated.redistribute(placements=reference.placements)
