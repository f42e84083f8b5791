"""A student's folder as one GGUF file, for llama.cpp and what is built on it.

llama.cpp's `olmo2` is OLMo-3 too (windows where the file names one, and YaRN in full layers alone), `qwen3` and `llama` are
those classes without windows. Tensor names and keys are those of llama.cpp's conversion (`convert_hf_to_gguf.py`, and
`src/models/{olmo2,qwen3,llama}.cpp` that read them). Norms are float32. `llama` alone turns neighbouring channels where
transformers turns halves: rows of its queries and keys are reordered.

How often a full layer comes is written as a period. Releases of llama.cpp from before it read that key take 4, the default of
OLMo-3.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf as format
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from limbeck.errors import SpecError
from limbeck.paths import require_writable
from limbeck.spec.layout import Layout, MlpLayout
from limbeck.students import hf
from limbeck.students.exported import Native, foreign_part, layer_types, native, rope, window
from limbeck.students.gguf_tokenizer import write_tokenizer

GGUFDtype = Literal["float32", "float16", "bfloat16"]
_ARCHITECTURES = {"Olmo3ForCausalLM": "olmo2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
_MATRICES: dict[GGUFDtype, tuple[format.GGMLQuantizationType, format.LlamaFileType]] = {
    "float32": (format.GGMLQuantizationType.F32, format.LlamaFileType.ALL_F32),
    "float16": (format.GGMLQuantizationType.F16, format.LlamaFileType.MOSTLY_F16),
    "bfloat16": (format.GGMLQuantizationType.BF16, format.LlamaFileType.MOSTLY_BF16),
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES_AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
"""Of norms after branches."""
_OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def export(folder: Path, *, path: Path, dtype: GGUFDtype = "float16") -> None:
    """Write the student and the tokenizer of a folder to the file `path`, replacing what is there; matrices in `dtype`.

    `SpecError` where llama.cpp has no such model or no such tokenizer, naming the part.
    """
    student, spec, _ = hf.load(folder)
    layout, config = spec.layout, hf.read_config(folder)
    found = _expressible(layout, folder)
    require_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = format.GGUFWriter(None, _ARCHITECTURES[found.architecture])
    writer.add_name(folder.parent.name if folder.name == "student" else folder.name)
    writer.add_file_type(_MATRICES[dtype][1])
    _write_sizes(writer, layout, config)
    _write_positions(writer, layout)
    write_tokenizer(writer, folder, config=config)
    for name, tensor in _tensors(student.state_dict(), layout, found):
        _write_tensor(writer, name, tensor, dtype=dtype)
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _expressible(layout: Layout, folder: Path) -> Native:
    found, attention = native(layout), layout.layers[0].attention
    part = foreign_part(layout)
    yarns = [rope(layout, kind).yarn for kind in set(layer_types(layout))] if found is not None else []
    if part is None and any(yarn is not None and not yarn.truncate for yarn in yarns):
        part = "YaRN with truncate=false"
    if part is None and layout.norms == "before" and window(layout) is not None:
        part = "sliding windows with norms before branches"
    if part is None and layout.norms == "after" and attention.num_heads * attention.head_dim != layout.hidden_size:
        part = f"num_heads * head_dim = {attention.num_heads * attention.head_dim} other than hidden_size={layout.hidden_size}"
    if part is not None or found is None:
        raise SpecError(f"{folder}: GGUF has no model with {part}: export it with --format hf")
    return found


def _write_sizes(writer: format.GGUFWriter, layout: Layout, config: PreTrainedConfig) -> None:
    attention, mlp = layout.layers[0].attention, layout.layers[0].mlp
    assert isinstance(mlp, MlpLayout)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(layout.hidden_size)
    writer.add_block_count(len(layout.layers))
    writer.add_feed_forward_length(mlp.size)
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_layer_norm_rms_eps(layout.norm_eps)


def _write_positions(writer: format.GGUFWriter, layout: Layout) -> None:
    kinds = layer_types(layout)
    found = rope(layout, "full_attention" if "full_attention" in kinds else "sliding_attention")
    writer.add_rope_dimension_count(layout.layers[0].attention.head_dim)
    writer.add_rope_freq_base(found.theta)
    slides = window(layout)
    if slides is not None:
        writer.add_sliding_window(slides)
        writer.add_sliding_window_pattern(_period(kinds))
    if found.yarn is not None:
        writer.add_rope_scaling_type(format.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(found.yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(found.yarn.original_length)
        writer.add_rope_scaling_yarn_beta_fast(found.yarn.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(found.yarn.beta_slow)


def _period(kinds: list[str]) -> int:
    """One layer in so many is full; more than there are layers where none is."""
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    period = full[0] + 1 if full else len(kinds) + 1
    if full != list(range(period - 1, len(kinds), period)):
        raise SpecError(f"GGUF has no model with layers {kinds}: one in every so many must attend fully")
    return period


def _tensors(weights: dict[str, Tensor], layout: Layout, found: Native) -> Iterator[tuple[str, Tensor]]:
    attention = layout.layers[0].attention
    inner = {**_NAMES, **(_NAMES_AFTER if layout.norms == "after" else {})}
    if found.architecture == "Olmo3ForCausalLM" and layout.tied_embeddings:
        yield "output.weight", weights["model.embed_tokens.weight"]  # which llama.cpp's olmo2 wants in any case
    for name, tensor in weights.items():
        place = name.removesuffix(".weight")
        if place in _OUTER_NAMES:
            yield f"{_OUTER_NAMES[place]}.weight", tensor
            continue
        _, _, layer, place = place.split(".", 3)
        if found.architecture == "LlamaForCausalLM" and place in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = attention.num_heads if place == "self_attn.q_proj" else attention.num_kv_heads
            tensor = _interleaved(tensor, heads=heads)
        yield f"blk.{layer}.{inner[place]}.weight", tensor


def _interleaved(weight_CD: Tensor, *, heads: int) -> Tensor:
    """Channels i and i + h/2 of every head become neighbours (`LlamaModel.permute` of convert_hf_to_gguf.py)."""
    return weight_CD.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight_CD.shape)


def _write_tensor(writer: format.GGUFWriter, name: str, tensor: Tensor, *, dtype: GGUFDtype) -> None:
    values: np.ndarray[Any, Any] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    kind = _MATRICES[dtype][0] if tensor.ndim > 1 else format.GGMLQuantizationType.F32
    writer.add_tensor(name, format.quants.quantize(values, kind), raw_dtype=kind)
