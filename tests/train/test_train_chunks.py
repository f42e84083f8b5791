"""Students of another tokenizer than their teacher's, from recipe to summary: live, from a store, killed and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import make_other_tokenizer, make_teacher

from limbeck.data.packing import Piece
from limbeck.errors import LimbeckError
from limbeck.runs import open_run
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import ChunkRows
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.students import hf
from limbeck.study.stores import extend_recipe_store, write_recipe_stores
from limbeck.train import loop
from limbeck.train import preflight as preflight_module
from limbeck.train.preflight import preflight
from limbeck.train.setup import open_setup
from limbeck.train.train import train

TERMS = {"alm": "none", "gold": "last", "projected_kl": "mean", "byte_kl": "bytes"}


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_other_tokenizer(tmp_path_factory.mktemp("reads") / "other"))


@pytest.fixture
def across(values: dict[str, Any], other_tokenizer: str) -> dict[str, Any]:
    """The tiny recipe with a student of another tokenizer."""
    values["data"]["tokenizer"] = other_tokenizer
    values["objective"] = {"kind": "alm"}
    values["signal"] = {"kind": "chunks"}
    values["budget"] = {"kind": "steps", "amount": 3}
    return values


def live(values: dict[str, Any]) -> dict[str, Any]:
    return {**values["signal"], "live": True}


def losses(path: Path) -> list[float]:
    return [record["loss_nats"] for record in open_run(path).events("train")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "student" / "model.safetensors")


@pytest.mark.parametrize("kind", TERMS)
def test_live_and_stored_chunks_train_the_same_student(across: dict[str, Any], kind: str) -> None:
    """But for 11 significant bits of each log-prob."""
    terms = [{"weight": 1.0, "term": {"kind": "ce"}}, {"weight": 0.5, "term": {"kind": kind}}]
    across["objective"] = {"kind": "mixture", "terms": terms}
    across["signal"] = {"kind": "chunks", "distribution": TERMS[kind], "k": 16}
    stored = recipe_of(across, name="stored")
    write_recipe_stores([stored])
    assert verify(stored.store_path).intact
    one, other = train(stored), train(recipe_of(across, name="live", signal=live(across)))
    assert losses(one) == pytest.approx(losses(other), rel=1e-3)
    assert losses(one) != losses(other)
    last, live_last = open_run(one).events("train")[-1], open_run(other).events("train")[-1]
    assert last["bytes_read"] > 0 == live_last["bytes_read"]
    summary = open_run(one).summary
    assert summary is not None
    assert summary["kl_to_teacher_nats"] is None
    assert summary["teacher"]["bits_per_byte"] == pytest.approx(_bits_per_byte(across), rel=1e-5)
    assert hf.load(one / "student")[2] == 310  # the student's own vocabulary


def _bits_per_byte(values: dict[str, Any]) -> float:
    """Of the teacher on the held-out texts in its own tokens, by a plain float64 softmax over its windows of 48 and 16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = values["teacher"]["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    nats, num_bytes = 0.0, 0
    for path in Path(values["data"]["heldout"]["paths"][0]).parent.glob("*.txt"):
        ids = [0, *tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]]
        num_bytes += len(path.read_bytes())
        for first in [0, *range(48, len(ids) - 1, 32)]:
            start = max(first - 16, 0)
            stop = min(start + 48, len(ids) - 1)
            with torch.no_grad():
                log_probs = model(torch.tensor([ids[start:stop]])).logits[0].double().log_softmax(-1)
            nats -= sum(float(log_probs[at - start, ids[at + 1]]) for at in range(first, stop))
    return nats / np.log(2) / num_bytes


def test_the_teachers_flops_are_those_of_its_own_tokens(across: dict[str, Any]) -> None:
    recipe = recipe_of(across, teacher={**across["teacher"], "context": {"window": 256, "overlap": 0}})
    write_recipe_stores([recipe])
    setup = open_setup(recipe)
    assert setup.texts.across is not None
    theirs, own = setup.texts.across.counterpart.tokens, setup.texts.train
    rows, read = int((own.lengths - 1).sum()), int((theirs.lengths - 1).sum())
    assert theirs.tokenizer_fingerprint != own.tokenizer_fingerprint
    assert setup.tokens_scored_per_row == pytest.approx(read / rows)
    path = train(recipe)
    last = open_run(path).events("train")[-1]
    assert last["teacher_flops"] == pytest.approx(3 * 4 * 32 * read / rows * setup.teacher_flops_per_scored_token)


