"""Parameters, FLOPs and bytes of students and teachers, from their sizes alone.

FLOPs per token follow arXiv 2502.08606, appendix H (eqs. 57-59): C = 2 N + 2 context layers (H h) + 2 V D. Conventions:

- One multiply-add is 2 FLOPs. A training step costs three times the forward pass (backward = 2 forward); recomputed
  activations aren't counted. The optimizer isn't either.
- N counts the parameters outside the embeddings that a token touches; norm weights, biases, gains and scales are counted with
  them (under 0.1 % of it). Looking up an embedding is free; the output head costs 2 V D, tied or not.
- Attention is causal: over a document of `context` tokens a position sees context / 2 keys on average. Each costs 2 H (h + h')
  FLOPs in a layer, h channels in a query and h' in a value. In a sliding layer of window w < context the mean is
  w - w**2 / (2 context), the same integral. Both leave out half a key: the position itself counts as half seen.
- Beside an adapter (LoRA, DoRA) the model's own weights are frozen: 2 FLOPs less for each that a token touches, the head's with
  them, whose gradient nobody asks for. The adapter's parameters cost 6 each; what DoRA's norms cost a step is not counted.
- Softmax, norms, activations, sinks, exclusive attention, rotations and the loss aren't counted.
- `context` is the length that attention reaches over: with intra-document attention the documents' mean, not the row's.

A mixture of experts touches its router, its shared experts and the top-k of the routed ones. In multi-head latent attention
keys and values are projected out of their latent, as scoring a whole text does it. Students are counted from their layout
(`limbeck.plan.student_layout`); sizes of teachers, and of students that are pretrained models, are read from a Hugging Face
config.json (`limbeck.plan.config_sizes`) or from the catalogue (`limbeck.plan.teachers`). D hidden size, V vocabulary, H query
heads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limbeck.errors import SpecError, TeacherError
from limbeck.plan import student_layout
from limbeck.plan.config_sizes import final_norm, head_dims, is_tied, layers, size, windows
from limbeck.plan.pretrained import student_config, student_width
from limbeck.plan.saved_student import saved_student
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import Student

FLOPS_PER_MULTIPLY_ADD = 2
TRAINING_OVER_FORWARD = 3


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has."""

    total: int
    embedding: int
    """The input embedding, and the output head where it isn't tied to it; with them other tables that tokens look up."""
    non_embedding: int
    active: int
    """Those that one token touches, embeddings included; all of them in a dense model."""

    @property
    def active_non_embedding(self) -> int:
        """Those outside the embeddings that one token touches."""
        return self.active - self.embedding


def student_parameters(spec: Student, *, vocab_size: int) -> Parameters:
    """The parameters of the student that `spec` describes: those of the decoder built from it.

    Of a pretrained one those of its configuration, an adapter left out: it is merged in the end. `SpecError` where that is not
    on this machine, or of a type that cannot be counted.
    """
    if isinstance(spec, HuggingFaceStudent):
        with _of_student(spec):
            return teacher_parameters(student_config(spec))
    embedding = student_layout.embeddings(spec.layout, vocab_size=vocab_size)
    touched, untouched = student_layout.touched(spec.layout), student_layout.untouched(spec.layout)
    return Parameters(embedding + touched + untouched, embedding, touched + untouched, embedding + touched)


def student_flops_per_token(spec: Student, *, vocab_size: int, context: float) -> float:
    """Forward FLOPs per token, averaged over documents of `context` tokens. Errors as `student_parameters`."""
    if isinstance(spec, HuggingFaceStudent):
        with _of_student(spec):
            return teacher_flops_per_token(student_config(spec), context=context)
    layout = spec.layout
    keys = sum(
        2 * layer.attention.num_heads * layer.attention.head_dim * _mean_visible_keys(context, window=layer.attention.window)
        for layer in layout.layers
    )
    return FLOPS_PER_MULTIPLY_ADD * (student_layout.touched(layout) + vocab_size * layout.hidden_size + keys)


def training_flops_per_token(spec: Student, *, vocab_size: int, context: float, adapter_parameters: int = 0) -> float:
    """Forward and backward FLOPs per token: three times `student_flops_per_token`, but for what is frozen beside an adapter.

    How many parameters an adapter has is not in the model's configuration; 0 leaves its own products out.
    """
    everything = TRAINING_OVER_FORWARD * student_flops_per_token(spec, vocab_size=vocab_size, context=context)
    if not isinstance(spec, HuggingFaceStudent) or spec.adapter is None:
        return everything
    head = vocab_size * student_width(spec)
    frozen = student_parameters(spec, vocab_size=vocab_size).active_non_embedding + head
    return everything + FLOPS_PER_MULTIPLY_ADD * (TRAINING_OVER_FORWARD * adapter_parameters - frozen)


@contextmanager
def _of_student(spec: HuggingFaceStudent) -> Iterator[None]:
    """What is said of a teacher's configuration is said of a student's."""
    try:
        yield
    except TeacherError as error:
        reason = str(error).replace("teacher's ", "its ", 1)
        raise SpecError(f"student.model={spec.model} cannot be counted: {reason}") from error


def teacher_parameters(config: Mapping[str, Any]) -> Parameters:
    """The parameters of the model of a config.json, or of an entry of the catalogue (which says `total` and `active`).

    Known types: llama, mistral, olmo, olmo2, olmo3, qwen2, qwen3, gemma, gemma2, gemma3_text; with experts mixtral, olmoe,
    qwen2_moe, qwen3_moe, glm4_moe, gpt_oss; with latent attention and experts deepseek_v2, deepseek_v3, glm4_moe_lite; limbeck,
    a student saved as itself. Raises `TeacherError` for others without `total` and `active`, and where a size is missing.
    """
    if student := saved_student(config):
        return student_parameters(student, vocab_size=size(config, "vocab_size"))
    matrix = size(config, "vocab_size") * size(config, "hidden_size")
    embedding = matrix if is_tied(config) else 2 * matrix
    if "total" in config and "active" in config:
        return Parameters(config["total"], embedding, config["total"] - embedding, config["active"])
    each = layers(config)
    touched = sum(layer.active for layer in each) + final_norm(config)
    outside = sum(layer.common + layer.routed for layer in each) + final_norm(config)
    return Parameters(embedding + outside, embedding, outside, embedding + touched)


def teacher_flops_per_token(config: Mapping[str, Any], *, context: float) -> float:
    """Forward FLOPs per token of a config.json or an entry of the catalogue, averaged over documents of `context` tokens.

    Errors as `teacher_parameters`.
    """
    if student := saved_student(config):
        return student_flops_per_token(student, vocab_size=size(config, "vocab_size"), context=context)
    head = size(config, "vocab_size") * size(config, "hidden_size")
    channels = size(config, "num_attention_heads") * sum(head_dims(config))
    keys = sum(_mean_visible_keys(context, window=window) for window in windows(config))
    return FLOPS_PER_MULTIPLY_ADD * (teacher_parameters(config).active_non_embedding + head + channels * keys)


def _mean_visible_keys(context: float, *, window: int | None) -> float:
    if window is None or window >= context:
        return context / 2
    return window - window**2 / (2 * context)
