"""Rows of chunks against a plain float64 softmax over the teacher's own logits, chunk by chunk.

The student's tokenizer has other merges than the teacher's; texts hold digits, emoji and runs of white space.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import make_other_tokenizer, prose

from limbeck.data.counterpart import Counterpart, counterpart
from limbeck.data.packing import Piece
from limbeck.data.prepare import prepare_texts
from limbeck.data.token_bytes import token_bytes
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.signals.rows import concatenate, split, within_pieces
from limbeck.signals.types import ChunkRows
from limbeck.spec.data import FileTexts
from limbeck.spec.signal import ChunksSignal, TopKSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.cache import score_chunks, score_documents
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.live_chunks import LiveChunks

CONTEXT = Context(window=48, overlap=16)  # as the teacher of conftest
K = 12
EVERY = [
    ChunksSignal(),
    ChunksSignal(distribution="last", k=K),
    ChunksSignal(distribution="mean", k=K),
    ChunksSignal(distribution="index", k=K),
    ChunksSignal(distribution="bytes", k=400),
]
TEXTS = [prose(7, 90), "in 1812 and 2,024: 3.14159", "no 🙂 wonder\r\n\r\n  é nation", prose(3, 14), "x"]


@pytest.fixture(scope="module")
def own_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(make_other_tokenizer(tmp_path_factory.mktemp("own"))))


@pytest.fixture
def pair(own_tokenizer: Tokenizer, teacher_folder: Path, tmp_path: Path) -> Counterpart:
    return pair_of(own_tokenizer, load_tokenizer(str(teacher_folder)), tmp_path)


def pair_of(student: Tokenizer, teacher: Tokenizer, folder: Path) -> Counterpart:
    for index, text in enumerate(TEXTS):
        (folder / f"{index}.txt").write_bytes(text.encode("utf-8"))
    texts = FileTexts(paths=(f"{folder}/*.txt",))
    store = prepare_texts(texts, student, title="training")
    return counterpart(store, texts=texts, student=student, teacher=teacher)


def every(store: TokenStore) -> range:
    return range(len(store))


def log_probs_of(teacher: Teacher, tokens: np.ndarray) -> np.ndarray:
    """float64 [N, V] of a document: the windows read one by one, and a plain softmax."""
    rows, first = [], 0
    while first < len(tokens) - 1:
        start = max(first - (CONTEXT.overlap if first else 0), 0)
        stop = min(start + CONTEXT.window, len(tokens) - 1)
        with torch.no_grad():
            logits_TV = teacher.model(input_ids=torch.from_numpy(tokens[start:stop].astype(np.int64))[None]).logits[0]
        rows.append(logits_TV[first - start :].double().log_softmax(-1).numpy())
        first = stop
    return np.concatenate(rows)


def test_chunks_sum_to_the_sequence_on_both_sides(teacher: Teacher, pair: Counterpart) -> None:
    """Log-probs of chunks add up to the text's; the student's tokens and the teacher's are all in one chunk."""
    scored = score_chunks(teacher, pair, list(every(pair.own)), signals=[ChunksSignal()], context=CONTEXT)
    several = 0
    for index, (rows,) in enumerate(scored):
        theirs, own = pair.tokens.document(index), pair.own.document(index)
        assert len(rows.tokens_T) == len(own) - 1
        assert int(rows.tokens_T.sum()) == len(own) - 1
        assert int(rows.teacher_tokens_T.sum()) == len(theirs) - 1
        log_probs_NV = log_probs_of(teacher, theirs)
        expected = sum(log_probs_NV[at, theirs[at + 1]] for at in range(len(theirs) - 1))
        assert float(rows.log_prob_T.double().sum()) == pytest.approx(expected, rel=1e-6)
        several += int((rows.teacher_tokens_T > 1).sum())
    assert several > 20


def test_every_number_of_a_chunk(teacher: Teacher, pair: Counterpart) -> None:
    scored = score_chunks(teacher, pair, list(every(pair.own)), signals=EVERY, context=CONTEXT)
    content = token_bytes(load_tokenizer(str(teacher.files.model))).content
    anew = [token for token, bytes_ in enumerate(content) if bytes_[:1].isspace()] + [1]
    checked = 0
    for index, taken in enumerate(scored):
        theirs, chunks = pair.tokens.document(index), pair.alignment(index)
        log_probs_NV = log_probs_of(teacher, theirs)
        ends = {int(end) - 2: number for number, end in enumerate(chunks.student_ends_C)}
        for row in range(len(pair.own.document(index)) - 1):
            numbers = [
                [getattr(rows, name)[row].item() for name in ("tokens_T", "log_prob_T", "before_T", "boundary_T")]
                for rows in taken
            ]
            assert all(each == numbers[0] for each in numbers)  # whatever the distribution
            _check_head(taken[3], row, log_probs_NV[row].copy() if row < len(log_probs_NV) else None)
            if row not in ends:
                assert numbers[0] == [0, 0, 0, 0]
                assert all(bool((rows.log_probs_TK[row] == -math.inf).all()) and rows.tail_T[row] == 0 for rows in taken[1:3])
                continue
            chunk = ends[row]
            start, end = int(chunks.teacher_starts_C[chunk]), int(chunks.teacher_ends_C[chunk])
            labels = [log_probs_NV[at - 1, theirs[at]] for at in range(start, end)]
            after = np.log(np.exp(log_probs_NV[end - 1, anew]).sum()) if end - 1 < len(log_probs_NV) else 0.0
            width = int(chunks.student_ends_C[chunk] - chunks.student_starts_C[chunk])
            assert numbers[0] == pytest.approx([width, sum(labels), sum(labels[:-1]), after], abs=2e-4, rel=1e-5)
            _check_head(taken[1], row, log_probs_NV[end - 2])
            mean_V = log_probs_NV[start - 1 : end - 1].mean(0)
            _check_head(taken[2], row, mean_V - np.log(np.exp(mean_V).sum()))
            _check_bytes(taken[4], row, log_probs_NV[start - 1], content)
            checked += 1
    assert checked > 100


