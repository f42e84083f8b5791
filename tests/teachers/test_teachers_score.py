"""What a teacher says of a document against transformers' own forward on the same tokens."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from limbeck.errors import TeacherError
from limbeck.spec.signal import TopKSignal
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.cache import score_documents
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.score import batches, passages, score_logits

CPU = torch.device("cpu")
VOCAB = 300
# float32 logits of size about 10 through two layers of width 32: a few ulp (1e-6 each) of summation order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def load(folder: Path) -> Teacher:
    return load_teacher(
        HuggingFaceTeacher(model=str(folder), dtype="float32", context=Context(window=64, overlap=16)), device=CPU
    )


def documents(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(2, VOCAB, length).astype(np.uint32) for length in lengths]


def scored(teacher: Teacher, texts: Sequence[np.ndarray], *, context: Context) -> list[Tensor]:
    """float64 log-probs [rows, V] of every document, NaN where a row was never given; a row given twice fails."""
    found = [torch.full((len(tokens) - 1, teacher.vocab_size), math.nan, dtype=torch.float64) for tokens in texts]
    for passage, first, logits_RV in score_logits(teacher, texts, passages([len(tokens) for tokens in texts], context=context)):
        rows = found[passage.document][first : first + len(logits_RV)]
        assert rows.isnan().all()
        rows.copy_(logits_RV.double().log_softmax(-1))
    return found


@torch.no_grad()
def by_transformers(folder: Path, tokens: np.ndarray, *, window: int, overlap: int) -> Tensor:
    """The policy spelt out position by position: position t is seen from the last window start that still gives it context."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows, step = [], window - overlap
    for position in range(len(tokens) - 1):
        start = 0 if position < window else ((position - window) // step + 1) * step
        visible = torch.from_numpy(tokens[start : position + 1].astype(np.int64))[None]
        rows.append(model(input_ids=visible).logits[0, -1].double().log_softmax(-1))
    return torch.stack(rows)


def test_a_document_that_fits_is_one_forward(teacher_folder: Path) -> None:
    (tokens,) = documents(40)
    (found,) = scored(load(teacher_folder), [tokens], context=Context(window=64, overlap=16))
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1].double().log_softmax(-1)
    torch.testing.assert_close(found, whole, **CLOSE)


@pytest.mark.parametrize(("length", "window", "overlap"), [(90, 32, 12), (65, 32, 0), (33, 32, 31), (34, 32, 8)])
def test_a_long_document_is_read_in_windows(teacher_folder: Path, length: int, window: int, overlap: int) -> None:
    (tokens,) = documents(length)
    (found,) = scored(load(teacher_folder), [tokens], context=Context(window=window, overlap=overlap))
    expected = by_transformers(teacher_folder, tokens, window=window, overlap=overlap)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_rows_do_not_depend_on_the_company(teacher_folder: Path) -> None:
    teacher, context = load(teacher_folder), Context(window=48, overlap=16)
    texts = documents(5, 200, 2, 47, 48, 49, 50, 120)
    together = scored(teacher, texts, context=context)
    backwards = scored(teacher, texts[::-1], context=context)[::-1]
    for tokens, one, other in zip(texts, together, backwards, strict=True):
        (alone,) = scored(teacher, [tokens], context=context)
        assert len(alone) == len(tokens) - 1
        torch.testing.assert_close(one, alone, **CLOSE)
        torch.testing.assert_close(other, alone, **CLOSE)


def test_groups_hold_every_window_once_within_the_limit() -> None:
    work = passages([3, 700, 41, 90, 2, 300], context=Context(window=100, overlap=20))
    groups = batches(work, batch_tokens=256)
    assert sorted(map(repr, (passage for group in groups for passage in group))) == sorted(map(repr, work))
    for group in groups:
        longest = max(passage.window.stop - passage.window.start for passage in group)
        assert longest * len(group) <= 256
    assert len(groups) < len(work)


def test_every_document_has_one_row_fewer_than_tokens(teacher_folder: Path) -> None:
    texts = documents(2, 3, 48, 49, 130)
    context = Context(window=48, overlap=16)
    rows = score_documents(
        load(teacher_folder), texts, ids=[f"{index:032x}" for index in range(5)], signals=[TopKSignal(k=3)], context=context
    )
    assert [len(taken.ids_TK) for (taken,) in rows] == [1, 2, 47, 48, 129]


def test_nan_names_document_and_position(teacher_folder: Path) -> None:
    """Position 70 is first read by the window over [32, 80), whose rows begin at 48."""
    teacher = load(teacher_folder)
    texts = [np.minimum(tokens, 298).astype(np.uint32) for tokens in documents(20, 90)]
    texts[1][70] = 299
    teacher.model.get_input_embeddings().weight.data[299, 0] = math.nan
    with pytest.raises(TeacherError, match=f"document {'b' * 32}, position 48:"):
        score_documents(
            teacher, texts, ids=["a" * 32, "b" * 32], signals=[TopKSignal(k=3)], context=Context(window=48, overlap=16)
        )


def gemma(folder: Path, *, std: float) -> Path:
    """A tiny Gemma 2: its logits are 30 tanh(x / 30), so no product with one matrix gives them."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=16,
        final_logit_softcapping=30.0,
        initializer_range=std,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_soft_capped_logits_are_taken_from_the_model(tmp_path: Path, std: float) -> None:
    """Also where the cap hardly bends: near zero 30 tanh(x / 30) and x differ by x^3 / 2700."""
    folder = gemma(tmp_path / "gemma", std=std)
    teacher = load(folder)
    assert teacher.head_VE is None
    (tokens,) = documents(60)
    (found,) = scored(teacher, [tokens], context=Context(window=32, overlap=8))
    torch.testing.assert_close(found, by_transformers(folder, tokens, window=32, overlap=8), **CLOSE)


def test_a_biased_head_is_not_plain(tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    model = PhiForCausalLM(
        PhiConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    )
    model.lm_head.bias.data.normal_(std=1e-3)
    model.save_pretrained(tmp_path)
    teacher = load(tmp_path)
    assert teacher.head_VE is None
    (tokens,) = documents(12)
    (found,) = scored(teacher, [tokens], context=Context(window=32, overlap=8))
    torch.testing.assert_close(found, by_transformers(tmp_path, tokens, window=32, overlap=8), **CLOSE)


def test_a_plain_head_is_found(teacher_folder: Path) -> None:
    teacher = load(teacher_folder)
    assert teacher.head_VE is not None
    assert tuple(teacher.head_VE.shape) == (VOCAB, 32)
    assert teacher.vocab_size == VOCAB


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="nowhere") as caught:
        load(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_window_longer_than_the_teacher_reads_is_refused(teacher_folder: Path) -> None:
    """The tiny teacher has 256 positions."""
    fits = HuggingFaceTeacher(model=str(teacher_folder), context=Context(window=256, overlap=0))
    assert load_teacher(fits, device=CPU).vocab_size == VOCAB
    with pytest.raises(TeacherError, match=r"context\.window=257 .* 256"):
        load_teacher(fits.model_copy(update={"context": Context(window=257, overlap=0)}), device=CPU)


def test_an_unreachable_hub_id_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match="limbeck-tests/absent") as caught:
        load_teacher(HuggingFaceTeacher(model="limbeck-tests/absent"), device=CPU)
    assert "\n" not in str(caught.value)
