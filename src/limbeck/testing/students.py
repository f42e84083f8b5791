"""`check_student`: what every student must be, whatever its parts.

It builds the student of a spec and checks that it has as many parameters as its spec is charged for; that the same seed gives
the same weights and leaves torch's own generator alone; that it is finite where it begins and gradients reach every parameter;
that reading changes nothing in it; that no token changes what stands before it; that documents packed into a row are read as if
alone; that reading token by token with a cache gives what reading at once gives; that norms round once under bfloat16 autocast;
and that it comes back from a Hugging Face folder with equal weights, spec and logits.

Of a pretrained student there is no cache to check and no norm of ours, gradients must reach what learns, float32 is as exact as
it gets, and the folder is opened by transformers alone, an adapter merged.

All but the first checks move every parameter from where it begins, so that what begins at zero or one is seen too.

    from limbeck.testing import check_student
    check_student(MoeStudent(hidden_size=64, …))

Shapes: B rows, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from limbeck.plan.accounting import student_parameters
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import Student
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.model import StudentModel
from limbeck.students.norms import RMSNorm
from limbeck.students.pretrained import PretrainedStudent, vocabulary
from limbeck.students.pretrained_folder import save_pretrained
from limbeck.testing.objectives import ConformanceError

LENGTH = 24
"""Tokens of the longest row; fewer where positions depend on the length beyond `ntk_length`."""
VOCABULARY = 97
EXACT = 1e-9
"""How far apart float64 results of the same mathematics in another order may be, relative to the largest."""
FLOAT32 = 1e-4
"""The same of float32."""
ONE_ROUNDING = 2.0**-8 * 1.01
"""Of bfloat16, half a unit in the last of 8 bits, with a little for float32 before it."""
Builder = Callable[[Student, int], StudentModel]


@dataclass(frozen=True)
class StudentReport:
    """What the check measured, for the reader."""

    parameters: int
    architecture: str
    """The class of transformers that opens the saved student."""
    checks: tuple[str, ...]
    """Names of the properties that held."""


@dataclass(frozen=True)
class _Case:
    """A spec and how to build its student."""

    spec: Student
    make: Builder

    @property
    def vocabulary(self) -> int:
        return vocabulary(self.spec) if isinstance(self.spec, HuggingFaceStudent) else VOCABULARY

    @property
    def tolerance(self) -> float:
        return FLOAT32 if isinstance(self.spec, HuggingFaceStudent) else EXACT

    @property
    def length(self) -> int:
        if isinstance(self.spec, HuggingFaceStudent):
            return LENGTH
        return min(LENGTH, self.spec.layout.exact_length or LENGTH)

    def moved(self) -> StudentModel:
        """With every parameter and buffer moved, in float32."""
        student, draw = self.make(self.spec, 0), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
            for experts in student.experts() if isinstance(student, Decoder) else ():
                experts.router.bias.add_(0.1 * torch.randn(experts.router.bias.shape, generator=draw))
                experts.shared_share.fill_(0.7)
        return student.eval()

    def exact(self) -> StudentModel:
        """The same in float64, where no layer turns that into float32."""
        return self.moved() if isinstance(self.spec, HuggingFaceStudent) else self.moved().double()

    def tokens(self, *, rows: int = 2, seed: int = 2) -> Tensor:
        return torch.randint(self.vocabulary, (rows, self.length), generator=torch.Generator().manual_seed(seed))


Check = Callable[[_Case], None]


def check_student(spec: Student, *, make: Builder | None = None) -> StudentReport:
    """Raise `ConformanceError` if the student breaks a rule; otherwise report what was measured.

    `make` builds it from spec and seed with a vocabulary of `VOCABULARY`, where that isn't `limbeck.students.build.build`.
    """
    case = _Case(spec, make or _build)
    pretrained = isinstance(spec, HuggingFaceStudent)
    checks: dict[str, Check] = {
        "parameters": _check_parameters,
        "seed": _check_seed,
        "finite": _check_finite,
        "gradients": _check_gradients,
        "reading": _check_reading,
        "causal": _check_causal,
        "packed documents": _check_packed,
        **({} if pretrained else {"cache": _check_cache, "norms": _check_norms}),
    }
    for check in checks.values():
        check(case)
    architecture = _check_pretrained_folder(case) if pretrained else _check_folder(case)
    return StudentReport(_count(_settled(case)), architecture, (*checks, "folder"))


def _build(spec: Student, seed: int) -> StudentModel:
    return build(spec, vocab_size=vocabulary(spec) if isinstance(spec, HuggingFaceStudent) else VOCABULARY, seed=seed)


def _settled(case: _Case) -> StudentModel:
    student = case.make(case.spec, 0)
    student.settle()
    return student


def _check_parameters(case: _Case) -> None:
    charged = student_parameters(case.spec, vocab_size=case.vocabulary).total
    found = _count(_settled(case))
    _require(found == charged, "parameters", f"{found:,} where its spec is charged for {charged:,}")


def _check_seed(case: _Case) -> None:
    state = torch.get_rng_state()
    first, second, other = (case.make(case.spec, seed).state_dict() for seed in (5, 5, 6))
    _require(torch.equal(torch.get_rng_state(), state), "seed", "torch's own generator was drawn from")
    for name, weight in first.items():
        _require(torch.equal(weight, second[name]), "seed", f"{name} differs between two students of one seed")
    if isinstance(case.spec, HuggingFaceStudent) and case.spec.adapter is None:
        return  # nothing is drawn
    _require(any(not torch.equal(weight, other[name]) for name, weight in first.items()), "seed", "another seed gave the same")


def _check_finite(case: _Case) -> None:
    student = case.make(case.spec, 0)
    logits_BTV = student.logits(student(case.tokens()).hidden_BTD)
    loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), case.tokens(seed=3).flatten())
    loss.backward()
    _require(bool(logits_BTV.isfinite().all()), "finite", "logits are not, at the start")
    for name, parameter in student.named_parameters():
        good = parameter.grad is None or bool(parameter.grad.isfinite().all())
        _require(good, "finite", f"the gradient of {name} is not, at the start")


def _check_gradients(case: _Case) -> None:
    student = case.exact()
    reading = student(case.tokens())
    logits_BTV = student.logits(reading.hidden_BTD)
    loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), case.tokens(seed=3).flatten())
    (loss if reading.balance is None else loss + reading.balance).backward()
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        _require(reached, "gradients", f"none reaches {name}")


@torch.no_grad()
def _check_reading(case: _Case) -> None:
    student = case.moved().train()
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    first, second = (student(case.tokens()).hidden_BTD for _ in range(2))
    _require(torch.equal(first, second), "reading", "the same tokens twice gave two results")
    for name, weight in student.state_dict().items():
        _require(torch.equal(weight, before[name]), "reading", f"{name} changed")


@torch.no_grad()
def _check_causal(case: _Case) -> None:
    student, tokens_BT = case.exact(), case.tokens()
    middle = case.length // 2
    changed_BT = tokens_BT.clone()
    changed_BT[:, middle:] = (changed_BT[:, middle:] + 1) % case.vocabulary
    before, after = student(tokens_BT).hidden_BTD, student(changed_BT).hidden_BTD
    _same(after[:, :middle], before[:, :middle], "causal: what stands before a changed token", atol=case.tolerance)
    moved = float((after[:, middle] - before[:, middle]).abs().max())
    _require(moved > 1e-3, "causal", f"a changed token moved its own hidden state by {moved:.3g} alone")


@torch.no_grad()
def _check_packed(case: _Case) -> None:
    student, tokens_BT = case.exact(), case.tokens()
    cut = case.length // 3
    lengths = (cut, case.length - cut)
    positions_BT = torch.cat([torch.arange(each) for each in lengths])[None].expand_as(tokens_BT)
    segments_BT = torch.tensor([7] * lengths[0] + [2] * lengths[1])[None].expand_as(tokens_BT)
    packed = student(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT).hidden_BTD
    _same(packed[:, :cut], student(tokens_BT[:, :cut]).hidden_BTD, "packed documents: the first", atol=case.tolerance)
    _same(packed[:, cut:], student(tokens_BT[:, cut:]).hidden_BTD, "packed documents: the second", atol=case.tolerance)


@torch.no_grad()
def _check_cache(case: _Case) -> None:
    """Several tokens at once, then one by one, then several."""
    student, tokens_BT = case.exact(), case.tokens()
    assert isinstance(student, Decoder)
    cache, third = student.new_cache(), case.length // 3
    pieces = [third, *[1] * third, case.length - 2 * third]
    read = [student(piece_BT, cache=cache).hidden_BTD for piece_BT in tokens_BT.split(pieces, dim=1)]
    _same(torch.cat(read, 1), student(tokens_BT).hidden_BTD, "cache")


def _check_norms(case: _Case) -> None:
    """Every norm's output under autocast is the exact one of its input, rounded once, and gradients are float32."""
    student = case.moved()
    norms = {name: module for name, module in student.named_modules() if isinstance(module, RMSNorm)}
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, weight = inputs[0].detach().double(), norms[name].weight
            exact = x / (x.square().mean(-1, keepdim=True) + norms[name].eps).sqrt()
            exact = exact if weight is None else weight.detach().double() * exact
            found[name] = float(((output.detach() - exact).abs() / exact.abs().clamp(min=1e-30)).max())

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in norms.items()]
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = student.logits(student(case.tokens()).hidden_BTD)
    for hook in hooks:
        hook.remove()
    for name, error in found.items():
        _require(error <= ONE_ROUNDING, "norms", f"{name} is off by {error:.3g} of its value, more than one rounding")
    logits_BTV.float().square().mean().backward()
    for name, parameter in student.named_parameters():
        wide = parameter.grad is None or parameter.grad.dtype == parameter.dtype == torch.float32
        _require(wide, "norms", f"{name} or its gradient is not float32")


