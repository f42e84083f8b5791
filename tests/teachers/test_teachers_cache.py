"""Writing stores: interrupted and resumed, refused, and compared with rows made live."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck.data.packing import Piece
from limbeck.data.store_rows import StoreRows
from limbeck.data.token_store import TokenStore
from limbeck.errors import StoreError, TeacherError
from limbeck.signals.store import SignalStore, verify
from limbeck.signals.types import DenseRows, HardRows, SampledRows, TopKRows
from limbeck.spec.signal import DenseSignal, HardSignal, SampledSignal, Signal, StoredSignal, TopKSignal
from limbeck.spec.teacher import Context
from limbeck.study.stores import finish_the_shard
from limbeck.teachers import cache
from limbeck.teachers.cache import Share, write_stores
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.live import LiveRows
from limbeck.train.interrupt import Interrupted

CPU = torch.device("cpu")
CONTEXT = Context(window=48, overlap=16)
TOPK, SAMPLED, HARD = TopKSignal(k=20), SampledSignal(draws=30), HardSignal()


class Scorer:
    """`score_documents` that counts its calls and fails at one of them."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.fails_at, self.calls = fails_at, 0
        self.signals: list[StoredSignal] = []
        self.original = cache.score_documents

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        self.signals += named["signals"]
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return self.original(*arguments, **named)


def payload(path: Path) -> list[bytes]:
    """The encoded rows of every shard; what follows them in the file holds the time that scoring took."""
    found = []
    for file in sorted(path.glob("shard-*.rows")):
        data = file.read_bytes()
        trailer = 8 + 16 + 8
        index = int.from_bytes(data[-trailer : -trailer + 8], "little")
        found.append(data[: -trailer - index])
    return found


