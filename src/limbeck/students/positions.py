"""Positions as rotations of queries and keys: RoPE, YaRN, and GRAPE-M with learned rates or planes.

All put position n on a query or key as G(n) with G(m)^T G(n) = G(n - m), so that their product depends on the distance alone.
Norms come before the turn. Angles are float32 at least, as in transformers: in bfloat16 position 257 would already be 256.

* RoPE (arXiv 2104.09864), half-split as in Llama and OLMo: channels i and i + h/2 form a plane that turns by
  theta**(-2i/h) a position.
* GRAPE-M (arXiv 2512.07805), 'frequencies': the same planes at learned rates, stored as 16 ln(rate), which slows Adam down by
  as much. 'contextual': a token moves the position on by softplus of a learned function of it, not by 1. 'rank2': each
  key/value head (and the queries it serves) turns in one plane spanned by learned a, b, by exp(n (a b^T - b a^T)).
* YaRN (arXiv 2309.00071): slow planes slowed down, fast ones kept, and cosines and sines scaled. For RoPE by the planes' index,
  as deployed; for learned rates by how often a plane turns over the original length, since they need not fall with the index.

Shapes: B rows, T positions, H heads, K key/value heads, h channels of a head, p planes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.spec.parts import GrapeM, Rope, Yarn
from limbeck.students.cache import KeysValues

Turn = Callable[[Tensor], Tensor]
"""Queries BHTh or keys BKTh, turned by their positions; computed in the angles' dtype and returned in their own."""
LOG_RATE_SCALE = 16.0


@dataclass(frozen=True)
class PlaneTurn:
    """Cosine and sine of every position's angles, each plane's angle twice: once for either half of a head's channels."""

    cos_B1Th: Tensor
    sin_B1Th: Tensor

    def __call__(self, x_BHTh: Tensor) -> Tensor:
        first, second = x_BHTh.chunk(2, dim=-1)
        quarter_turn_BHTh = torch.cat((-second, first), dim=-1)
        return (x_BHTh * self.cos_B1Th + quarter_turn_BHTh * self.sin_B1Th).to(x_BHTh.dtype)


def plane_turn(position_BT: Tensor, rate_p: Tensor, *, factor: float = 1.0) -> PlaneTurn:
    """Planes at `rate_p`, in its dtype; `factor` multiplies cosines and sines (YaRN)."""
    angle_BTp = position_BT[..., None].to(rate_p.dtype) * rate_p
    angle_B1Th = torch.cat((angle_BTp, angle_BTp), dim=-1)[:, None]
    return PlaneTurn(factor * angle_B1Th.cos(), factor * angle_B1Th.sin())


