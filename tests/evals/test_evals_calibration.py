"""Calibration by hand, by another counting, and against float64 arithmetic on transformers' own distributions."""

import json
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import ByHand, opened
from tiny_models import by_hand as by_hand_model
from tiny_world import make_teacher
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.errors import LimbeckError
from limbeck.evals.calibration import calibration_error, check, measure, reliability
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.calibration import Calibration


def by_hand(confidence: list[float], outcome: list[float], bins: int) -> float:
    """Guo et al. (arXiv 1706.04599), eq. 3, as written."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)]
        if members:
            gap = np.mean([outcome[i] for i in members]) - np.mean([confidence[i] for i in members])
            total += len(members) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 5, 21])
def test_it_is_the_papers_sum(bins: int) -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(400)
    for outcome in (generator.random(400) < confidence**2, generator.random(400)):
        expected = by_hand(confidence.tolist(), outcome.astype(float).tolist(), bins)
        assert calibration_error(confidence, outcome, bins=bins) == pytest.approx(expected, rel=1e-12)


def test_there_are_21_bins_unless_others_are_asked_for() -> None:
    right = np.array([1.0, 0.0])  # 20/21 = 0.9524 lies between 19/20 and 21/22
    assert calibration_error(np.array([0.953, 0.99]), right) == pytest.approx(abs(0.5 - 0.9715))
    assert calibration_error(np.array([0.951, 0.99]), right) == pytest.approx((0.049 + 0.99) / 2)
    assert calibration_error(np.array([0.951, 0.99]), right, bins=20) == pytest.approx(abs(0.5 - 0.9705))


def test_a_model_that_is_right_as_often_as_it_says_has_none() -> None:
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert calibration_error(confidence, right) == 0.0
    assert calibration_error(confidence, ~right) == pytest.approx(0.5)


def test_errors_in_a_bin_cancel_and_over_bins_they_do_not() -> None:
    confidence = np.array([0.5, 0.5, 0.9, 0.1])
    assert calibration_error(confidence, np.array([1.0, 0.0, 0.9, 0.1])) == 0.0
    assert calibration_error(confidence, np.array([0.5, 0.5, 0.4, 0.6])) == pytest.approx(0.25)


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    assert calibration_error(np.array([0.5, 0.4]), np.array([0.4, 0.5]), bins=2) == 0.0
    assert calibration_error(np.array([0.5, 0.6]), np.array([0.6, 0.5]), bins=2) == pytest.approx(0.1)


def test_confidences_of_zero_and_one_have_a_bin() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == 0.5


def positions(documents: int, gap: float, *, seed: int, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences, outcomes that are right less often by `gap` (and by a document's own `spread`), and documents of 50."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), 50)
    confidence = rng.uniform(0.3, 0.9, len(document))
    own = rng.normal(0, spread, documents)[document]
    return confidence, (rng.random(len(document)) < confidence - gap + own).astype(float), document


def test_bins_add_up_over_documents() -> None:
    confidence, outcome, document = positions(7, 0.1, seed=3)
    shuffled = np.random.default_rng(1).permutation(len(confidence))
    found = reliability(confidence[shuffled], outcome[shuffled], document_N=document[shuffled], bins=5)
    assert found.error.value == pytest.approx(by_hand(confidence.tolist(), outcome.tolist(), 5), rel=1e-12)
    assert found.count_DB.sum(1).tolist() == [50] * 7
    diagram = found.diagram
    assert diagram["count"][0] == 0 and diagram["confidence"][0] is None and diagram["outcome"][0] is None
    inside = (confidence > 0.6) & (confidence <= 0.8)
    assert diagram["count"][3] == inside.sum()
    assert diagram["confidence"][3] == pytest.approx(confidence[inside].mean())
    assert diagram["outcome"][3] == pytest.approx(outcome[inside].mean())


def test_the_interval_holds_the_true_error_as_often_as_it_says() -> None:
    """Documents differ; the error of all documents there are is 0.1. Of 40 draws about 38 hold it."""
    held = 0
    for seed in range(40):
        confidence, outcome, document = positions(60, 0.1, seed=seed, spread=0.15)
        found = reliability(confidence, outcome, document_N=document, bins=4).error
        assert found.low is not None and found.high is not None
        assert found.low <= found.value <= found.high
        held += found.low <= 0.1 <= found.high
    assert held >= 34


def test_one_that_is_calibrated_may_have_no_error() -> None:
    """Noise gives an error in every bin, and a percentile interval would begin at about that error; this one near 0."""
    found = []
    for seed in range(10):
        confidence, outcome, document = positions(40, 0.0, seed=seed)
        found.append(reliability(confidence, outcome, document_N=document).error)
    assert np.mean([each.value for each in found]) > 0.02
    assert np.mean([each.low for each in found]) < 0.005
    assert min(each.low for each in found) == 0


def test_one_document_has_no_interval() -> None:
    confidence, outcome, document = positions(1, 0.1, seed=0)
    assert reliability(confidence, outcome, document_N=document).error.low is None


@pytest.fixture
def texts(texts_folder: Path) -> FileTexts:
    return FileTexts(paths=(f"{texts_folder}/*/*.txt",))


@torch.no_grad()
def distributions(folder: Path, texts: FileTexts, *, window: int, overlap: int) -> tuple[list[np.ndarray], list[list[int]]]:
    """Of every document: float64 log-probs of transformers at every position, and the next tokens; the end token too."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rows, targets = [], []
    for path in sorted(glob(texts.paths[0])):
        ids = [0, *tokenizer(Path(path).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"], 1]
        said, place = [], 0
        while place < len(ids) - 1:
            start = max(0, place - overlap) if place else 0
            stop = min(start + window, len(ids) - 1)
            said.append(model(torch.tensor([ids[start:stop]])).logits[0, place - start :].log_softmax(-1).numpy())
            place = stop
        rows.append(np.concatenate(said))
        targets.append(ids[1:])
    return rows, targets


def test_all_of_it_is_float64_arithmetic_on_whole_distributions(teacher_folder: Path, texts: FileTexts, tmp_path: Path) -> None:
    """The model reads windows of 40 that overlap by 8, its teacher 48 by 16."""
    student = make_teacher(tmp_path / "student", seed=5)
    spec = Calibration(window=40, overlap=8, bins=9, agreement=(1, 3))
    metrics, details = measure(opened(student, texts, teacher=teacher_folder), spec)
    log_q, targets = distributions(student, texts, window=40, overlap=8)
    log_p, _ = distributions(teacher_folder, texts, window=48, overlap=16)
    target_N, log_q_NV, log_p_NV = np.concatenate(targets), np.concatenate(log_q), np.concatenate(log_p)
    q_NV, p_NV = np.exp(log_q_NV), np.exp(log_p_NV)
    top_q_N, top_p_N = q_NV.argmax(1), p_NV.argmax(1)
    confidence_q, confidence_p = q_NV.max(1).tolist(), p_NV.max(1).tolist()
    right = (top_q_N == target_N).astype(float)
    best_q, best_p = (np.argsort(-each, 1)[:, :3].tolist() for each in (q_NV, p_NV))
    expected = {
        "calibration_error": by_hand(confidence_q, right.tolist(), 9),
        "calibration_error_to_teacher_top1": by_hand(confidence_q, (top_q_N == top_p_N).astype(float).tolist(), 9),
        "distributional_error_student_bins": by_hand(confidence_q, confidence_p, 9),
        "distributional_error_teacher_bins": by_hand(confidence_p, confidence_q, 9),
        "accuracy": right.mean(),
        "confidence": np.mean(confidence_q),
        "entropy_nats": -(q_NV * log_q_NV).sum(1).mean(),
        "brier_score": np.square(q_NV - np.eye(300)[target_N]).sum(1).mean(),
        "kl_to_teacher_nats": (p_NV * (log_p_NV - log_q_NV)).sum(1).mean(),
        "reverse_kl_to_teacher_nats": (q_NV * (log_q_NV - log_p_NV)).sum(1).mean(),
        "agreement_top1": (top_q_N == top_p_N).mean(),
        "agreement_top3": np.mean([len({*one} & {*other}) / 3 for one, other in zip(best_q, best_p, strict=True)]),
    }
    assert {name: metric.value for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert all(metric.n == 10 and metric.low <= metric.value <= metric.high for metric in metrics.values())
    assert 0 < expected["agreement_top3"] < 1 and expected["distributional_error_student_bins"] > 0.01
    sums = [(np.exp(p) * (p - q)).sum() for p, q in zip(log_p, log_q, strict=True)]
    lengths = [float(len(each)) for each in targets]
    drawn = stats.bootstrap(
        (sums, lengths),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    kl = metrics["kl_to_teacher_nats"]
    assert (kl.low, kl.high) == pytest.approx((drawn.low, drawn.high), rel=0.01)
    assert kl.high - kl.low > 0.03
    diagrams = details["reliability"]
    assert set(diagrams) == {"data", "teacher_top1", "teacher_by_student", "student_by_teacher", "teacher_data"}
    assert diagrams["teacher_data"]["error"] == pytest.approx(
        by_hand(confidence_p, (top_p_N == target_N).astype(float).tolist(), 9), rel=1e-4
    )
    assert all(sum(each["count"]) == len(target_N) == details["positions"] for each in diagrams.values())
    assert (details["teacher"]["window"], details["teacher"]["overlap"]) == (48, 16), "of tiny_models.teacher_of"
    assert details["teacher"]["accuracy"] == pytest.approx((top_p_N == target_N).mean())
    assert details["teacher"]["entropy_nats"] == pytest.approx(-(p_NV * log_p_NV).sum(1).mean(), rel=1e-5)


def test_a_teacher_is_calibrated_to_itself(teacher_folder: Path, texts: FileTexts) -> None:
    metrics, _ = measure(opened(teacher_folder, texts, teacher=teacher_folder), Calibration(window=48, overlap=16))
    for name in ("kl_to_teacher_nats", "reverse_kl_to_teacher_nats", "distributional_error_student_bins"):
        assert metrics[name].value == pytest.approx(0, abs=1e-6)
    assert [metrics[f"agreement_top{k}"].value for k in (1, 5, 10)] == [1, 1, 1]


@pytest.mark.parametrize("to_teacher", [True, False])
def test_without_a_teacher_there_is_the_texts_part(teacher_folder: Path, texts: FileTexts, to_teacher: bool) -> None:
    model = opened(teacher_folder, texts, teacher=None if to_teacher else teacher_folder)
    metrics, details = measure(model, Calibration(to_teacher=to_teacher))
    assert set(metrics) == {"calibration_error", "accuracy", "confidence", "entropy_nats", "brier_score"}
    assert details["teacher"] is None and set(details["reliability"]) == {"data"}


def test_what_cannot_be_compared_is_known_before(teacher_folder: Path, texts: FileTexts, tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other", vocab_size=280)
    with pytest.raises(
        LimbeckError, match=r"tiny has 300 logits and its teacher .*other has 280; calibration.to_teacher=false"
    ):
        check(opened(teacher_folder, texts, teacher=other), Calibration())
    twin = make_teacher(tmp_path / "twin")
    state = json.loads((twin / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["merges"] = state["model"]["merges"][1:]
    (twin / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(LimbeckError, match=r"tiny and its teacher .*twin have different tokenizers"):
        check(opened(teacher_folder, texts, teacher=twin), Calibration())
    check(opened(teacher_folder, texts, teacher=twin), Calibration(to_teacher=False))
    model = opened(teacher_folder, texts, sequence_length=32)
    for spec, reason in (
        (Calibration(overlap=32), r"calibration: overlap=32 must be smaller than window=32"),
        (Calibration(window=257), r"calibration.window=257 is more than tiny can read: set it to 256 or less"),
        (Calibration(agreement=(301,)), r"calibration.agreement=301: there are but 300 tokens"),
    ):
        with pytest.raises(LimbeckError, match=reason):
            check(model, spec)
    with pytest.raises(LimbeckError, match="calibration reads held-out texts and tiny names none"):
        check(opened(teacher_folder, None), Calibration())


def test_a_distribution_that_is_none_is_an_error(teacher_folder: Path, texts: FileTexts) -> None:
    broken = ByHand(lambda tokens_T: torch.full((len(tokens_T), 300), float("nan")))
    with pytest.raises(LimbeckError, match=r"held-out document [0-9a-f]{32} is not finite"):
        measure(by_hand_model(broken, teacher_folder, texts), Calibration())
