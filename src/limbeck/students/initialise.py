"""How a student's parameters begin. The numbers come from a CPU generator of their own: they depend on seed and sizes alone.

Norms, gains, scales and mixes begin at what leaves the residual stream as a plain block would; sinks, gates and learned planes
where their papers begin. Sources are at the parts.
"""

import math

import torch
from torch import Tensor, nn

from limbeck.spec.layout import InitLayout
from limbeck.students.attention import Attention
from limbeck.students.decoder import Block, Body, Decoder
from limbeck.students.embeddings import BigramHash, Smear, ValueEmbedding
from limbeck.students.experts import Experts, ExpertStack, Router
from limbeck.students.mlp import Mlp
from limbeck.students.norms import RMSNorm
from limbeck.students.positions import GrapePlane, GrapeRates

_CUT = 3.0
"""Normal numbers are cut off at so many deviations."""
_LEAST_ORTHOGONAL = 64
"""Smaller matrices are normal, with deviation 1/sqrt(fan-in)."""
_FIRST_STEP = 1.0
"""How far a token moves contextual positions on before anything is learned."""
_VALUE_TABLE_STD = 0.01
_BIGRAM_SCALE = 0.05
"""Small, beside the embeddings."""
_VALUE_SCALE = 0.1
"""Small, beside the values."""


@torch.no_grad()
def initialise(student: Decoder, *, seed: int) -> None:
    """Fill every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    for module in student.modules():
        _of_module(module, student, generator=generator)
    for module in student.modules():
        _of_children(module, student)


def _of_module(module: nn.Module, student: Decoder, *, generator: torch.Generator) -> None:
    """The parameters that are the module's own."""
    layout = student.layout
    match module:
        case nn.Embedding() if module is student.model.embed_tokens:
            std = layout.init.embedding_std
            _normal(module.weight, std=layout.init.std if std is None else std, generator=generator)
        case nn.Embedding():
            _normal(module.weight, std=_VALUE_TABLE_STD, generator=generator)
        case nn.Linear():
            _matrix(module.weight, layout.init, fan_in=module.in_features, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        case RMSNorm():
            if module.weight is not None:
                module.weight.fill_(1.0)
        case Attention():
            _fill(module.q_gain_H, module.layout.qk_gain)
            _fill(module.sink_H, 0.0)
            _fill(module.value_scale, 1.0)
        case Router():
            _matrix(module.weight, layout.init, fan_in=module.weight.shape[1], generator=generator)
            module.bias.zero_()
        case ExpertStack():
            for stack in module.parameters(recurse=False):
                _matrix(stack, layout.init, fan_in=stack.shape[1], generator=generator)
        case Experts():
            module.shared_share.fill_(1.0)
        case BigramHash():
            module.scale.fill_(_BIGRAM_SCALE)
        case ValueEmbedding():
            module.scale.fill_(_VALUE_SCALE)
        case Smear():
            module.gate_D.zero_()
        case GrapeRates():
            module.log_rate_p.copy_(module.initial_log_rates())
        case GrapePlane():
            _planes(module, generator=generator)
        case Block():
            _fill(module.attn_scale_D, 1.0)
            _fill(module.mlp_scale_D, 1.0)
            if module.mix_2D is not None:
                module.mix_2D[0], module.mix_2D[1] = 1.0, 0.0
        case Body():
            _fill(module.skip_SD, 1.0)


def _of_children(module: nn.Module, student: Decoder) -> None:
    """What a module sets in its children: zeros for tables of pairs and projections of value embeddings, and for the branches'
    outputs where matrices are orthogonal; steps that are the same for every token."""
    orthogonal = student.layout.init.kind == "orthogonal"
    match module:
        case BigramHash():
            module.table.weight.zero_()
        case ValueEmbedding():
            module.proj.weight.zero_()
        case GrapeRates() if module.step_proj is not None:
            module.step_proj.weight.zero_()
            module.step_proj.bias.fill_(math.log(math.expm1(_FIRST_STEP)))
        case Attention() if orthogonal:
            module.o_proj.weight.zero_()
        case Mlp() if orthogonal:
            module.down_proj.weight.zero_()
        case ExpertStack() if orthogonal:
            module.down_EFD.zero_()


def _fill(parameter: Tensor | None, value: float) -> None:
    if parameter is not None:
        parameter.fill_(value)


def _matrix(weight: Tensor, init: InitLayout, *, fan_in: int, generator: torch.Generator) -> None:
    """A matrix, or each of a stack."""
    if init.kind == "orthogonal" and min(weight.shape[-2:]) >= _LEAST_ORTHOGONAL:
        for each in weight.view(-1, *weight.shape[-2:]):
            values = torch.empty(each.shape)
            nn.init.orthogonal_(values, generator=generator)
            each.copy_(values)
        return
    _normal(weight, std=init.std if init.kind == "normal" else fan_in**-0.5, generator=generator)


def _normal(weight: Tensor, *, std: float, generator: torch.Generator) -> None:
    values = torch.empty(weight.shape)
    nn.init.trunc_normal_(values, std=std, a=-_CUT * std, b=_CUT * std, generator=generator)
    weight.copy_(values)


def _planes(module: GrapePlane, *, generator: torch.Generator) -> None:
    """Planes of random direction that turn by RoPE's rates, from the fastest head to the slowest."""
    heads, channels = module.a_Kh.shape
    for head in range(heads):
        basis = torch.linalg.qr(torch.randn(channels, 2, dtype=torch.float64, generator=generator)).Q
        rate = module.spec.theta ** (-head / heads)
        module.a_Kh[head], module.b_Kh[head] = math.sqrt(rate) * basis[:, 0], math.sqrt(rate) * basis[:, 1]
