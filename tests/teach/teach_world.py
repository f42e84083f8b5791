"""A teacher that answers chats, prompts for it, and what it is asked."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_world import make_teacher, make_tokenizer, prose

from limbeck.spec.base import parse
from limbeck.spec.teach_text import TeachText

TEMPLATE = (
    "{% if reasoning_effort %}<s>{{ reasoning_effort }} {% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OVER = 302


def make_chatty(folder: Path, *, template: str = TEMPLATE) -> Path:
    """Its turns end in `<|over|>`, and it writes ASCII alone."""
    from transformers import AutoTokenizer

    make_teacher(folder, vocab_size=303)
    make_tokenizer(folder, vocab_size=300)
    backend = AutoTokenizer.from_pretrained(folder)
    backend.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|over|>"]})
    backend.chat_template = template
    backend.save_pretrained(folder)
    spoken = [token for token in range(2, 300) if backend.decode([token]).isascii() and backend.decode([token]).isprintable()]
    _let_write(folder, [*spoken, 1, OVER])
    return folder


def _let_write(folder: Path, spoken: list[int]) -> None:
    """Only these tokens: the first channel is the same at all positions, and speaks against all others."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = -1000.0
        model.lm_head.weight[spoken, 0] = 0
        model.lm_head.weight[OVER, 0] = 14.0  # it stops after a while
    model.save_pretrained(folder)


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": prose(seed, 1 + seed % 4)}]} for seed in range(count)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spec_of(teacher: Path, prompts: str, output: Path, **changes: Any) -> TeachText:
    """Six chats at once, everything kept that can be."""
    values = {
        "teacher": {"kind": "huggingface", "model": str(teacher), "dtype": "float32"},
        "prompts": prompts,
        "output": str(output),
        "max_new_tokens": 12,
        "truncated": "keep",
        "engine": {"kind": "transformers", "batch_size": 6},
        "device": "cpu",
    }
    return parse(TeachText, {**values, **changes}, source="test")
