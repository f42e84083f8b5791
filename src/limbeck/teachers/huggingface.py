"""A Hugging Face causal language model as a teacher.

The body and the head run apart, because the head's output, [positions, vocabulary], is what fills memory: it is made for a few
hundred positions at a time. Legend: B windows, T positions, E width, V vocabulary.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.compute import pick_dtype
from limbeck.errors import TeacherError
from limbeck.spec.quantisation import BitsAndBytesQuantisation, Quantisation, TorchAOQuantisation
from limbeck.spec.teacher import Teacher as TeacherSpec
from limbeck.students.causal_lm import head_of, transformers_quiet
from limbeck.teachers.backends import check_package, loading_arguments, package_version, quantised_matrices, without_weights
from limbeck.teachers.files import TeacherFiles, locate, weights_digest
from limbeck.teachers.quantise import QuantisedMatrix, check_quantisable, quantise, quantised_share, summary, weights_bytes


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher. `head_VE` is None where its logits are more than a product with one matrix (soft caps, biases)."""

    model: Any
    files: TeacherFiles
    vocab_size: int
    head_VE: Tensor | None
    dtype: torch.dtype
    device: torch.device
    weights: str
    """SHA-256 over the weight files."""
    quantised: tuple[QuantisedMatrix, ...] = ()
    """What was rounded when it was loaded; what its file had been quantised with is `files.quantisation`'s to say."""
    backend: str | None = None
    """The package that quantised it, and its version."""

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, E], after the final norm. Pad on the right: attention is causal, so padding is not seen."""
        return self._body(input_ids=tokens_BT.to(self.device), use_cache=False).last_hidden_state

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] all at once, for teachers without a plain head."""
        return self.model(input_ids=tokens_BT.to(self.device), use_cache=False).logits

    @property
    def _body(self) -> Any:
        return self.model.base_model

    @property
    def identity(self) -> dict[str, str | None]:
        """What makes this teacher's words its own: part of every store's identity."""
        known = {
            "name": self.files.name,
            "weights": self.weights,
            "revision": self.files.revision,
            "quantisation": self.files.quantisation,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if not self.quantised:
            return known
        by_package = {"quantised_by": self.backend} if self.backend is not None else {}
        return {**known, "quantised": summary(self.quantised), **by_package}

    @property
    def weights_bytes(self) -> float:
        """Of all parameters; where quantisation is simulated, what they would take if they were packed."""
        return weights_bytes(self.model, self.quantised)

    @property
    def quantised_share(self) -> float:
        """Of all parameters."""
        return quantised_share(self.model, self.quantised)


def load_teacher(spec: TeacherSpec, *, device: torch.device) -> Teacher:
    """Load a teacher for inference, quantised where its spec says so; `TeacherError` says what cannot be found or read."""
    files = locate(spec)
    dtype = pick_dtype(spec.dtype, device)
    model = _loaded(files, spec.quantisation, dtype=dtype, device=device)
    files = locate(spec)  # again: a config.json that came with the weights says what they had been quantised with
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and spec.context.window > longest:
        raise TeacherError(
            f"teacher.context.window={spec.context.window} is more than {files.name} can read: set it to {longest} or less"
        )
    quantised, backend = _quantised(model, spec.quantisation)
    head = head_of(model)
    head_VE = head.weight_VE if head is not None and head.is_plain else None
    vocab_size = len(head_VE) if head_VE is not None else int(model.config.get_text_config().vocab_size)
    weights = weights_digest(files) or "unknown"
    return Teacher(model, files, vocab_size, head_VE, dtype, device, weights, quantised, backend)


def check_teacher(spec: TeacherSpec, *, device: torch.device) -> None:
    """What can be wrong with a teacher's quantisation, as far as its config tells: `TeacherError` before weights are read."""
    match spec.quantisation:
        case None:
            return
        case BitsAndBytesQuantisation() | TorchAOQuantisation() as packaged:
            check_package(packaged, dtype=pick_dtype(spec.dtype, device), device=device)
        case simulated:
            files = locate(spec)
            with _in_one_line(files):
                model = without_weights(files)
            check_quantisable(model, simulated)


def _quantised(model: Any, scheme: Quantisation | None) -> tuple[tuple[QuantisedMatrix, ...], str | None]:
    """What is quantised in the model, rounding it here where that is simulated; and the package that did it otherwise."""
    match scheme:
        case None:
            return (), None
        case BitsAndBytesQuantisation() | TorchAOQuantisation():
            return quantised_matrices(model, scheme), package_version(scheme)
        case simulated:
            return quantise(model, simulated), None


def _loaded(files: TeacherFiles, scheme: Quantisation | None, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The model on its device, ready for inference; a package's scheme is applied on the way."""
    from transformers import AutoModelForCausalLM

    import limbeck.students.registered  # noqa: F401 (so that transformers knows our own folders)

    packaged = scheme if isinstance(scheme, BitsAndBytesQuantisation | TorchAOQuantisation) else None
    with _in_one_line(files):
        more = loading_arguments(packaged, files, dtype=dtype, device=device) if packaged is not None else {}
        model = AutoModelForCausalLM.from_pretrained(
            files.model,
            revision=files.hub_revision,
            dtype=dtype,
            trust_remote_code=files.trust_remote_code,
            **more,
        )
    model.requires_grad_(False).eval()
    return model if packaged is not None else model.to(device)  # a packaged one is there, and may not be moved


def _in_one_line(files: TeacherFiles) -> AbstractContextManager[None]:
    return transformers_quiet(f"teacher {files.name} cannot be loaded from {files.model}", error=TeacherError)
