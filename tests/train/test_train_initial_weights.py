"""Runs that begin with another run's weights: they go on from there, in longer contexts, and refuse other students."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_resume import Killed, at_step, kill, recipe_of, require_same
from tiny_students import dense, ladder, moe, olmo3
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import GrapeM, Rope, SharedExpert, Yarn
from limbeck.spec.student import Student, with_yarn
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.train.setup import open_setup
from limbeck.train.train import train

VOCAB = 300
CE: dict[str, Any] = {"objective": {"kind": "ce"}, "signal": None, "evaluation": {"kl_to_teacher": False}}
YARN = {"factor": 8.0, "original_length": 32}
TOKENS_BT = torch.randint(VOCAB, (2, 200), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def first_stage(values: dict[str, Any], tmp_path: Path) -> Path:
    """As a run leaves a student of sequences of 32 tokens, with windows shorter than that, and weights far from small."""
    values["student"] |= {"num_layers": 4, "sliding_window": 16, "full_attention_every": 2, "init_std": 0.3}
    spec = parse(Olmo3Student, values["student"], source="test")
    hf.save(build(spec, vocab_size=VOCAB, seed=7), spec=spec, folder=tmp_path / "short" / "student", max_positions=32)
    return tmp_path / "short"


def second(values: dict[str, Any], start: Path, **changes: Any) -> dict[str, Any]:
    student = {**values["student"], "yarn": YARN}
    data = {**values["data"], "sequence_length": 256}
    return {**CE, "initial_weights": str(start), "student": student, "data": data, "batch": {"sequences": 2}, **changes}


def test_the_student_is_the_one_that_was_left_with_stretched_positions(values: dict[str, Any], first_stage: Path) -> None:
    """Weights equal; without YaRN the same function; with it, what transformers computes under the same configuration."""
    old, _, _ = hf.load(first_stage / "student")
    same = open_setup(recipe_of(values, **{**second(values, first_stage), "student": values["student"]})).student
    setup = open_setup(recipe_of(values, **second(values, first_stage)))
    for name, tensor in setup.student.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name]), name
    config = AutoConfig.from_pretrained(first_stage / "student")
    config.rope_parameters["full_attention"] |= {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
    theirs = AutoModelForCausalLM.from_pretrained(first_stage / "student", config=config)
    with torch.no_grad():
        assert torch.equal(same(TOKENS_BT).hidden_BTD, old(TOKENS_BT).hidden_BTD)
        stretched_BTV = setup.student.logits(setup.student(TOKENS_BT).hidden_BTD)
        torch.testing.assert_close(stretched_BTV, theirs(TOKENS_BT).logits, rtol=0, atol=2e-5)
        assert float((stretched_BTV - old.logits(old(TOKENS_BT).hidden_BTD)).abs().max()) > 1e-3


def test_what_is_left_says_how_it_came_about(values: dict[str, Any], first_stage: Path) -> None:
    """Its context and positions are the new ones, it loads back equal, and its costs are its own alone."""
    first = train(recipe_of(values, **CE, name="first"))
    path = train(recipe_of(values, **second(values, first), name="long"))
    saved = json.loads((path / "student" / "config.json").read_text(encoding="utf-8"))
    assert saved["max_position_embeddings"] == 256
    full, sliding = (saved["rope_parameters"][kind] for kind in ("full_attention", "sliding_attention"))
    assert (full["rope_type"], full["factor"], full["original_max_position_embeddings"]) == ("yarn", 8.0, 32)
    assert full["attention_factor"] == pytest.approx(1.2079441541679836, rel=1e-15)
    assert sliding["rope_type"] == "default"
    ours, spec, _ = hf.load(path / "student")
    assert spec.yarn == Yarn(factor=8.0, original_length=32)
    with torch.no_grad():
        theirs_BTV = AutoModelForCausalLM.from_pretrained(path / "student")(TOKENS_BT).logits
        torch.testing.assert_close(ours.logits(ours(TOKENS_BT).hidden_BTD), theirs_BTV, rtol=0, atol=2e-5)
    run = open_run(path)
    assert run.summary is not None
    assert run.summary["tokens"] == 8 * 2 * 256
    assert run.summary["start"]["weights"] == str(first) == run.recipe.initial_weights
    weights = first / "student" / "model.safetensors"
    assert run.summary["start"]["digest"] == hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    assert open_run(first).summary["start"] is None  # type: ignore[index]
    moved = load_file(path / "student" / "model.safetensors")["model.embed_tokens.weight"]
    began = load_file(weights)["model.embed_tokens.weight"]
    assert 0 < float((moved - began).norm()) < 0.2 * float(began.norm())


def test_sequences_hold_long_documents(values: dict[str, Any], first_stage: Path) -> None:
    """Pieces of up to a whole sequence: packing cuts a document where the sequence ends, not at the old length."""
    setup = open_setup(recipe_of(values, **second(values, first_stage)))
    longest = max(piece.stop - piece.start for step in range(8) for piece in setup.loader.step(step)[0].pieces)
    assert longest > 4 * 32
    positions = torch.cat([setup.loader.step(step)[0].positions_BT.flatten() for step in range(8)])
    assert int(positions.max()) == longest - 1


def test_a_killed_second_stage_continues_bit_for_bit(
    values: dict[str, Any], first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = second(values, first_stage, checkpoint={"seconds": 1e-9})
    undisturbed = train(recipe_of(values, **changes, name="calm"))
    with at_step(5, kill, monkeypatch).context(), pytest.raises(Killed):
        train(recipe_of(values, **changes, name="hurt"))
    monkeypatch.undo()
    require_same(train(recipe_of(values, **changes, name="hurt")), undisturbed)


def test_a_start_that_changed_under_an_unfinished_run_is_refused(
    values: dict[str, Any], first_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(values, **second(values, first_stage), name="hurt")
    with at_step(3, kill, monkeypatch).context(), pytest.raises(Killed):
        train(recipe)
    monkeypatch.undo()
    student, spec, _ = hf.load(first_stage / "student")
    with torch.no_grad():
        student.head_VD[0, 0] += 1
    hf.save(student, spec=spec, folder=first_stage / "student", max_positions=32)
    with pytest.raises(SpecError, match=r"has changed since .*hurt began with it"):
        train(recipe)
    assert train(recipe.model_copy(update={"name": "anew"})).is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "hidden_size is 16 there and 32 in the recipe"),
        ({"num_layers": 6}, "number of layers is 4 there and 6 in the recipe"),
        ({"tied_embeddings": True}, "tied_embeddings is False there and True in the recipe"),
        ({"intermediate_size": 48}, "layers.0.mlp.size is 32 there and 48 in the recipe"),
        ({"rope_theta": 1e4}, "layers.0.attention.positions.theta is 500000.0 there and 10000.0 in the recipe"),
        ({"vocab_size": 301}, "vocab_size is 300 there and 301 in the recipe"),
        ({"kind": "moe", "dense_layers": 4, "activation": "swiglu"}, "norms is 'after' there and 'before' in the recipe"),
    ],
    ids=str,
)
def test_another_student_is_refused_by_what_differs(
    values: dict[str, Any], first_stage: Path, changes: dict[str, Any], message: str
) -> None:
    student = {**values["student"], **changes}
    teacherless = {"teacher": None, "data": {**values["data"], "tokenizer": values["teacher"]["model"]}}
    recipe = recipe_of(values, **{**second(values, first_stage, student=student), **teacherless})
    with pytest.raises(SpecError, match=re.escape(f"initial_weights={first_stage} holds another student: {message}")):
        train(recipe)
    assert not Path(recipe.run_path).exists()


def test_the_vocabulary_is_that_of_the_start_where_no_teacher_says_one(values: dict[str, Any], first_stage: Path) -> None:
    """Teachers have more logits than their tokenizers ids, so the tokenizer's size would be another student."""
    folder = first_stage / "student"
    _, spec, _ = hf.load(folder)
    wider = build(spec, vocab_size=320, seed=0)
    hf.save(wider, spec=spec, folder=folder, max_positions=32)
    data = {**values["data"], "tokenizer": values["teacher"]["model"]}
    changes = {**second(values, first_stage), "teacher": None, "data": data, "student": values["student"]}
    assert open_setup(recipe_of(values, **changes)).recipe.student.vocab_size == 320


