"""Training on chats: what counts is what a float64 formula over each chat alone says, however chats are packed and padded."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chats import CHATML, chat_tokenizer, messages, write_chats
from tiny_world import make_other_tokenizer, make_teacher, prose
from torch import Tensor
from transformers import AutoModelForCausalLM

from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import StoreError
from limbeck.evals.of_runs import evaluate_run
from limbeck.optim.build import build_optimizer
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train.loop import batch_loss, optimizer_step
from limbeck.train.setup import Setup, open_setup
from limbeck.train.train import train

MOE: dict[str, Any] = {
    "kind": "moe",
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_size": 16,
    "expert_groups": 1,
    "groups_per_token": 1,
    "sliding_window": 8,
}


@pytest.fixture(scope="module")
def chat_teacher(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher of 310 logits whose tokenizer knows ChatML's tokens."""
    folder = make_teacher(tmp_path_factory.mktemp("chat-teacher"), vocab_size=310)
    chat_tokenizer(teacher_folder, folder)
    return folder


@pytest.fixture
def chats(values: dict[str, Any], chat_teacher: Path, tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe over chats, of which it learns the assistant's; whole, in sequences of 192."""
    for part, number in (("train", 14), ("heldout", 3)):
        records = []
        for index in range(number):
            said = [prose(1000 * len(part) + 10 * index + turn, 1 + (7 * index + 5 * turn) % 6) for turn in range(4)]
            records.append({"messages": messages(*zip(("user", "assistant") * 2, said, strict=True))})
        write_chats(tmp_path / f"{part}.jsonl", *records)
    values["teacher"] |= {"model": str(chat_teacher), "context": {"window": 200, "overlap": 16}}
    values["student"]["init_std"] = 0.3
    values["data"] = {
        "train": {"kind": "chats", "paths": [f"{tmp_path}/train.jsonl"]},
        "heldout": {"kind": "chats", "paths": [f"{tmp_path}/heldout.jsonl"]},
        "loss_on": ["assistant"],
        "sequence_length": 192,
        "packing": "whole",
    }
    values["batch"] = {"sequences": 4, "micro_sequences": 2}
    return values


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


def text_of_assistant(tokens: list[int], tokenizer: Any) -> list[bool]:
    """By reading: whether each token is what an assistant says or the token after that."""
    found, speaks, header = [], False, 0
    for place, token in enumerate(tokens):
        text = tokenizer.decode([token])
        if text == "<|im_start|>":
            role, header = "", place
        found.append(speaks)
        if speaks and text == "<|im_end|>":
            speaks = False
        if not speaks and text == "\n" and place > header:
            role = tokenizer.decode(tokens[header + 1 : place])
            speaks, header = role == "assistant", len(tokens)
    return found


@torch.no_grad()
def nats_by_hand(setup: Setup, document: np.ndarray) -> tuple[Tensor, Tensor]:
    """float64: of each target that counts its negative log-likelihood, and the student's log-probs there; the chat alone."""
    tokens = torch.from_numpy(document.astype(np.int64))
    student = setup.student.double()
    log_probs = student.logits(student(tokens[None, :-1]).hidden_BTD[0]).log_softmax(-1)
    counts = torch.tensor(text_of_assistant(tokens.tolist(), setup.texts.tokenizer.backend))[1:]
    nats = -log_probs.gather(1, tokens[1:, None])[:, 0]
    setup.student.float()
    return nats[counts], log_probs[counts]


@pytest.mark.parametrize("student", ["olmo3", "moe"])
@torch.no_grad()
def test_the_loss_is_the_mean_over_what_assistants_say(chats: dict[str, Any], student: str) -> None:
    """Padding, other chats of a row and what users say have no part in it; the micro-batches' losses add up to it."""
    more = {"student": {**MOE, "init_std": 0.3}} if student == "moe" else {}
    setup = open_setup(recipe_of(chats, objective={"kind": "ce"}, teacher=None, signal=None, **tokenizer_of(chats), **more))
    batches = setup.loader.step(0)
    assert sum(batch.padding for batch in batches) > 0
    chosen = [piece.document for batch in batches for piece in batch.pieces]
    expected = torch.cat([nats_by_hand(setup, setup.texts.train.document(index))[0] for index in chosen])
    counted = sum(batch.counted for batch in batches)
    assert counted == len(expected)
    found = [batch_loss(setup, batch, tokens=counted)[0] for batch in batches]
    assert sum(float(each.per_term["ce"]) for each in found) == pytest.approx(float(expected.mean()), rel=1e-5)
    for batch in batches:
        assert setup.read(batch).hidden_BTD.isfinite().all()
        assert batch.segments_BT is not None and batch.mask_BT is not None
        assert not batch.mask_BT[batch.segments_BT < 0].any()
        assert int((batch.segments_BT < 0).sum()) == batch.padding


def tokenizer_of(chats: dict[str, Any]) -> dict[str, Any]:
    """For a recipe without a teacher."""
    return {"data": {**chats["data"], "tokenizer": chats["teacher"]["model"]}}


@pytest.mark.parametrize("signal", [{"kind": "dense"}, {"kind": "topk", "k": 310}])
def test_the_teachers_rows_are_those_of_its_positions(
    chats: dict[str, Any], chat_teacher: Path, signal: dict[str, Any]
) -> None:
    """KL by hand from the teacher's own logits on each chat alone; live, and from a store (float16 within 2^-11)."""
    recipe = recipe_of(chats, signal=signal)
    if signal["kind"] == "topk":
        write_recipe_stores([recipe])
    setup = open_setup(recipe)
    teacher = AutoModelForCausalLM.from_pretrained(chat_teacher, dtype=torch.float64)
    batches = setup.loader.step(1)
    kl = []
    with torch.no_grad():
        for document in (setup.texts.train.document(piece.document) for batch in batches for piece in batch.pieces):
            counts = text_of_assistant(document.tolist(), setup.texts.tokenizer.backend)[1:]
            tokens = torch.from_numpy(document.astype(np.int64))[None, :-1]
            log_p = teacher(tokens).logits[0].log_softmax(-1)[torch.tensor(counts)]
            log_q = nats_by_hand(setup, document)[1]
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        loss = sum(float(batch_loss(setup, batch, tokens=sum(b.counted for b in batches))[0].loss) for batch in batches)
    assert loss == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4 if signal["kind"] == "dense" else 5e-3)


