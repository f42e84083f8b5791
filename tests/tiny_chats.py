"""Chats small enough to read: tokenizers that know special tokens of ChatML or of harmony, templates, and files of chats."""

import json
from pathlib import Path
from typing import Any

from limbeck.data.tokenizers import Tokenizer, load_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.thinking %}{{ '<think>\\n' + message.thinking + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
HARMONY_TOKENS = ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>")


def chat_tokenizer(
    plain: Path, folder: Path, *, special: tuple[str, ...] = CHATML_TOKENS, template: str | None = CHATML
) -> Tokenizer:
    """The tokenizer in the folder `plain` with special tokens, of which the first begins and the second ends documents."""
    from transformers import AutoTokenizer

    backend = AutoTokenizer.from_pretrained(plain)
    backend.add_special_tokens({"additional_special_tokens": list(special)})
    backend.bos_token, backend.eos_token = special[:2]
    backend.chat_template = template
    backend.save_pretrained(folder)
    return load_tokenizer(str(folder))


def messages(*said: tuple[str, ...]) -> list[dict[str, str]]:
    """Of (role, content) or (role, content, thinking)."""
    return [dict(zip(("role", "content", "thinking"), each, strict=False)) for each in said]


def write_chats(path: Path, *records: dict[str, Any]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