@pytest.mark.parametrize(
    "spec",
    [
        olmo3(),
        ladder(),
        dense(positions=Rope(theta=500.0), full_attention_every=1),
        moe(positions=GrapeM(), qk_norm="projection"),
        moe(positions=GrapeM(form="rank2")),
        UpcycledStudent(dense=ladder(), num_experts=4, granularity=2, experts_per_token=2, first_layer=1),
    ],
    ids=["olmo3", "ladder", "qwen3", "grape", "rank2", "upcycled"],
)
def test_every_family_with_yarn_can_be_stretched(spec: Student, tmp_path: Path) -> None:
    """It is another function at long distances, and loads back as what it is."""
    old = build(spec, vocab_size=50, seed=3)
    hf.save(old, spec=spec, folder=tmp_path / "old", max_positions=16)
    stretched = with_yarn(spec, Yarn(factor=4.0, original_length=16, beta_fast=4.0))
    new = build(stretched, vocab_size=50, seed=9, initial_weights=str(tmp_path / "old"))
    tokens_BT = TOKENS_BT[:, :60] % 50
    with torch.no_grad():
        assert float((new(tokens_BT).hidden_BTD - old(tokens_BT).hidden_BTD).abs().max()) > 1e-3
    hf.save(new, spec=stretched, folder=tmp_path / "new", max_positions=64)
    again, spec_again, _ = hf.load(tmp_path / "new")
    assert spec_again == stretched
    with torch.no_grad():
        assert torch.equal(again(tokens_BT).hidden_BTD, new(tokens_BT).hidden_BTD)


