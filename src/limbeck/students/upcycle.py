"""From a dense student to a mixture of experts that begins where it left off.

An expert's matrices are shards or copies of the dense MLP's. Gates sum to `route_scale` over the experts of a token, while the
dense output is the sum of all shards of one copy, so what experts give is scaled by c = granularity / route_scale. ReLU² is
homogeneous of degree two: each of its two matrices takes c**(1/3), and the mixture equals the dense MLP for every router that
chooses whole copies (Megatron-LM's rule, exact there). SwiGLU is not homogeneous: its last matrix takes all of c, which is
exact.

Routers: 'virtual_groups' draws one row for each copy and gives it to all its shards, so that a copy is chosen whole; the others
draw one for each expert.

Shapes: E experts, D hidden size, F channels of an expert, S channels of the dense MLP.
"""

import torch
from torch import Tensor

from limbeck.spec.layout import ExpertsLayout
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.decoder import Decoder
from limbeck.students.experts import Experts
from limbeck.students.mlp import Mlp

_ROUTER_STD = 0.02


@torch.no_grad()
def upcycle(dense: Decoder, spec: UpcycledStudent, *, seed: int) -> Decoder:
    """The student of `spec` with the weights of `dense`; the numbers that are drawn depend on the seed and the sizes alone."""
    vocab_size = dense.head_VD.shape[0]
    with torch.device("meta"):
        student = Decoder(spec.layout, vocab_size=vocab_size)
    student.to_empty(device="cpu")
    kept = {name: weight for name, weight in dense.state_dict().items() if name in student.state_dict()}
    student.load_state_dict(kept, strict=False)
    generator = torch.Generator().manual_seed(seed)
    for old, new in zip(dense.model.layers, student.model.layers, strict=True):
        if isinstance(new.mlp, Experts):
            assert isinstance(old.mlp, Mlp)
            _fill(new.mlp, old.mlp, spec, generator=generator)
    return student


def _fill(experts: Experts, mlp: Mlp, spec: UpcycledStudent, *, generator: torch.Generator) -> None:
    layout = experts.layout
    stacks = experts.experts
    last, all_of_them = _scales(layout, granularity=spec.granularity)
    stacks.up_EDF.copy_(_inward(mlp.up_proj.weight, layout, granularity=spec.granularity) * all_of_them)
    stacks.down_EFD.copy_(_outward(mlp.down_proj.weight, layout, granularity=spec.granularity) * last)
    matrices: list[Tensor] = [stacks.up_EDF, stacks.down_EFD]
    if stacks.gate_EDF is not None:
        assert mlp.gate_proj is not None
        stacks.gate_EDF.copy_(_inward(mlp.gate_proj.weight, layout, granularity=spec.granularity))
        matrices.append(stacks.gate_EDF)
    if spec.method == "drop":
        _begin_anew(matrices, share=spec.drop_share, last=stacks.down_EFD, generator=generator)
    for matrix in matrices:
        if spec.noise:
            matrix += spec.noise * matrix.std() * torch.randn(matrix.shape, generator=generator)
    copies = layout.num_experts // spec.granularity
    rows = torch.randn(copies, experts.router.weight.shape[1], generator=generator) * _ROUTER_STD
    experts.router.weight.copy_(rows.repeat_interleave(spec.granularity, 0))
    experts.router.bias.zero_()
    experts.shared_share.fill_(1.0)


def _scales(layout: ExpertsLayout, *, granularity: int) -> tuple[float, float]:
    """Of the last matrix, and of the one (not the gate) that goes in."""
    c = granularity / layout.route_scale
    return (c, 1.0) if layout.expert.activation == "swiglu" else (c ** (1 / 3), c ** (1 / 3))


def _inward(weight_SD: Tensor, layout: ExpertsLayout, *, granularity: int) -> Tensor:
    """EDF: shard i mod granularity, for every expert i."""
    shards_GDF = torch.stack(weight_SD.chunk(granularity, 0)).transpose(1, 2)
    return shards_GDF.repeat(layout.num_experts // granularity, 1, 1)


def _outward(weight_DS: Tensor, layout: ExpertsLayout, *, granularity: int) -> Tensor:
    """EFD."""
    shards_GFD = torch.stack(weight_DS.chunk(granularity, 1)).transpose(1, 2)
    return shards_GFD.repeat(layout.num_experts // granularity, 1, 1)


def _begin_anew(matrices: list[Tensor], *, share: float, last: Tensor, generator: torch.Generator) -> None:
    """The same channels of all matrices of an expert, other ones in every expert, normal with the old mean and deviation."""
    num_experts, channels = last.shape[0], last.shape[1]
    for expert in range(num_experts):
        chosen = torch.randperm(channels, generator=generator)[: round(share * channels)]
        for matrix in matrices:
            each = matrix[expert] if matrix is last else matrix[expert].T
            mean, std = each.mean(), each.std()
            each[chosen] = mean + std * torch.randn(len(chosen), each.shape[1], generator=generator)
