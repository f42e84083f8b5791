"""Copying of models whose copying is known, and of a transformer against a float64 computation of its own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ByHand, by_hand, copier, opened, uniform
from transformers import AutoModelForCausalLM

from limbeck.errors import LimbeckError
from limbeck.evals.copying import check, induction, measure, read_twice
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.copying import Copying
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.huggingface import load_teacher


def quiet(amount: float, note: str = "") -> None:
    pass


@pytest.fixture
def texts(texts_folder: Path) -> FileTexts:
    return FileTexts(paths=(f"{texts_folder}/train/*.txt",))


def test_a_model_that_copies_exactly_is_always_right(teacher_folder: Path, texts: FileTexts) -> None:
    spec = Copying(lags=(2, 9, 30), sequences=5)
    metrics, details = measure(by_hand(ByHand(copier), teacher_folder, texts), spec)
    for lag in spec.lags:
        values = {name: metrics[f"{name}_lag{lag}"] for name in ("random_accuracy", "induction_accuracy")}
        assert all((each.value, each.low, each.high, each.n) == (1.0, 1.0, 1.0, 5) for each in values.values())
        # e^50 against 299 times 1: nothing is left. What is new is one of 300.
        assert metrics[f"random_nats_lag{lag}"].value == pytest.approx(0, abs=1e-6)
        for name in ("random_gain_nats", "induction_gain_nats"):
            assert metrics[f"{name}_lag{lag}"].value == pytest.approx(math.log(300), rel=1e-6)
    assert [each["lag"] for each in details["by_lag"]] == [2, 9, 30]
    assert details["by_lag"][2]["induction"]["nats"] == pytest.approx(0, abs=1e-6)


def test_a_model_to_which_all_is_alike_gains_nothing(teacher_folder: Path, texts: FileTexts) -> None:
    metrics, details = measure(by_hand(ByHand(uniform), teacher_folder, texts), Copying(lags=(12,), sequences=7))
    assert metrics["random_nats_lag12"].value == pytest.approx(math.log(300), rel=1e-6)
    for name in ("random_gain_nats", "random_accuracy_gain", "text_gain_nats", "induction_gain_nats"):
        assert metrics[f"{name}_lag12"].value == pytest.approx(0, abs=1e-6)
    (found,) = details["by_lag"]
    assert found["text"]["first_nats"] == found["text"]["second_nats"] == pytest.approx(math.log(300), rel=1e-6)
    # The first of 300 equals, the start token, is taken for the most probable one; it is never asked for.
    assert metrics["random_accuracy_lag12"].value == metrics["induction_accuracy_lag12"].value == 0


def test_both_readings_are_those_of_transformers_in_float64(teacher_folder: Path) -> None:
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=0))
    teacher = load_teacher(spec, device=torch.device("cpu"))
    blocks_SL = np.random.default_rng(0).integers(2, 300, size=(3, 11))
    found = read_twice(teacher, blocks_SL, start=0, advance=quiet)
    induced = induction(teacher, np.concatenate([blocks_SL, [[5], [6], [7]]], 1), start=0, advance=quiet)
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)

    def by_hand(ids: list[int], places: range) -> tuple[float, float]:
        nats, hits = [], []
        for place in places:  # of the token at `place`, by all that comes before it
            with torch.no_grad():
                log_q_V = model(torch.tensor([ids[:place]])).logits[0, -1].log_softmax(-1)
            nats.append(-float(log_q_V[ids[place]]))
            hits.append(int(log_q_V.argmax()) == ids[place])
        return sum(nats) / len(nats), sum(hits) / len(hits)

    for row, block in enumerate(blocks_SL.tolist()):
        twice = [0, *block, *block]
        first, second = by_hand(twice, range(2, 12)), by_hand(twice, range(13, 23))
        assert (found.first_nats_S[row], found.first_accuracy_S[row]) == pytest.approx(first, rel=1e-5)
        assert (found.second_nats_S[row], found.second_accuracy_S[row]) == pytest.approx(second, rel=1e-5)
        end, other = ([0, first, *block[1:], *block[:2]] for first in (block[0], 5 + row))
        assert (induced.nats_S[row], induced.accuracy_S[row]) == pytest.approx(by_hand(end, range(13, 14)), rel=1e-5)
        assert induced.unpaired_nats_S[row] == pytest.approx(by_hand(other, range(13, 14))[0], rel=1e-5)


def test_what_does_not_fit_into_the_window_is_left_out(teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that must not be asked about more than it reads."""

    def short(tokens_T: torch.Tensor) -> torch.Tensor:
        assert len(tokens_T) <= 20
        return uniform(tokens_T)

    model = by_hand(ByHand(short, longest=20), teacher_folder)
    metrics, details = measure(model, Copying(lags=(4, 10, 11), sequences=2, text=False))
    assert [each["lag"] for each in details["by_lag"]] == [4, 10] and details["by_lag"][0]["text"] is None
    assert "reads 20 tokens, so lags are [4, 10] without [11]" in capsys.readouterr().err
    assert not [name for name in metrics if name.startswith("text")]
    _, details = measure(model, Copying(lags=(64,), sequences=2, text=False))
    assert [each["lag"] for each in details["by_lag"]] == [10]
    with pytest.raises(LimbeckError, match="two blocks of two tokens need 4"):
        check(by_hand(ByHand(short, longest=3), teacher_folder), Copying(text=False))
    with pytest.raises(LimbeckError, match=r"copying.window=21 is more than by hand can read: set it to 20"):
        check(model, Copying(text=False, window=21))


