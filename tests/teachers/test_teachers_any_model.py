"""Teachers of other architectures than the usual one, from the store to the summary: GPT-2, a mixture of experts, a nested
config, and a teacher with more logits than its tokenizer has ids.

What is expected is computed from transformers' models alone: parameters by counting tensors, the KL by softmaxes in float64.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import make_teacher, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train.setup import open_setup
from limbeck.train.train import train

WINDOW, OVERLAP, LENGTH, VOCAB = 48, 16, 32, 300
STEPS, TOKENS_PER_STEP = 8, 4 * 32


def recipe_of(values: dict[str, Any], teacher: Path, **changes: Any) -> Recipe:
    return parse(Recipe, {**values, "teacher": {**values["teacher"], "model": str(teacher)}, **changes}, source="test")


def summary_of(recipe: Recipe) -> dict[str, Any]:
    """Of a run, stores first where it reads one."""
    if recipe.uses_store:
        write_recipe_stores([recipe])
    summary = open_run(train(recipe)).summary
    assert summary is not None
    return summary


def encoded(teacher: Path, texts: Path, part: str) -> list[list[int]]:
    """Start, text and end of every document of the tiny world."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = [tokenizer(path.read_text(encoding="utf-8"))["input_ids"] for path in sorted((texts / part).glob("*.txt"))]
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in found]


def share_read(documents: list[list[int]]) -> float:
    """Tokens that the teacher reads for the rows of the run: a window past the first reads `OVERLAP` tokens again."""
    rows = [len(document) - 1 for document in documents]
    read = sum(n + OVERLAP * max(0, math.ceil((n - WINDOW) / (WINDOW - OVERLAP))) for n in rows)
    return min(STEPS * TOKENS_PER_STEP, sum(rows)) * read / sum(rows)


def attention_flops(documents: list[list[int]], *, layers: int, channels: int) -> float:
    """Of one token, over documents as long as a token's is on average; no window is longer than `WINDOW`."""
    context = sum(len(ids) * min(len(ids), WINDOW) for ids in documents) / sum(map(len, documents))
    return 2 * context * layers * channels


@torch.no_grad()
def log_probs(folder: Path, document: list[int], *, window: int, overlap: int) -> Tensor:
    """float64 [rows, V], each row from the last window that begins early enough to give it context."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    step, rows = window - overlap, []
    for first in [0, *range(window, len(document) - 1, step)]:
        start = first - overlap if first else 0
        read = document[start : min(start + window, len(document) - 1)]
        rows.append(model(input_ids=torch.tensor([read])).logits[0, first - start :].double().log_softmax(-1))
    return torch.cat(rows)


def expected_kl(student: Path, teacher: Path, texts: Path) -> float:
    """The mean KL(teacher || student) over the held-out rows, each model reading as the recipe says."""
    kls = []
    for document in encoded(teacher, texts, "heldout"):
        log_p = log_probs(teacher, document, window=WINDOW, overlap=OVERLAP)
        log_q = log_probs(student, document, window=LENGTH, overlap=0)
        assert len(log_p) == len(log_q) == len(document) - 1
        kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return float(torch.cat(kls).mean())


def save(model: Any, folder: Path) -> int:
    """Write a teacher's folder; returns how many parameters it has, shared ones once."""
    make_tokenizer(folder, vocab_size=VOCAB)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


def gemma3_that_sees() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 16,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,  # untrained, a tied head repeats what is read, which the preflight refuses
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    ids = {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297, "mm_tokens_per_image": 4}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    )
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)  # untied heads start near zero: such a teacher would be flat
    return model


