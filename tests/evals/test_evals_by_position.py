"""Losses by position, against a float64 computation of their own, token by token."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import make_teacher, prose
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.errors import LimbeckError
from limbeck.evals.by_position import buckets, evaluate_by_position
from limbeck.evals.by_position_figure import curves
from limbeck.spec.data import FileTexts
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.students import hf
from limbeck.students.build import build

WORDS = (30, 180, 400, 9)
SPEC = Olmo3Student(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
    sliding_window=8,
    full_attention_every=2,
    init_std=0.4,
)


@pytest.fixture
def texts(tmp_path: Path) -> FileTexts:
    """Of very different lengths, the longest one longer than the window of the tests."""
    for index, words in enumerate(WORDS):
        (tmp_path / f"{index}.txt").write_text(prose(index, words), encoding="utf-8")
    return FileTexts(paths=(f"{tmp_path}/*.txt",))


def student(folder: Path, *, seed: int, tokenizer: Path) -> str:
    """Made for 64 tokens."""
    hf.save(build(SPEC, vocab_size=300, seed=seed), spec=SPEC, folder=folder, max_positions=64, tokenizer_folder=tokenizer)
    return str(folder)


def by_hand(model: str, texts: FileTexts, *, window: int) -> list[list[float]]:
    """Nats of each document's text tokens, token by token: everything before it is read, in float64, and nothing else."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    opened = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    found = []
    for path in sorted(Path(texts.paths[0]).parent.glob("*.txt")):
        ids = [0, *tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            log_probs_TV = opened(torch.tensor([ids[: window + 1]])).logits[0].log_softmax(-1)
        found.append([-float(log_probs_TV[place, ids[place + 1]]) for place in range(min(window, len(ids) - 1))])
    return found


def test_buckets_are_means_over_their_positions(texts: FileTexts, teacher_folder: Path, tmp_path: Path) -> None:
    """Far beyond the 64 tokens that the students were made for."""
    window = 300
    models = {name: student(tmp_path / name, seed=seed, tokenizer=teacher_folder) for seed, name in enumerate(("one", "two"))}
    result = evaluate_by_position(models, texts=texts, window=window)
    assert (result.window, result.documents, result.longest) == (300, 4, {"one": 64, "two": 64})
    nats = {name: by_hand(model, texts, window=window) for name, model in models.items()}
    for name, found in result.models.items():
        assert [(bucket.first, bucket.stop) for bucket in found] == [(0, 64), (64, 128), (128, 256), (256, 512)]
        for bucket in found:
            inside = [document[bucket.first : bucket.stop] for document in nats[name]]
            first = [document[bucket.first : bucket.stop] for document in nats["one"]]
            tokens = sum(map(len, inside))
            assert (bucket.tokens, bucket.documents) == (tokens, sum(bool(document) for document in inside))
            mean = math.fsum(map(math.fsum, inside)) / tokens
            assert bucket.nats.value == pytest.approx(mean, abs=1e-5)
            if name == "one":
                assert bucket.difference is None
            else:
                assert bucket.difference is not None
                assert bucket.difference.value == pytest.approx(mean - math.fsum(map(math.fsum, first)) / tokens, abs=1e-5)
    assert sum(bucket.tokens for bucket in result.models["one"]) == sum(map(len, nats["one"]))
    assert (
        result.models["one"][-1].stop == 512 and result.models["one"][-1].tokens == sum(len(d[256:]) for d in nats["one"]) > 0
    )


def test_intervals_are_over_documents() -> None:
    """Student's t of equally long documents, from outside; the paired difference of a constant shift has no width."""
    rng = np.random.default_rng(0)
    documents = [np.repeat(value, 64) for value in rng.normal(3.0, 0.5, size=200)]
    (bucket,) = buckets(documents)
    half = 1.96 * 0.5 / math.sqrt(200)
    assert bucket.nats.half_width == pytest.approx(half, rel=0.15)
    (shifted,) = buckets([document + 0.25 for document in documents], beside=documents)
    assert shifted.difference is not None
    assert (shifted.difference.low, shifted.difference.value, shifted.difference.high) == pytest.approx((0.25, 0.25, 0.25))
    assert shifted.nats.value == pytest.approx(bucket.nats.value + 0.25)


def test_longer_documents_weigh_more() -> None:
    """A mean over tokens: 10 tokens at 1 nat and 30 at 2."""
    first, second = buckets([np.full(10, 1.0), np.full(30, 2.0), np.full(65, 4.0)])
    assert first.nats.value == pytest.approx((10 * 1 + 30 * 2 + 64 * 4) / 104)
    assert (second.tokens, second.documents, second.nats.value, second.nats.low) == (1, 1, 4.0, None)


def test_models_of_several_tokenizers_are_refused(texts: FileTexts, teacher_folder: Path, tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other", vocab_size=280)
    with pytest.raises(LimbeckError, match="b has another tokenizer than a"):
        evaluate_by_position({"a": str(teacher_folder), "b": str(other)}, texts=texts, window=32)


def test_positions_that_are_looked_up_end_where_they_end(texts: FileTexts, teacher_folder: Path, tmp_path: Path) -> None:
    """GPT-2's are a table: beyond its last row there is nothing to read."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt2"
    )
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "gpt2")
    assert evaluate_by_position({"gpt2": str(tmp_path / "gpt2")}, texts=texts, window=64).documents == 4
    with pytest.raises(LimbeckError, match=r"more than .*gpt2 can read"):
        evaluate_by_position({"gpt2": str(tmp_path / "gpt2")}, texts=texts, window=65)


def test_the_figure_has_a_curve_for_each_model() -> None:
    from matplotlib.figure import Figure

    from limbeck.evals.by_position import ByPosition

    one, two = [np.full(300, 2.0), np.full(300, 3.0)], [np.full(300, 1.0), np.full(300, 4.0)]
    result = ByPosition(300, 2, {"one": buckets(one), "two": buckets(two, beside=one)}, {"one": 64, "two": 300})
    draw, size = curves(result)
    figure = Figure(figsize=size)
    draw(figure)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["0-63", "64-127", "128-255", "256-511"]
    drawn = [container.lines[0].get_ydata().tolist() for container in left.containers]
    assert drawn == [[2.5] * 4, [2.5] * 4]
    assert [container.lines[0].get_ydata().tolist() for container in right.containers] == [[0.0] * 4]
    assert [text.get_text() for text in left.texts] == ["one was made\nfor 64"]