def test_a_step_is_the_mean_over_its_own_targets_and_budgets_count_them(chats: dict[str, Any]) -> None:
    recipe = recipe_of(chats, objective={"kind": "ce"}, teacher=None, signal=None, **tokenizer_of(chats))
    setup = open_setup(recipe)
    counted = [sum(batch.counted for batch in setup.loader.step(step)) for step in range(8)]
    assert len(set(counted)) > 1
    hand = [nats_by_hand(setup, setup.texts.train.document(p.document))[0] for b in setup.loader.step(2) for p in b.pieces]
    optimizer = build_optimizer(recipe.optimizer, setup.trained, dtype=setup.dtype)
    assert optimizer_step(setup, optimizer, setup.loader.step(2))["loss_nats"] == pytest.approx(
        float(torch.cat(hand).mean()), rel=1e-5
    )
    run = open_run(train(recipe))
    read = sum(batch.read for step in range(8) for batch in setup.loader.step(step))
    assert run.summary is not None
    assert run.summary["tokens"] == sum(counted)
    assert run.summary["student_flops"] == pytest.approx(setup.student_costs.training_flops * read)
    empty = setup.loader.stream.padding_share
    assert run.summary["padding_share"] == json.loads((run.path / "preflight.json").read_text())["padding_share"] == empty > 0
    mean = sum(batch.counted for step in range(100) for batch in setup.loader.step(step)) / 100
    assert setup.step_costs.tokens == pytest.approx(mean, rel=0.05)