def test_an_interrupted_write_resumes_with_the_same_rows(
    tmp_path: Path, teacher: Teacher, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: dict[str, StoredSignal] = {"topk": TOPK, "sampled": SAMPLED}

    def write(folder: str) -> None:
        paths = {tmp_path / folder / name: signal for name, signal in signals.items()}
        write_stores(teacher, tokens, paths, context=CONTEXT, shard_tokens=400)

    counted = Scorer()
    monkeypatch.setattr(cache, "score_documents", counted)
    write("whole")
    shards = counted.calls
    assert shards >= 3

    monkeypatch.setattr(cache, "score_documents", Scorer(fails_at=2))
    with pytest.raises(KeyboardInterrupt):
        write("resumed")
    for name in signals:
        with pytest.raises(StoreError, match=f"1 of {shards} shards"):
            SignalStore.open(tmp_path / "resumed" / name)

    counted = Scorer()
    monkeypatch.setattr(cache, "score_documents", counted)
    write("resumed")
    assert counted.calls == shards - 1
    for name in signals:
        assert verify(tmp_path / "resumed" / name).intact
        assert payload(tmp_path / "resumed" / name) == payload(tmp_path / "whole" / name)
        assert sum(map(len, payload(tmp_path / "whole" / name))) > 1000
    write("resumed")
    assert counted.calls == shards - 1  # a finished store is not scored again


def test_who_is_told_to_stop_writes_the_shard_in_hand(
    tmp_path: Path, teacher: Teacher, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `torchrun` does to all processes as soon as one of them is gone."""
    score = cache.score_documents

    def told(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(cache, "score_documents", score)
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments, **named)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cache, "score_documents", told)
    share = Share(between_shards=finish_the_shard)
    with pytest.raises(Interrupted, match="the same command goes on"):
        write_stores(teacher, tokens, {tmp_path: TOPK}, context=CONTEXT, shard_tokens=400, share=share)
    assert [file.name for file in tmp_path.glob("*.rows")] == ["shard-00000.rows"]
    assert signal.getsignal(signal.SIGTERM) is handler
    write_stores(teacher, tokens, {tmp_path: TOPK}, context=CONTEXT, shard_tokens=400)
    assert verify(tmp_path).intact


def test_a_second_store_is_scored_alone(
    tmp_path: Path, teacher: Teacher, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of two stores is complete, the other is written as if alone."""
    write_stores(teacher, tokens, {tmp_path / "topk": TOPK}, context=CONTEXT)
    before = (tmp_path / "topk" / "store.json").read_bytes()
    counted = Scorer()
    monkeypatch.setattr(cache, "score_documents", counted)
    write_stores(teacher, tokens, {tmp_path / "topk": TOPK, tmp_path / "hard": HARD}, context=CONTEXT)
    assert counted.signals == [HARD]
    assert (tmp_path / "topk" / "store.json").read_bytes() == before
    top = SignalStore.open(tmp_path / "topk")
    hard = SignalStore.open(tmp_path / "hard")
    document = tokens.document(0)
    wanted = (tokens.ids[0], 0, len(document) - 1)
    top_rows, hard_rows = top.rows(*wanted, tokens=document), hard.rows(*wanted, tokens=document)
    assert isinstance(top_rows, TopKRows)
    assert isinstance(hard_rows, HardRows)
    assert torch.equal(top_rows.ids_TK[:, 0], hard_rows.ids_T)


def test_nothing_is_published_where_the_teacher_says_nan(tmp_path: Path, teacher: Teacher, tokens: TokenStore) -> None:
    poisoned = int(tokens.document(2)[3])
    teacher.model.get_input_embeddings().weight.data[poisoned] = torch.nan
    with pytest.raises(TeacherError, match=r"document [0-9a-f]{32}, position \d+: "):
        write_stores(teacher, tokens, {tmp_path / "store": TOPK}, context=CONTEXT)
    with pytest.raises(StoreError, match="incomplete"):
        SignalStore.open(tmp_path / "store")


def pieces(tokens: TokenStore) -> list[Piece]:
    """Whole documents and parts that begin and end inside windows."""
    longest = int(np.argmax(tokens.lengths))
    whole = [Piece(index, 0, int(length) - 1) for index, length in enumerate(tokens.lengths)]
    return [Piece(longest, 40, 120), *whole, Piece(longest, 47, 49), Piece(longest, 100, 101), Piece(longest, 40, 120)]


def live(teacher: Teacher, tokens: TokenStore, signal: Signal) -> LiveRows:
    return LiveRows(teacher, tokens, signal=signal, context=CONTEXT)


def cached(teacher: Teacher, tokens: TokenStore, signal: StoredSignal, path: Path) -> StoreRows:
    write_stores(teacher, tokens, {path: signal}, context=CONTEXT)
    return StoreRows(SignalStore.open(path), tokens, signal=signal)


def test_live_top_k_is_the_cached_one(tmp_path: Path, teacher: Teacher, tokens: TokenStore) -> None:
    asked = pieces(tokens)
    here, stored = live(teacher, tokens, TOPK).rows(asked), cached(teacher, tokens, TOPK, tmp_path / "store").rows(asked)
    assert isinstance(here, TopKRows)
    assert isinstance(stored, TopKRows)
    assert len(here.ids_TK) == sum(piece.stop - piece.start for piece in asked)
    # The codec: float16 log-probs are within 2^-11 of their value; 1e-5 for the batch composition of the two forwards.
    torch.testing.assert_close(stored.log_probs_TK, here.log_probs_TK, rtol=2**-11, atol=1e-5)
    # ln(tail) within 0.022 (1/4 - ln t), so the tail t within 0.022 t (1/4 - ln t) < 0.022 / 2.
    torch.testing.assert_close(stored.tail_T, here.tail_T, rtol=0, atol=0.011)
    # Ids whose log-probs are the same in float16 change places, but for the first; the last may be one of two that are equal.
    same_T = (here.ids_TK.sort(-1).values == stored.ids_TK.sort(-1).values).all(-1)
    assert same_T.float().mean() > 0.99
    assert (here.ids_TK[:, 0] == stored.ids_TK[:, 0]).float().mean() > 0.999


def test_live_draws_are_the_cached_ones(tmp_path: Path, teacher: Teacher, tokens: TokenStore) -> None:
    asked = pieces(tokens)
    here, stored = live(teacher, tokens, SAMPLED).rows(asked), cached(teacher, tokens, SAMPLED, tmp_path / "store").rows(asked)
    assert isinstance(here, SampledRows)
    assert isinstance(stored, SampledRows)
    assert torch.equal(here.counts_TK.sum(-1), torch.full((len(here.counts_TK),), 30))
    width = max(here.ids_TK.shape[1], stored.ids_TK.shape[1])
    for name in ("ids_TK", "counts_TK"):
        one, other = (
            torch.nn.functional.pad(getattr(rows, name), (0, width - rows.ids_TK.shape[1])) for rows in (here, stored)
        )
        assert torch.equal(one, other)
    # 255 steps, fine near zero: off by at most 1.1 % of what is stored and 1/25 more.
    off_T = (stored.entropy_T - here.entropy_T).abs()
    assert float((off_T - 0.0111 * (here.entropy_T + 1 / 25)).max()) < 1e-5


@torch.no_grad()
def test_dense_rows_project_to_transformers_logits(teacher: Teacher, tokens: TokenStore, teacher_folder: Path) -> None:
    asked = [Piece(0, 0, 6), Piece(1, 2, 30), Piece(3, 1, 9)]
    source = live(teacher, tokens, DenseSignal(temperature=2.0))
    rows = source.rows(asked)
    assert isinstance(rows, DenseRows)
    assert rows.temperature == 2.0
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    expected = []
    for piece in asked:
        ids = torch.from_numpy(tokens.document(piece.document)[: piece.stop].astype(np.int64))[None]
        assert ids.shape[1] <= CONTEXT.window
        expected.append(model(input_ids=ids).logits[0, piece.start :])
    torch.testing.assert_close(rows.hidden_TE @ rows.head_VE.T, torch.cat(expected), rtol=1e-5, atol=2e-5)


def test_a_live_teacher_reads_a_window_once(teacher: Teacher, tokens: TokenStore) -> None:
    source = live(teacher, tokens, TOPK)
    longest = int(np.argmax(tokens.lengths))
    source.rows([Piece(longest, 0, 10), Piece(longest, 10, 48)])
    assert source.tokens_scored == 48  # the first window, whole
    source.rows([Piece(longest, 48, 49)])
    assert source.tokens_scored == 96  # the second window: 16 positions again, 32 new ones
    assert source.bytes_read == 0


def test_live_rows_depend_on_their_batch_alone(teacher: Teacher, tokens: TokenStore) -> None:
    """Whatever was read before: so a resumed run sees the very rows, bit for bit, that it would have seen."""
    everything: Sequence[Piece] = [Piece(index, 0, int(length) - 1) for index, length in enumerate(tokens.lengths)]
    used, fresh = live(teacher, tokens, TOPK), live(teacher, tokens, TOPK)
    used.rows(everything)
    again, alone = used.rows(everything[:3]), fresh.rows(everything[:3])
    assert isinstance(again, TopKRows)
    assert isinstance(alone, TopKRows)
    assert again.log_probs_TK.equal(alone.log_probs_TK)
    assert again.ids_TK.equal(alone.ids_TK)


def test_a_teacher_without_a_plain_head_cannot_teach_live(teacher: Teacher, tokens: TokenStore) -> None:
    import dataclasses

    with pytest.raises(TeacherError, match="no plain head"):
        live(dataclasses.replace(teacher, head_VE=None), tokens, TOPK)