def test_equal_tokenizers_are_fine(values: dict[str, Any]) -> None:
    """Chunks are tokens, the student takes as many logits as any other of this teacher, and is compared with it."""
    values |= {"objective": {"kind": "alm"}, "signal": {"kind": "chunks", "live": True}}
    values["budget"] = {"kind": "steps", "amount": 2}
    setup = open_setup(recipe_of(values))
    (batch,) = setup.loader.step(0)
    assert bool((batch.rows.tokens_T == 1).all())
    summary = open_run(train(recipe_of(values))).summary
    assert summary is not None
    assert summary["kl_to_teacher_nats"] > 0


@pytest.mark.parametrize("is_live", [False, True])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    across: dict[str, Any], is_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    across["signal"] |= {"live": is_live}
    across["checkpoint"] = {"seconds": 1e-9}
    recipe = recipe_of(across)
    if not is_live:
        write_recipe_stores([recipe])
    undisturbed = train(recipe_of(across, name="undisturbed"))
    original, steps = loop.optimizer_step, []

    def dies(*arguments: Any, **named: Any) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    path = train(recipe)
    assert losses(path) == losses(undisturbed)
    assert all(torch.equal(tensor, weights(undisturbed)[name]) for name, tensor in weights(path).items())


def test_a_store_is_written_for_a_pair(across: dict[str, Any], tmp_path: Path, teacher_folder: Path) -> None:
    recipe = recipe_of(across)
    (path,) = write_recipe_stores([recipe])
    assert path.endswith("-chunks-for-other")
    store = SignalStore.open(path)
    pair = (store.identity.tokenizer, store.identity.teacher_tokenizer)
    assert open_setup(recipe).texts.train.tokenizer_fingerprint == pair[0] != pair[1]
    third = str(make_other_tokenizer(tmp_path / "third", vocab_size=290))
    others = {**across["data"], "tokenizer": third}
    with pytest.raises(LimbeckError, match=f"holds chunks of another pair.*{pair[0]}.*{pair[1]}, not of .* and {pair[1]}"):
        open_setup(recipe_of(across, store=path, data=others))
    assert recipe_of(across, data=others).store_path != path
    own = {**across["data"], "tokenizer": None}
    with pytest.raises(LimbeckError, match="holds chunks of another pair"):
        open_setup(recipe_of(across, store=path, data=own))
    with pytest.raises(LimbeckError, match="holds another store"):
        write_recipe_stores([recipe_of(across, store=path, data=others)])


def test_a_store_is_extended_by_documents(across: dict[str, Any], texts_folder: Path) -> None:
    some = {**across["data"], "train": {"kind": "files", "paths": [f"{texts_folder}/train/[0-3].txt"]}}
    (path,) = write_recipe_stores([recipe_of(across, data=some)])
    assert len(SignalStore.open(path).document_ids) == 4
    merged = extend_recipe_store(Path(path), recipe_of(across))
    assert merged is not None and merged.documents == 8
    assert verify(path).intact
    alone = recipe_of(across, store=path + "-alone")
    write_recipe_stores([alone])
    one, two = train(recipe_of(across, name="one")), train(recipe_of(across, name="two", store=alone.store_path))
    assert losses(one) == losses(two)