@pytest.mark.parametrize("make", [gpt2, gemma3_that_sees])
def test_a_teacher_of_unknown_sizes_costs_two_flops_a_parameter(
    make: Any, values: dict[str, Any], texts_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    parameters = save(make(), tmp_path / "teacher")
    recipe = recipe_of(values, tmp_path / "teacher", evaluation={"every": 1.0})
    summary = summary_of(recipe)
    documents = encoded(tmp_path / "teacher", texts_folder, "train")
    assert summary["teacher_flops_per_token"] == 2 * parameters
    assert summary["teacher_flops"] == pytest.approx(2 * parameters * share_read(documents), rel=1e-12)
    kl = expected_kl(Path(recipe.run_path, "student"), tmp_path / "teacher", texts_folder)
    assert summary["kl_to_teacher_nats"] == pytest.approx(kl, rel=1e-4)
    assert 0.1 < kl < 100
    losses = [record["forward_kl"] for record in open_run(recipe.run_path).events("train")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("spelling", ["num_experts", "num_local_experts"])
def test_a_mixture_of_experts_costs_the_experts_that_a_token_visits(
    values: dict[str, Any], texts_folder: Path, tmp_path: Path, spelling: str
) -> None:
    """Qwen publishes `num_experts`; transformers 5 writes `num_local_experts` when it saves the same model."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=1,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config)
    save(model, tmp_path / "teacher")
    written = tmp_path / "teacher" / "config.json"
    described = {
        key: value for key, value in json.loads(written.read_text("utf-8")).items() if value != 4 or "expert" not in key
    }
    written.write_text(json.dumps({**described, spelling: 4}), encoding="utf-8")
    recipe = recipe_of(values, tmp_path / "teacher", evaluation={"every": 1.0})
    summary = summary_of(recipe)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    in_experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert in_experts == 2 * 4 * 3 * 32 * 16
    read_by_a_token = sum(sizes.values()) - sizes["model.embed_tokens.weight"] - in_experts * 3 / 4
    documents = encoded(tmp_path / "teacher", texts_folder, "train")
    per_token = 2 * read_by_a_token + attention_flops(documents, layers=2, channels=4 * 12)
    assert summary["teacher_flops"] == pytest.approx(per_token * share_read(documents), rel=1e-12)
    kl = expected_kl(Path(recipe.run_path, "student"), tmp_path / "teacher", texts_folder)
    assert summary["kl_to_teacher_nats"] == pytest.approx(kl, rel=1e-4)


def test_a_padded_vocabulary_is_the_students_in_every_arm(values: dict[str, Any], texts_folder: Path, tmp_path: Path) -> None:
    """Twenty logits that no token has: the teacher gives them mass, so the student needs them, and so does the control."""
    teacher = make_teacher(tmp_path / "teacher", vocab_size=VOCAB + 20)
    make_tokenizer(teacher, vocab_size=VOCAB)
    assert len(AutoTokenizer.from_pretrained(teacher)) == VOCAB
    arms = {
        "kd": recipe_of(values, teacher, name="kd"),
        "live": recipe_of(values, teacher, name="live", signal={"kind": "dense"}),
        "control": recipe_of(values, teacher, name="control", objective={"kind": "ce"}),
        "alone": recipe_of(
            values, teacher, name="alone", objective={"kind": "ce"}, signal=None, evaluation={"kl_to_teacher": False}
        ),
    }
    write_recipe_stores([arms["kd"]])
    weights = {arm: open_setup(recipe).student.state_dict() for arm, recipe in arms.items()}
    assert weights["kd"]["lm_head.weight"].shape == weights["kd"]["model.embed_tokens.weight"].shape == (VOCAB + 20, 16)
    for arm in ("live", "control", "alone"):
        assert weights[arm].keys() == weights["kd"].keys()
        assert all(torch.equal(tensor, weights["kd"][name]) for name, tensor in weights[arm].items()), arm
    for arm in ("kd", "control"):
        summary = summary_of(arms[arm])
        kl = expected_kl(Path(arms[arm].run_path, "student"), teacher, texts_folder)
        assert summary["kl_to_teacher_nats"] == pytest.approx(kl, rel=1e-4)
    assert AutoModelForCausalLM.from_pretrained(Path(arms["kd"].run_path, "student")).config.vocab_size == VOCAB + 20