def test_what_only_training_reads_may_change(tmp_path: Path) -> None:
    old = moe()
    hf.save(build(old, vocab_size=50, seed=3), spec=old, folder=tmp_path, max_positions=16)
    build(moe(bias_step=0.0, balance_weight=0.0, init_std=0.5), vocab_size=50, seed=0, initial_weights=str(tmp_path))
    with pytest.raises(SpecError, match=r"layers\.1\.mlp\.route_scale is 2\.5 there and 1\.0"):
        build(moe(route_scale=1.0), vocab_size=50, seed=0, initial_weights=str(tmp_path))


def test_a_shared_expert_goes_on_with_the_share_that_it_had(tmp_path: Path) -> None:
    spec = moe(shared_expert=SharedExpert(size=24, schedule="warmup"))
    hf.save(build(spec, vocab_size=50, seed=3), spec=spec, folder=tmp_path, max_positions=16)
    constant = moe(shared_expert=SharedExpert(size=24))
    build(constant, vocab_size=50, seed=0, initial_weights=str(tmp_path))
    with pytest.raises(SpecError, match=r"share \(at the end there, at the start here\) is 1\.0 there and 0\.0"):
        build(spec, vocab_size=50, seed=0, initial_weights=str(tmp_path))


def test_what_is_no_student_is_refused(values: dict[str, Any], tmp_path: Path, first_stage: Path) -> None:
    with pytest.raises(LimbeckError, match=r"holds no config\.json"):
        train(recipe_of(values, **second(values, tmp_path / "absent")))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").touch()
    with pytest.raises(LimbeckError, match="half is unfinished"):
        train(recipe_of(values, **second(values, tmp_path / "half")))
    upcycled = {"kind": "upcycled", "dense": values["student"], "weights": "somewhere"}
    with pytest.raises(SpecError, match=r"initial_weights and student\.weights both say"):
        recipe_of(values, **second(values, first_stage, student=upcycled))


@pytest.mark.parametrize(
    ("vocab_size", "upcycled", "error"),
    [
        (299, None, r"student\.vocab_size=299 is smaller than the tokenizer's 300 ids"),
        (299, {}, r"student\.dense\.vocab_size=299 is smaller than the tokenizer's 300 ids"),
        (None, {"weights": "absent"}, r"student\.weights=absent: .*holds no config\.json"),
    ],
    ids=["vocabulary", "dense vocabulary", "weights"],
)
def test_what_needs_no_teacher_is_found_before_one_is_loaded(
    values: dict[str, Any],
    vocab_size: int | None,
    upcycled: dict[str, Any] | None,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr("limbeck.train.setup.load_teacher", loaded)
    monkeypatch.setattr("limbeck.train.setup.teacher_reference", loaded)
    dense = {**values["student"], "vocab_size": vocab_size}
    student = dense if upcycled is None else {"kind": "upcycled", "dense": dense, **upcycled}
    with pytest.raises(LimbeckError, match=error):
        open_setup(recipe_of(values, student=student, signal={"kind": "dense"}))


def test_the_vocabulary_of_an_upcycled_student_is_that_of_its_weights(values: dict[str, Any], tmp_path: Path) -> None:
    """Where no teacher says one: not the tokenizer's 300."""
    spec = parse(Olmo3Student, values["student"], source="test")
    hf.save(build(spec, vocab_size=320, seed=0), spec=spec, folder=tmp_path / "dense", max_positions=32)
    student = {"kind": "upcycled", "dense": values["student"], "weights": str(tmp_path / "dense")}
    data = {**values["data"], "tokenizer": values["teacher"]["model"]}
    assert open_setup(recipe_of(values, **CE, teacher=None, data=data, student=student)).recipe.student.vocab_size == 320


def test_stretching_from_another_length_is_said_aloud(
    values: dict[str, Any], first_stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_setup(recipe_of(values, **second(values, first_stage)))
    assert "YaRN" not in capsys.readouterr().err
    student = {**values["student"], "yarn": {"factor": 8.0}}
    open_setup(recipe_of(values, **second(values, first_stage, student=student)))
    assert "from 8192 tokens, but" in capsys.readouterr().err