def _check_head(rows: ChunkRows, row: int, log_probs_V: np.ndarray | None) -> None:
    if log_probs_V is None:
        assert bool((rows.log_probs_TK[row] == -math.inf).all())
        assert rows.tail_T[row] == 0
        return
    best = np.sort(log_probs_V)[::-1][:K]
    np.testing.assert_allclose(rows.log_probs_TK[row].numpy(), best, atol=2e-4)
    np.testing.assert_allclose(log_probs_V[rows.ids_TK[row].numpy()], best, atol=2e-4)
    assert rows.tail_T[row].item() == pytest.approx(1 - np.exp(best).sum(), abs=1e-4)


def _check_bytes(rows: ChunkRows, row: int, log_probs_V: np.ndarray, content: tuple[bytes, ...]) -> None:
    masses = np.zeros(257)
    for token, log_prob in enumerate(log_probs_V):
        if content[token]:
            masses[content[token][0]] += math.exp(log_prob)
    masses[256] = math.exp(log_probs_V[1])
    assert rows.ids_TK.shape[1] == 257
    found = np.zeros(257)
    found[rows.ids_TK[row].numpy()] = rows.log_probs_TK[row].exp().numpy()
    np.testing.assert_allclose(found, masses, atol=1e-5)
    assert rows.tail_T[row].item() == pytest.approx(math.exp(log_probs_V[0]), abs=1e-5)  # the start token stands for no text


def test_with_equal_tokenizers_chunks_are_tokens(teacher: Teacher, teacher_folder: Path, tmp_path: Path) -> None:
    same = load_tokenizer(str(teacher_folder))
    pair = pair_of(same, same, tmp_path)
    signals = [ChunksSignal(distribution="last", k=K), ChunksSignal(distribution="index", k=K)]
    scored = score_chunks(teacher, pair, list(every(pair.own)), signals=signals, context=CONTEXT)
    documents = [pair.own.document(index) for index in every(pair.own)]
    plain = score_documents(teacher, documents, ids=pair.own.ids, signals=[TopKSignal(k=K)], context=CONTEXT)
    for (last, index), (topk,) in zip(scored, plain, strict=True):
        assert bool((last.tokens_T == 1).all())
        assert bool((last.before_T == 0).all())
        for rows in (last, index):
            for name in ("ids_TK", "log_probs_TK", "tail_T"):
                assert torch.equal(getattr(rows, name), getattr(topk, name)), name


@pytest.mark.parametrize("signal", EVERY, ids=lambda signal: signal.distribution)
def test_live_rows_are_those_of_a_store_without_the_chunks_that_a_piece_cuts(
    teacher: Teacher, pair: Counterpart, signal: ChunksSignal
) -> None:
    written = [rows for (rows,) in score_chunks(teacher, pair, list(every(pair.own)), signals=[signal], context=CONTEXT)]
    longest = int(np.argmax(pair.own.lengths))
    last = int(pair.own.lengths[longest]) - 1
    cuts = [Piece(longest, start, min(start + 7, last)) for start in range(0, last, 7)]
    asked = [Piece(0, 0, 1), *cuts, Piece(1, 3, 9), *(Piece(index, 0, int(pair.own.lengths[index]) - 1) for index in (2, 4))]
    live = LiveChunks(teacher, pair, signal=signal, context=CONTEXT)
    found = live.rows(asked)
    assert isinstance(found, ChunkRows)
    sizes = [piece.stop - piece.start for piece in asked]
    stored = [split_at(written[piece.document], piece) for piece in asked]
    expected = within_pieces(concatenate(stored), sizes, keep_ids=signal.distribution == "index")
    for name in ("tokens_T", "teacher_tokens_T", "ids_TK"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("log_prob_T", "before_T", "boundary_T", "log_probs_TK", "tail_T"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
    whole = concatenate(stored)
    assert 0 < int((found.tokens_T > 0).sum()) < int((whole.tokens_T > 0).sum())
    assert live.tokens_scored < 3 * pair.tokens.num_rows


def split_at(rows: ChunkRows, piece: Piece) -> ChunkRows:
    length = len(rows.tokens_T)
    return split(rows, [piece.start, piece.stop - piece.start, length - piece.stop])[1]


def test_a_document_that_cannot_be_aligned_has_no_chunks(teacher: Teacher, pair: Counterpart) -> None:
    pair.lost_N[:] = True
    for (rows,) in score_chunks(teacher, pair, list(every(pair.own)), signals=[EVERY[3]], context=CONTEXT):
        assert not bool((rows.tokens_T > 0).any())
        assert bool((rows.log_probs_TK == -math.inf).all())