def test_bits_per_byte_are_of_what_assistants_say(chats: dict[str, Any], chat_teacher: Path) -> None:
    """Of the saved student and of its teacher, by transformers on each held-out chat; with `limbeck eval` as at the end."""
    recipe = recipe_of(chats, signal={"kind": "dense"}, budget={"kind": "steps", "amount": 2})
    setup = open_setup(recipe)
    run = open_run(train(recipe))
    tokenizer = load_tokenizer(str(run.path / "student")).backend
    assert tokenizer.chat_template == CHATML
    said = [json.loads(line)["messages"] for line in Path(chats["data"]["heldout"]["paths"][0]).read_text().splitlines()]
    num_bytes = sum(len(m["content"].encode()) for each in said for m in each if m["role"] == "assistant")
    found, kls = {}, []
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (run.path / "student", chat_teacher)
    )
    for name, model in (("student", student), ("teacher", teacher)):
        nats = 0.0
        for index in range(len(setup.texts.heldout)):
            tokens = torch.from_numpy(setup.texts.heldout.document(index).astype(np.int64))
            with torch.no_grad():
                log_probs = model(tokens[None, :-1]).logits[0].double().log_softmax(-1)
            counts = torch.tensor(text_of_assistant(tokens.tolist(), tokenizer))[1:]
            ends = tokens[1:] == tokenizer.eos_token_id  # it has no bytes
            nats -= float(log_probs.gather(1, tokens[1:, None])[counts & ~ends].sum())
            if name == "student":
                with torch.no_grad():
                    log_p = teacher(tokens[None, :-1]).logits[0].double().log_softmax(-1)
                kls.append((log_p.exp() * (log_p - log_probs)).sum(-1)[counts])
        found[name] = nats / math.log(2) / num_bytes
    assert run.summary is not None
    assert run.summary["heldout_bytes"] == num_bytes
    assert run.summary["bits_per_byte"] == pytest.approx(found["student"], rel=1e-4)
    assert run.summary["kl_to_teacher_nats"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    assert setup.reference is not None
    assert setup.reference.bits_per_byte == pytest.approx(found["teacher"], rel=1e-4)
    again = evaluate_run(run.path, {"bits_per_byte": BitsPerByte(window=192)})
    assert again["bits_per_byte"].metrics["bits_per_byte"].value == pytest.approx(found["student"], rel=1e-4)


def test_a_mixture_of_chats_and_prose_trains(chats: dict[str, Any], texts_folder: Path) -> None:
    """A MoE on whole documents of two parts, with rows from one store; documents that are too long are left out and counted."""
    parts = {
        "prose": {"share": 0.25, "texts": {"kind": "files", "paths": [f"{texts_folder}/train/*.txt"]}},
        "chats": {"share": 0.75, "texts": chats["data"]["train"]},
    }
    values = {**chats, "student": MOE, "data": {**chats["data"], "train": {"kind": "mixture", "parts": parts}}}
    recipe = recipe_of(values)
    write_recipe_stores([recipe])
    setup = open_setup(recipe)
    prose_part = {int(number) for number in setup.texts.train.documents_of_parts[0]}
    long = sum(int(length) > 193 for length in setup.texts.train.lengths)
    assert setup.loader.stream.left_out == long > 0
    for step in range(3):
        sequences = [setup.loader.stream.sequence(4 * step + place) for place in range(4)]
        assert sum(sequence[0].document in prose_part for sequence in sequences) == 1
    run = open_run(train(recipe))
    assert run.summary is not None
    assert run.summary["documents_left_out"] == long
    assert [found["traces"]["none"]["chats"] for found in run.summary["chats"]["train"]] == [14]
    assert math.isfinite(run.summary["bits_per_byte"])


@pytest.mark.parametrize("between", [("+ '\\n' +", "+ '\\t' +"), ("+ '\\n' +", "+ ' \\n' +")], ids=["as long", "longer"])
def test_a_store_of_another_template_is_refused_before_the_first_step(
    between: tuple[str, str], chats: dict[str, Any], tmp_path: Path
) -> None:
    """Chats are named by what is said in them, whatever a template writes around it."""
    write_recipe_stores([recipe_of(chats)])
    open_setup(recipe_of(chats))
    template = tmp_path / "other.jinja"
    template.write_text(CHATML.replace(*between), encoding="utf-8")
    assert template.read_text(encoding="utf-8") != CHATML
    chats["data"]["chat_template"] = str(template)
    with pytest.raises(StoreError, match="scored for what another chat template makes of chat"):
        open_setup(recipe_of(chats))


def test_a_store_of_chunks_knows_the_teachers_template(
    chats: dict[str, Any], chat_teacher: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """By which the teacher, of another tokenizer, read the chats."""
    teacher, own = tmp_path / "teacher", make_other_tokenizer(tmp_path / "plain")
    shutil.copytree(chat_teacher, teacher)
    chat_tokenizer(own, tmp_path / "own")
    chats["teacher"]["model"], chats["data"]["tokenizer"] = str(teacher), str(tmp_path / "own")
    chats |= {"signal": {"kind": "chunks"}, "objective": {"kind": "alm"}}
    write_recipe_stores([recipe_of(chats)])
    open_setup(recipe_of(chats))
    changed = load_tokenizer(str(teacher)).backend
    changed.chat_template = CHATML.replace("message.role", "message.role | upper")
    changed.save_pretrained(teacher)
    with pytest.raises(StoreError, match="scored for what another chat template of the teacher's makes of the chats"):
        open_setup(recipe_of(chats))
    with pytest.raises(StoreError, match="teacher_template"):
        write_recipe_stores([recipe_of(chats)])


def test_a_store_of_chunks_of_chats_and_prose_serves_the_prose_alone(
    chats: dict[str, Any], chat_teacher: Path, texts_folder: Path, tmp_path: Path
) -> None:
    """As a stage may read it: no template of the teacher's has to do with it."""
    chat_tokenizer(make_other_tokenizer(tmp_path / "plain"), tmp_path / "own")
    prose = {"kind": "files", "paths": [f"{texts_folder}/train/*.txt"]}
    parts = {"prose": {"share": 0.25, "texts": prose}, "chats": {"share": 0.75, "texts": chats["data"]["train"]}}
    data = {**chats["data"], "tokenizer": str(tmp_path / "own")}
    chats |= {"signal": {"kind": "chunks"}, "objective": {"kind": "alm"}}
    chats["teacher"]["model"] = str(chat_teacher)
    write_recipe_stores([recipe_of({**chats, "data": {**data, "train": {"kind": "mixture", "parts": parts}}})])
    setup = open_setup(recipe_of({**chats, "data": {**data, "train": prose}}))
    assert setup.loader.source is not None