def rope_rates(spec: Rope, *, head_dim: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians a position of each plane; `length` is how many positions there are, which `ntk_length` looks at."""
    theta = spec.theta
    if spec.ntk_length is not None and length > spec.ntk_length:
        theta *= (length / spec.ntk_length) ** (head_dim / (head_dim - 2))
    even_channels = torch.arange(0, head_dim, 2, dtype=dtype, device=device)
    rate_p = 1.0 / (theta ** (even_channels / head_dim))
    if spec.yarn is None:
        return rate_p
    share_p = _ramp_by_index(spec.yarn, theta=theta, head_dim=head_dim).to(device, dtype)
    return rate_p * (1 - share_p) + rate_p / spec.yarn.factor * share_p


def _ramp_by_index(yarn: Yarn, *, theta: float, head_dim: int) -> Tensor:
    """0 for planes that are kept, 1 for those slowed down, a straight line in the index between; float64."""

    def plane_of(turns: float) -> float:
        return head_dim * math.log(yarn.original_length / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = plane_of(yarn.beta_fast), plane_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    index_p = torch.arange(head_dim // 2, dtype=torch.float64)
    return ((index_p - low) / (high - low if high != low else 0.001)).clamp(0, 1)


def stretch_by_turns(rate: Tensor, yarn: Yarn) -> Tensor:
    """What learned rates are multiplied by under YaRN.

    1 where a plane turns `beta_fast` times or more over the original length, 1 / factor where `beta_slow` times or less, a
    straight line in the number of turns between.
    """
    turns = yarn.original_length * rate / (2 * math.pi)
    keep = ((turns - yarn.beta_slow) / (yarn.beta_fast - yarn.beta_slow)).clamp(0, 1)
    return keep + (1 - keep) / yarn.factor


class GrapeRates(nn.Module):
    """GRAPE-M with learned rates, and, where contextual, a learned step of each token."""

    def __init__(self, spec: GrapeM, *, head_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.log_rate_p = nn.Parameter(torch.empty(head_dim // 2))
        self.step_proj = nn.Linear(hidden_size, 1, bias=True) if spec.form == "contextual" else None

    def initial_log_rates(self) -> Tensor:
        """Those of RoPE."""
        index_p = torch.arange(len(self.log_rate_p), dtype=torch.float64)
        return -LOG_RATE_SCALE * math.log(self.spec.theta) * index_p / len(self.log_rate_p)

    def forward(self, x_BTD: Tensor, position_BT: Tensor, cache: KeysValues | None = None) -> Turn:
        with torch.autocast(x_BTD.device.type, enabled=False):
            wide = torch.promote_types(self.log_rate_p.dtype, torch.float32)
            rate_p = (self.log_rate_p.to(wide) / LOG_RATE_SCALE).exp()
            factor = 1.0
            if self.spec.yarn is not None:
                rate_p, factor = rate_p * stretch_by_turns(rate_p, self.spec.yarn), self.spec.yarn.attention_factor
            at_BT = position_BT.to(wide) if self.step_proj is None else self._travelled(x_BTD.to(wide), cache)
            return plane_turn(at_BT, rate_p, factor=factor)

    def _travelled(self, x_BTD: Tensor, cache: KeysValues | None) -> Tensor:
        """The sum of the steps of all tokens before each. It runs on over a row's documents: differences alone matter."""
        assert self.step_proj is not None
        weight, bias = (each.to(x_BTD.dtype) for each in (self.step_proj.weight, self.step_proj.bias))
        step_BT = F.softplus(F.linear(x_BTD, weight, bias))[..., 0]
        start_B1 = 0.0 if cache is None or cache.travelled_B1 is None else cache.travelled_B1
        after_BT = start_B1 + step_BT.cumsum(1)
        if cache is not None:
            cache.travelled_B1 = after_BT[:, -1:]
        return after_BT - step_BT


@dataclass(frozen=True)
class Rank2Turn:
    """exp(n L) x with L = a b^T - b a^T, by its closed form: x + f1 (a v - b u) + f2 (c (a v + b u) - |b|^2 a u - |a|^2 b v).

    u = a x, v = b x, c = a b, s = sqrt(|a|^2 |b|^2 - c^2), f1 = sin(n s) / s, f2 = (1 - cos(n s)) / s^2 (GRAPE, section 3).
    s is the plane's rate. Under YaRN n s is stretched, and the whole of x is multiplied by the attention factor.
    """

    a_Kh: Tensor
    b_Kh: Tensor
    position_BT: Tensor
    yarn: Yarn | None = None

    def __call__(self, x_BHTh: Tensor) -> Tensor:
        dtype, repeat = self.a_Kh.dtype, x_BHTh.shape[1] // len(self.a_Kh)
        a, b = (each.repeat_interleave(repeat, 0)[:, None] for each in (self.a_Kh, self.b_Kh))  # H1h
        alpha, beta, gamma = (a * a).sum(-1, keepdim=True), (b * b).sum(-1, keepdim=True), (a * b).sum(-1, keepdim=True)  # H11
        # Where a and b are parallel there is no plane, and what f1 and f2 multiply is 0.
        rate = (alpha * beta - gamma**2).clamp(min=torch.finfo(dtype).tiny).sqrt()
        speed = rate if self.yarn is None else rate * stretch_by_turns(rate, self.yarn)
        factor = 1.0 if self.yarn is None else self.yarn.attention_factor
        angle_BHT1 = self.position_BT[:, None, :, None].to(dtype) * speed
        f1, f2 = angle_BHT1.sin() / rate, (1 - angle_BHT1.cos()) / rate**2
        x = x_BHTh.to(dtype)
        u, v = (a * x).sum(-1, keepdim=True), (b * x).sum(-1, keepdim=True)
        turned = x + f1 * (a * v - b * u) + f2 * (gamma * (a * v + b * u) - beta * a * u - alpha * b * v)
        return (factor * turned).to(x_BHTh.dtype)


class GrapePlane(nn.Module):
    """GRAPE-M of rank 2: one learned plane a key/value head."""

    def __init__(self, spec: GrapeM, *, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.a_Kh = nn.Parameter(torch.empty(kv_heads, head_dim))
        self.b_Kh = nn.Parameter(torch.empty(kv_heads, head_dim))

    def forward(self, x_BTD: Tensor, position_BT: Tensor, cache: KeysValues | None = None) -> Turn:
        with torch.autocast(x_BTD.device.type, enabled=False):
            wide = torch.promote_types(self.a_Kh.dtype, torch.float32)
            return Rank2Turn(self.a_Kh.to(wide), self.b_Kh.to(wide), position_BT, self.spec.yarn)
