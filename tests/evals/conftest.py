"""The tiny teacher under evaluation."""

from pathlib import Path

import pytest
from tiny_world import make_teacher, make_tokenizer

from limbeck.evals.subject import EvalModel, open_model
from limbeck.spec.data import FileTexts


@pytest.fixture
def tiny(teacher_folder: Path, texts_folder: Path) -> EvalModel:
    heldout = FileTexts(paths=(f"{texts_folder}/heldout/*.txt",))
    return open_model("tiny", str(teacher_folder), heldout=heldout, teacher=None, dtype="float32", device="cpu")


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|over|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chatty(tmp_path: Path) -> EvalModel:
    """A model with a chat template, whose turns end in `<|over|>` (id 302)."""
    from transformers import AutoTokenizer

    folder = make_teacher(tmp_path / "chatty", vocab_size=303)
    make_tokenizer(folder, vocab_size=300)
    backend = AutoTokenizer.from_pretrained(folder)
    backend.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|over|>"]})
    backend.chat_template = TEMPLATE
    backend.save_pretrained(folder)
    return open_model("chatty", str(folder), heldout=None, teacher=None, dtype="float32", device="cpu")
