"""The coordinate check of µP (Yang & Hu 2021; simple, arXiv 2309.14322): what a few steps change must not grow with width."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from limbeck.optim.build import build_optimizer
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.optim import AdamW
from limbeck.students.build import build

BASE = 64
NARROW, WIDE = 128, 1024
VOCABULARY = 512


def ladder(width: int, *, mup: bool) -> LadderStudent:
    return LadderStudent(num_layers=2, hidden_size=width, num_heads=4, base_width=BASE, mup=mup, tied_embeddings=False)


def trained(spec: LadderStudent, *, steps: int) -> tuple[nn.Module, dict[str, float]]:
    """The student after a few steps of AdamW, and by how much (RMS) each part's output on the same tokens has changed."""
    student = build(spec, vocab_size=VOCABULARY, seed=0)
    optimizer = build_optimizer(AdamW(lr=1e-2, weight_decay=0.0), student)
    tokens_BT = torch.randint(VOCABULARY, (8, 33), generator=torch.Generator().manual_seed(1))
    last = student.model.layers[-1]
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor.detach()

    last.self_attn.register_forward_hook(lambda _, __, output: keep("attention", output))
    last.mlp.register_forward_hook(lambda _, __, output: keep("mlp", output))
    last.register_forward_hook(lambda _, __, output: keep("block", output.x_BTD))

    def logits_TV() -> Tensor:
        return student.logits(student(tokens_BT[:, :-1]).hidden_BTD.flatten(0, 1))

    keep("logits", logits_TV())
    before = dict(seen)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(logits_TV(), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step()
    keep("logits", logits_TV())
    return student, {name: float((seen[name] - before[name]).square().mean().sqrt()) for name in before}


@pytest.mark.slow
def test_changes_are_flat_in_width_under_mup_and_grow_without() -> None:
    """From width 128 to 1024. Measured: 1.0 to 1.3 times with µP, 2.3 (logits) to 12 times without."""
    for mup in (True, False):
        narrow, wide = (trained(ladder(width, mup=mup), steps=3)[1] for width in (NARROW, WIDE))
        growth = {part: wide[part] / narrow[part] for part in narrow}
        if mup:
            assert all(0.7 < factor < 1.4 for factor in growth.values()), growth
        else:
            assert all(factor > 2 for factor in growth.values()), growth


def test_at_the_base_width_mup_is_adamw_as_it_is() -> None:
    with_mup, without = (trained(ladder(BASE, mup=mup), steps=2)[0] for mup in (True, False))
    for (name, one), other in zip(with_mup.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other), name