def test_documents_that_cannot_be_aligned_may_come_first(across: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no chunks: the check before a run looks at the first sequence that has one, and says so where none has."""
    across["data"]["sequence_length"] = 8
    recipe = recipe_of(across, signal=live(across))
    setup = open_setup(recipe)
    assert setup.texts.across is not None
    counterpart, stream = setup.texts.across.counterpart, setup.loader.stream
    assert preflight(setup).gradients["alm"] > 0
    early = {piece.document for number in range(3) for piece in stream.sequence(number)}
    counterpart.lost_N[list(early)] = True
    sequences = [stream.sequence(number) for number in range(64)]
    first = next(each for each in sequences if not early.issuperset(piece.document for piece in each))
    assert first not in sequences[:3]
    read: list[list[Piece]] = []
    rows = setup.loader.source.rows
    monkeypatch.setattr(setup.loader.source, "rows", lambda pieces: (read.append(list(pieces)), rows(pieces))[1])
    assert preflight(setup).gradients["alm"] > 0
    assert read == [first]
    counterpart.lost_N[:] = True
    with pytest.raises(LimbeckError, match=r"no chunk lies within any of the first 64 sequences.*raise data\.sequence_length"):
        preflight(setup)


def test_a_chunk_that_comes_late_is_looked_at(across: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the positions at which gradients are taken from the beginning."""
    setup = open_setup(recipe_of(across, signal=live(across), objective={"kind": "alm", "boundary": None}))
    rows = setup.loader.source.rows

    def without_early(pieces: list[Piece]) -> ChunkRows:
        found = rows(pieces)
        found.tokens_T[: found.tokens_T.nonzero()[-8]] = 0
        return found

    def without_any(pieces: list[Piece]) -> ChunkRows:
        found = rows(pieces)
        return replace(found, tokens_T=torch.zeros_like(found.tokens_T))

    monkeypatch.setattr(preflight_module, "POSITIONS", 8)
    monkeypatch.setattr(setup.loader.source, "rows", without_early)
    assert preflight(setup).gradients["alm"] > 0
    monkeypatch.setattr(setup.loader.source, "rows", without_any)
    with pytest.raises(LimbeckError, match=r"hold no chunk where student and teacher have some.*write the store again"):
        preflight(setup)


def test_bad_pairs_are_refused_before_anything_is_scored(
    across: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the teacher is loaded")

    monkeypatch.setattr("limbeck.study.stores.load_teacher", refuse)
    monkeypatch.setattr("limbeck.train.setup.load_teacher", refuse)
    lossy = _lossy_teacher(tmp_path / "lossy")
    for changes in ({}, {"signal": live(across)}):
        recipe = recipe_of(across, teacher={**across["teacher"], "model": str(lossy)}, **changes)
        with pytest.raises(LimbeckError, match="do not join to the bytes of a text"):
            open_setup(recipe) if changes else write_recipe_stores([recipe])
    with pytest.raises(LimbeckError, match=r"objective.kind=alm with signal.kind=chunks\), or .*`limbeck transplant`"):
        open_setup(recipe_of(across, objective={"kind": "forward_kl"}, signal={"kind": "topk", "live": True}))
    with pytest.raises(LimbeckError, match=r"signal\.kind=chunks is about documents of the texts"):
        recipe_of(across, signal=live(across), on_policy={})
    with pytest.raises(LimbeckError, match=r"placement\.kind=pool asks for rows of the student's own tokens"):
        recipe_of(across, signal=live(across), placement={"kind": "pool"})


def _lossy_teacher(folder: Path) -> Path:
    """The tiny teacher, whose tokenizer makes every letter small."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    make_teacher(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(folder)
    return folder


def test_pieces_of_a_batch_hold_no_chunk_that_they_cut(across: dict[str, Any]) -> None:
    """Sequences of 8 positions: whatever chunk is there lies in its piece, and as many as were cut are missing."""
    across["data"]["sequence_length"] = 8
    recipe = recipe_of(across)
    write_recipe_stores([recipe])
    setup = open_setup(recipe)
    assert setup.texts.across is not None
    missing = 0
    for step in range(10):
        (batch,) = setup.loader.step(step)
        tokens_T, at = batch.rows.tokens_T.numpy(), 0
        for piece in batch.pieces:
            length = piece.stop - piece.start
            inside_T = tokens_T[at : at + length]
            chunks = setup.texts.across.counterpart.alignment(piece.document)
            starts, ends = chunks.student_starts_C - 1, chunks.student_ends_C - 2
            inside = [
                (s, e) for s, e in zip(starts.tolist(), ends.tolist(), strict=True) if piece.start <= s and e < piece.stop
            ]
            expected = {end - piece.start: end - start + 1 for start, end in inside}
            assert {int(row): int(inside_T[row]) for row in np.flatnonzero(inside_T)} == expected
            missing += int(((ends >= piece.start) & (ends < piece.stop)).sum()) - len(expected)
            at += length
    assert missing > 5