def test_tokens_are_ordinary_ones_and_no_two_of_a_block_are_alike(teacher_folder: Path) -> None:
    seen: list[list[int]] = []

    def watched(tokens_T: torch.Tensor) -> torch.Tensor:
        seen.append(tokens_T.tolist())
        return uniform(tokens_T)

    model = by_hand(ByHand(watched), teacher_folder)
    _, details = measure(model, Copying(lags=(100,), sequences=3, text=False))
    assert details["vocabulary"] == 298  # without the start and the end
    doubled, pairs = seen[:3], seen[3:]
    for tokens in doubled:
        start, *block = tokens[:101]
        assert start == 0 and len(set(block)) == 100 and not set(block) & {0, 1}
        assert tokens[101:] == block[:-1]  # the last token predicts nothing that is asked for
    for tokens, unpaired in zip(pairs[:3], pairs[3:], strict=True):
        assert tokens[1] == tokens[-1] and len(set(tokens)) == 101 and len(tokens) == 102
        assert unpaired[2:] == tokens[2:] and len(set(unpaired)) == 102
    assert len({tuple(tokens) for tokens in doubled}) == 3
    first, seen = seen, []  # the closure appends to the new list
    measure(model, Copying(lags=(100,), sequences=3, text=False))
    assert seen == first
    measure(model, Copying(lags=(100,), sequences=3, text=False, seed=1))
    assert seen[9:] != first


def test_texts_are_read_twice_where_they_are_long_enough(teacher_folder: Path, texts: FileTexts, texts_folder: Path) -> None:
    model = opened(teacher_folder, texts)
    store = model.tokens(texts)
    texts_of_40 = [store.document(index)[1:-1].tolist() for index in range(len(store)) if store.lengths[index] >= 42]
    assert 1 < len(texts_of_40) < len(store)
    seen: list[list[int]] = []

    def watched(tokens_T: torch.Tensor) -> torch.Tensor:
        seen.append(tokens_T.tolist())
        return uniform(tokens_T)

    measure(by_hand(ByHand(watched), teacher_folder, texts), Copying(lags=(40,), sequences=64))
    read = [tokens for tokens in seen if len(tokens) == 80][64:]
    assert len(read) == len(texts_of_40)
    for tokens in read:
        block = tokens[1:41]
        assert tokens[41:] == block[:-1]
        assert any(block == text[at : at + 40] for text in texts_of_40 for at in range(len(text) - 39))
    shorter = FileTexts(paths=(f"{texts_folder}/heldout/1.txt",))
    with pytest.raises(LimbeckError, match=r"no held-out document of tiny has 100 tokens: set copying.lags"):
        check(opened(teacher_folder, shorter), Copying(lags=(100,)))
    with pytest.raises(LimbeckError, match=r"copying.text=true reads held-out texts and by hand names none"):
        check(by_hand(ByHand(uniform), teacher_folder), Copying())


def test_a_loss_that_is_no_number_is_an_error(teacher_folder: Path) -> None:
    broken = ByHand(lambda tokens_T: torch.full((len(tokens_T), 300), math.nan))
    with pytest.raises(LimbeckError, match="not finite"):
        measure(by_hand(broken, teacher_folder), Copying(lags=(4,), text=False))
