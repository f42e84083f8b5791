"""Batches of a store over several epochs and ranks: every row belongs to the token it stands beside."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from limbeck.data.loader import Batch, Loader
from limbeck.data.packing import TokenStream
from limbeck.data.prepare import prepare
from limbeck.data.store_rows import StoreRows
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import SpecError, StoreError
from limbeck.signals.store import SignalStore
from limbeck.signals.types import TopKRows
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, SampledSignal, Signal, TopKSignal
from limbeck.study.stores import write_recipe_stores
from limbeck.train.setup import open_setup
from limbeck.train.train import train

WINDOW, OVERLAP, LENGTH = 48, 16, 32


@pytest.fixture
def recipe(values: dict[str, Any]) -> Recipe:
    return parse(Recipe, values, source="test")


@pytest.fixture
def tokens(recipe: Recipe, teacher_folder: Path) -> TokenStore:
    return prepare(recipe.data, load_tokenizer(str(teacher_folder)))[0]


def store_loader(recipe: Recipe, tokens: TokenStore, *, rank: int = 0, world_size: int = 1, micro: int = 2) -> Loader:
    assert recipe.signal is not None and not isinstance(recipe.signal, DenseSignal)
    return Loader(
        tokens,
        stream=TokenStream(tokens.lengths, sequence_length=LENGTH, seed=3),
        packing="documents",
        sequences=4,
        micro_sequences=micro,
        rank=rank,
        world_size=world_size,
        source=StoreRows(SignalStore.open(Path(recipe.store_path)), tokens, signal=recipe.signal),
    )


@torch.no_grad()
def scored_afresh(folder: Path, document: np.ndarray) -> Tensor:
    """float64 log-probs [n - 1, V] by transformers, windows spelt out position by position."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(document.astype(np.int64))
    rows = []
    for position in range(len(ids) - 1):
        start = 0 if position < WINDOW else ((position - WINDOW) // (WINDOW - OVERLAP) + 1) * (WINDOW - OVERLAP)
        rows.append(model(input_ids=ids[None, start : position + 1]).logits[0, -1])
    return torch.stack(rows).double().log_softmax(-1)


def require_rows_of_tokens(batch: Batch, tokens: TokenStore, fresh: dict[int, Tensor]) -> list[tuple[int, int]]:
    """Checks one batch position by position; returns the (document, position) of each."""
    rows = batch.rows
    assert isinstance(rows, TopKRows)
    places = [(piece.document, position) for piece in batch.pieces for position in range(piece.start, piece.stop)]
    inputs, targets, positions = batch.tokens_BT.flatten(), batch.targets_BT.flatten(), batch.positions_BT.flatten()
    assert len(places) == len(inputs) == len(rows.ids_TK)
    for place, (document, position) in enumerate(places):
        text = tokens.document(document)
        assert (int(inputs[place]), int(targets[place])) == (int(text[position]), int(text[position + 1]))
        expected_K = fresh[document][position][rows.ids_TK[place]]
        # float16 on disk: within 2^-11 of the value.
        torch.testing.assert_close(rows.log_probs_TK[place].double(), expected_K, rtol=2**-11, atol=1e-4)
    starts = {(piece.document, piece.start) for piece in batch.pieces}
    for place, (document, position) in enumerate(places):
        assert (
            int(positions[place]) == (0 if (document, position) in starts else int(positions[place - 1]) + 1)
            or place % LENGTH == 0
        )
    return places


def test_rows_belong_to_their_tokens_on_every_rank_and_epoch(recipe: Recipe, tokens: TokenStore, teacher_folder: Path) -> None:
    write_recipe_stores([recipe])
    fresh = {index: scored_afresh(teacher_folder, tokens.document(index)) for index in range(len(tokens))}
    loaders = [store_loader(recipe, tokens, rank=rank, world_size=2) for rank in (0, 1)]
    alone = store_loader(recipe, tokens, micro=4)
    steps = 1 + 5 * tokens.num_rows // (2 * 4 * LENGTH)  # two and a half epochs
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        batches = [batch for loader in loaders for batch in loader.step(step)]
        for batch in batches:
            seen.update(require_rows_of_tokens(batch, tokens, fresh))
        (whole,) = alone.step(step)
        shares = torch.cat([batch.tokens_BT for batch in batches])
        assert sorted(map(tuple, shares.tolist())) == sorted(map(tuple, whole.tokens_BT.tolist()))
    assert len(seen) == tokens.num_rows
    assert set(seen.values()) == {2, 3}


@pytest.mark.parametrize("signal", [TopKSignal(k=20), SampledSignal(draws=30)], ids=lambda signal: signal.kind)
def test_batches_made_ahead_are_the_batches_of_their_steps(recipe: Recipe, tokens: TokenStore, signal: Signal) -> None:
    """As wide, too: rows of draws have as many columns as the widest of their batch."""
    recipe = recipe.model_copy(update={"signal": signal})
    write_recipe_stores([recipe])
    loader = store_loader(recipe, tokens)
    ahead, alone = loader.steps(5), store_loader(recipe, tokens)
    for step in range(5, 25):
        for batch, expected in zip(next(ahead), alone.step(step), strict=True):
            assert torch.equal(batch.tokens_BT, expected.tokens_BT)
            assert batch.pieces == expected.pieces
            assert batch.bytes_read > 0
            for field in dataclasses.fields(expected.rows):
                mine, theirs = getattr(batch.rows, field.name), getattr(expected.rows, field.name)
                assert (mine is None and theirs is None) or torch.equal(mine, theirs), field.name
    ahead.close()


def test_what_is_read_does_not_depend_on_where_steps_begin(recipe: Recipe, tokens: TokenStore) -> None:
    """Bytes too: a resumed run counts as an undisturbed one."""
    write_recipe_stores([recipe])
    whole = store_loader(recipe, tokens).steps(0)
    every = [[(batch.pieces, batch.bytes_read) for batch in next(whole)] for _ in range(200)]
    whole.close()
    for first in (1, 63, 150):
        later = store_loader(recipe, tokens).steps(first)
        found = [[(batch.pieces, batch.bytes_read) for batch in next(later)] for _ in range(20)]
        later.close()
        assert found == every[first : first + 20]


def test_every_byte_read_is_some_batch_s(recipe: Recipe, tokens: TokenStore) -> None:
    write_recipe_stores([recipe])
    loader = store_loader(recipe, tokens)
    loader.reads_ahead = False
    steps, total = loader.steps(0), 0
    for _ in range(loader._steps_at_once):
        total += sum(batch.bytes_read for batch in next(steps))
    assert loader.source is not None
    assert total == loader.source.bytes_read > 0


def shifted(tokens: TokenStore, *, by: int) -> TokenStore:
    """The same documents and lengths, every token `by` places further on."""
    return dataclasses.replace(tokens, tokens=np.roll(np.asarray(tokens.tokens), by))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("by", [1, -1])
def test_rows_of_other_tokens_are_found_out(recipe: Recipe, tokens: TokenStore, by: int, rank: int) -> None:
    """Thirty-two rows of one sequence are right by chance once in 256^32."""
    write_recipe_stores([recipe])
    loader = store_loader(recipe, shifted(tokens, by=by), rank=rank, world_size=2)
    with pytest.raises(StoreError, match=r"document [0-9a-f]{32}, position \d+: the row belongs to other tokens"):
        loader.step(0)
    with pytest.raises(StoreError, match="other tokens"):
        next(loader.steps(0))  # also from the thread that reads ahead


def test_a_document_tokenised_to_another_length_is_found_out(recipe: Recipe, tokens: TokenStore) -> None:
    """One token less: its later rows would all be off by one."""
    write_recipe_stores([recipe])
    longest = int(np.argmax(tokens.lengths))
    cut = int(tokens.offsets[longest]) + 5
    offsets = tokens.offsets.copy()
    offsets[longest + 1 :] -= 1
    shorter = dataclasses.replace(tokens, tokens=np.delete(np.asarray(tokens.tokens), cut), offsets=offsets)
    loader = store_loader(recipe, shorter)
    every_step = range(shorter.num_rows // (4 * LENGTH) + 1)
    with pytest.raises(StoreError, match=tokens.ids[longest]):
        list(map(loader.step, every_step))


def test_another_tokenizer_is_refused_before_the_first_step(
    values: dict[str, Any], tmp_path: Path, teacher_folder: Path
) -> None:
    """The store speaks of the teacher's tokens; a teacher folder whose tokenizer has since lost its merges gives others."""
    import json
    import shutil

    folder = tmp_path / "teacher"
    shutil.copytree(teacher_folder, folder)
    values["teacher"]["model"] = str(folder)
    write_recipe_stores([parse(Recipe, values, source="test")])
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(StoreError, match="tokenizer"):
        train(parse(Recipe, values, source="test"))
    assert not Path(values["output"], "runs").exists()


def test_a_store_of_other_documents_is_refused_before_the_first_step(values: dict[str, Any], tmp_path: Path) -> None:
    write_recipe_stores([parse(Recipe, values, source="test")])
    (tmp_path / "more.txt").write_text("A document that the teacher has not read.", encoding="utf-8")
    values["data"]["train"]["paths"].append(str(tmp_path / "more.txt"))
    with pytest.raises(StoreError, match="lacks 1 of the 9 training documents"):
        train(parse(Recipe, values, source="test"))


def test_a_context_that_the_store_was_not_scored_with_is_refused(values: dict[str, Any]) -> None:
    write_recipe_stores([parse(Recipe, values, source="test")])
    values["teacher"]["context"] = {"window": 64, "overlap": 16}
    with pytest.raises(StoreError, match="window"):
        train(parse(Recipe, values, source="test"))


def test_fewer_of_the_stored_k_are_enough_and_more_are_not(values: dict[str, Any]) -> None:
    first = parse(Recipe, values, source="test")
    write_recipe_stores([first])
    values["store"] = first.store_path
    values["signal"]["k"] = 5
    (batch,) = open_setup(parse(Recipe, values, source="test")).loader.step(0)
    assert isinstance(batch.rows, TopKRows)
    assert batch.rows.ids_TK.shape[1] == 5
    values["signal"]["k"] = 21
    with pytest.raises(StoreError, match=r"signal\.k=21"):
        open_setup(parse(Recipe, values, source="test"))


@pytest.mark.parametrize(
    ("size", "message"), [(301, "teacher's vocabulary is 300|vocabulary of 300"), (100, "smaller than the tokenizer's 300 ids")]
)
def test_another_vocabulary_is_refused(values: dict[str, Any], size: int, message: str) -> None:
    write_recipe_stores([parse(Recipe, values, source="test")])
    values["student"]["vocab_size"] = size
    with pytest.raises((SpecError, StoreError), match=message):
        train(parse(Recipe, values, source="test"))
