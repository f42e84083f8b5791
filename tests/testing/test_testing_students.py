"""`check_student` passes every family and finds a planted fault of each sort, naming the rule."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_students import FOREIGN, NATIVE, dense, golf, moe, olmo3
from torch import Tensor, nn

from limbeck.spec.student import Student
from limbeck.students.build import build
from limbeck.students.cache import Cache
from limbeck.students.decoder import Decoder
from limbeck.students.norms import RMSNorm
from limbeck.testing import ConformanceError, check_student
from limbeck.testing import students as suite

QUICK = {"olmo3", "ladder", "moe, annealed shared expert", "golf"}
MEMBERS = {
    name: pytest.param(spec, architecture, marks=[] if name in QUICK else pytest.mark.slow, id=name)
    for name, (spec, architecture) in (
        NATIVE | {name: (spec, "LimbeckForCausalLM") for name, (spec, _) in FOREIGN.items()}
    ).items()
}


@pytest.mark.parametrize(("spec", "architecture"), MEMBERS.values())
def test_every_family_and_part_conforms(spec: Student, architecture: str) -> None:
    report = check_student(spec)
    assert report.architecture == architecture
    built = build(spec, vocab_size=suite.VOCABULARY, seed=0)
    assert report.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert len(report.checks) == 10


def faulty(spec: Student, seed: int, change: Callable[[Decoder], None]) -> Decoder:
    student = build(spec, vocab_size=suite.VOCABULARY, seed=seed)
    change(student)
    return student


def adds_a_parameter(student: Decoder) -> None:
    student.model.extra = nn.Parameter(torch.zeros(3))


def draws_globally(student: Decoder) -> None:
    with torch.no_grad():
        student.model.norm.weight.copy_(torch.rand(student.model.norm.weight.shape))


def is_infinite(student: Decoder) -> None:
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight.fill_(torch.inf)


def leaves_a_parameter_out(student: Decoder) -> None:
    student.model.layers[1].self_attn.k_norm.forward = lambda x: x


def counts(student: Decoder) -> None:
    student.model.register_buffer("seen", torch.zeros(()))
    student.register_forward_pre_hook(lambda module, inputs: setattr(module.model, "seen", module.model.seen + 1))


def patched_attention(change: Callable[[Tensor], Tensor]) -> Callable[[Decoder], None]:
    """What the first layer's values are, as a function of BTC."""

    def plant(student: Decoder) -> None:
        student.model.layers[0].self_attn.v_proj.register_forward_hook(lambda module, inputs, v_BTC: change(v_BTC))

    return plant


class RoundsTwice(RMSNorm):
    """As Llama has it: cast, then multiplied."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)).to(x.dtype)


def rounds_twice(student: Decoder) -> None:
    for layer in student.model.layers:
        layer.self_attn.q_norm.__class__ = RoundsTwice


def forgets_in_its_cache(student: Decoder) -> None:
    """What it remembers of a layer fades."""
    fresh = student.new_cache

    def fading() -> Cache:
        cache = fresh()
        layer = cache.layers[1]
        extend = layer.extend
        layer.extend = lambda k, v: tuple(0.9 * all_of_them for all_of_them in extend(k, v))
        return cache

    student.new_cache = fading


FAULTS = {
    "parameters": (olmo3(), adds_a_parameter),
    "seed": (olmo3(), draws_globally),
    "finite": (olmo3(), is_infinite),
    "gradients": (dense(), leaves_a_parameter_out),
    "reading": (olmo3(), counts),
    "causal": (dense(), patched_attention(lambda v_BTC: v_BTC + v_BTC.mean(1, keepdim=True))),
    "packed documents": (dense(), patched_attention(lambda v_BTC: v_BTC + v_BTC.cumsum(1))),
    "cache": (moe(), forgets_in_its_cache),
    "norms": (dense(), rounds_twice),
}


@pytest.mark.parametrize(("rule", "spec", "change"), [(rule, *fault) for rule, fault in FAULTS.items()], ids=FAULTS.keys())
def test_a_fault_is_named(rule: str, spec: Student, change: Callable[[Decoder], None]) -> None:
    with pytest.raises(ConformanceError, match=f"^{rule}"):
        check_student(spec, make=lambda spec, seed: faulty(spec, seed, change))


def test_another_seed_must_matter() -> None:
    with pytest.raises(ConformanceError, match=r"^seed: another seed"):
        check_student(golf(), make=lambda spec, seed: build(spec, vocab_size=suite.VOCABULARY, seed=0))


def test_a_folder_that_computes_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers opens forgot the softcap."""
    opens = suite.AutoModelForCausalLM.from_pretrained

    def uncapped(folder: Path) -> nn.Module:
        model = opens(folder)
        model.softcap = None
        return model

    monkeypatch.setattr(suite.AutoModelForCausalLM, "from_pretrained", uncapped)
    with pytest.raises(ConformanceError, match=r"^folder: logits"):
        check_student(golf())