@torch.no_grad()
def _check_folder(case: _Case) -> str:
    student, tokens_BT = case.moved(), case.tokens()
    assert isinstance(student, Decoder) and not isinstance(case.spec, HuggingFaceStudent)
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "student"
        hf.save(student, spec=case.spec, folder=folder, max_positions=case.length)
        again, spec, vocab_size = hf.load(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    _require((spec, vocab_size) == (case.spec, VOCABULARY), "folder", f"the spec came back as {spec}")
    weights = again.state_dict()
    for name, weight in student.state_dict().items():
        _require(torch.equal(weight, weights[name]), "folder", f"{name} came back changed")
    expected = student.logits(student(tokens_BT).hidden_BTD)
    _same(model(tokens_BT).logits, expected, "folder: logits of transformers", atol=1e-5)
    return type(model).__name__


@torch.no_grad()
def _check_pretrained_folder(case: _Case) -> str:
    student, tokens_BT = case.moved(), case.tokens()
    assert isinstance(student, PretrainedStudent) and isinstance(case.spec, HuggingFaceStudent)
    expected = student.logits(student(tokens_BT).hidden_BTD)
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "student"
        save_pretrained(student, spec=case.spec, folder=folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    _same(model(tokens_BT).logits, expected, "folder: logits of transformers", atol=FLOAT32)
    return type(model).__name__


def _count(student: nn.Module) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def _same(found: Tensor, expected: Tensor, name: str, *, atol: float = EXACT) -> None:
    apart, allowed = float((found - expected).abs().max()), atol * (1 + float(expected.abs().max()))
    _require(apart <= allowed, name, f"{apart:.3g} apart, {allowed:.3g} allowed")


def _require(held: bool, name: str, found: str) -> None:
    if not held:
        raise ConformanceError(f"{name}: {found}")
