"""The table of quantised teachers against float64 arithmetic on transformers' own logits."""

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import make_teacher, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from limbeck.data.prepare import prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.drawing import render_both
from limbeck.errors import LimbeckError, TeacherError
from limbeck.evals import quantisation as table_module
from limbeck.evals.quantisation import Table, compare, whole_text_ends
from limbeck.evals.quantisation_figure import forest
from limbeck.spec.data import FileTexts
from limbeck.spec.quantisation import quantisation_named
from limbeck.spec.teacher import Context, GGUFTeacher, HuggingFaceTeacher
from limbeck.teachers.huggingface import load_teacher
from limbeck.teachers.rounding import rounded

CPU = torch.device("cpu")
WINDOW, OVERLAP = 48, 16
CONTEXT = Context(window=WINDOW, overlap=OVERLAP)


@pytest.fixture
def spec_of(teacher_folder: Path) -> Callable[..., HuggingFaceTeacher]:
    def make(scheme: str | None = None, folder: Path = teacher_folder) -> HuggingFaceTeacher:
        quantisation = quantisation_named(scheme) if scheme is not None else None
        return HuggingFaceTeacher(model=str(folder), dtype="float32", context=CONTEXT, quantisation=quantisation)

    return make


@pytest.fixture
def texts(texts_folder: Path) -> FileTexts:
    return FileTexts(paths=(f"{texts_folder}/heldout/*.txt", f"{texts_folder}/train/[3-7].txt"))


@pytest.fixture
def heldout(texts: FileTexts, teacher_folder: Path) -> TokenStore:
    return prepare_texts(texts, load_tokenizer(str(teacher_folder)), title="held-out")


def rounded_by_hand(folder: Path, scheme: str) -> Any:
    """transformers' model with every layer's matrices rounded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.copy_(rounded(weight, quantisation_named(scheme)))  # type: ignore[arg-type]
    return model


@torch.no_grad()
def log_probs(model: Any, document: np.ndarray) -> Tensor:
    """float64 [rows, V], window by window."""
    rows, step, ids = [], WINDOW - OVERLAP, document.astype(np.int64)
    for first in [0, *range(WINDOW, len(ids) - 1, step)]:
        start = first - OVERLAP if first else 0
        read = torch.from_numpy(ids[start : min(start + WINDOW, len(ids) - 1)])[None]
        rows.append(model(input_ids=read).logits[0, first - start :].double().log_softmax(-1))
    return torch.cat(rows)


def found(spec_of: Callable[..., HuggingFaceTeacher], store: TokenStore, *schemes: str, ends: frozenset[str]) -> Table:
    return compare(spec_of(), {name: spec_of(name) for name in schemes}, store=store, ends=ends, device=CPU)


def test_every_number_is_that_of_the_whole_distributions(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, teacher_folder: Path
) -> None:
    some = frozenset(heldout.ids[:3])
    row = found(spec_of, heldout, "int4-g32", ends=some).rows[1]
    full = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    quantised = rounded_by_hand(teacher_folder, "int4-g32")
    kl, flips, entropies, changes, bits_p, bits_q, ends = [], [], [], [], 0.0, 0.0, []
    confidence, right, reference_confidence = [], [], []
    for index in range(len(heldout)):
        ids = heldout.document(index).astype(np.int64)
        log_p, log_q = log_probs(full, heldout.document(index)), log_probs(quantised, heldout.document(index))
        p, q = log_p.exp(), log_q.exp()
        kl.append((p * (log_p - log_q)).sum(-1))
        flips += (p.argmax(-1) != q.argmax(-1)).tolist()
        entropies += (-(q * log_q).sum(-1)).tolist()
        changes += ((p * log_p).sum(-1) - (q * log_q).sum(-1)).tolist()
        rows, following = torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])
        bits_p -= float(log_p[rows, following][:-1].sum()) / math.log(2)
        bits_q -= float(log_q[rows, following][:-1].sum()) / math.log(2)
        confidence += q.max(-1).values.tolist()
        reference_confidence += p.max(-1).values.tolist()
        right += (q.argmax(-1) == following).tolist()
        if heldout.ids[index] in some:
            ends.append((float(log_p[-1, 1]), float(log_q[-1, 1])))  # 1 is </s>
    num_bytes = heldout.bytes_per_document.sum()
    every = torch.cat(kl)
    assert row.bits_per_byte == pytest.approx(bits_q / num_bytes, rel=1e-5)
    assert row.bits_per_byte_change.value == pytest.approx((bits_q - bits_p) / num_bytes, rel=1e-3)
    assert row.kl_nats.value == pytest.approx(float(every.mean()), rel=1e-4)
    assert row.kl_nats.low is not None and row.kl_nats.high is not None
    by_document = [float(each.mean()) for each in kl]
    assert min(by_document) < row.kl_nats.low < row.kl_nats.value < row.kl_nats.high < max(by_document)
    assert row.kl_p99_nats == pytest.approx(float(np.quantile(every.numpy(), 0.99)), rel=1e-3)
    assert row.flips.value == pytest.approx(np.mean(flips))
    assert row.entropy_nats == pytest.approx(np.mean(entropies), rel=1e-5)
    assert row.entropy_change_nats.value == pytest.approx(np.mean(changes), rel=1e-3)
    for error, outcome in (
        (row.calibration_error, right),
        (row.calibration_error_to_reference, reference_confidence),
    ):
        bins = np.ceil(np.array(confidence) * 21)
        gaps = [np.abs(np.sum((np.array(outcome) - np.array(confidence))[bins == one])) for one in set(bins)]
        assert error == pytest.approx(np.sum(gaps) / len(bins), abs=1e-4)
    assert row.end_log_prob_nats == pytest.approx(np.mean([q for _, q in ends]), rel=1e-4)
    assert row.end_log_change_nats == pytest.approx(np.mean([q - p for p, q in ends]), rel=1e-3)
    assert row.end_log_error_nats == pytest.approx(np.mean([abs(q - p) for p, q in ends]), rel=1e-3)


def test_the_reference_is_no_distance_from_itself(spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore) -> None:
    table = found(spec_of, heldout, ends=frozenset())
    (row,) = table.rows
    assert (row.name, row.quantisation, row.simulated) == ("reference", "none", False)
    assert abs(row.kl_nats.value) < 1e-6
    assert row.flips.value == 0
    assert row.calibration_error_to_reference < 1e-5
    assert row.end_log_prob_nats is row.end_log_change_nats is row.end_log_error_nats is None
    assert (table.tokens, table.documents, table.ends) == (heldout.num_rows, len(heldout), 0)
    assert table.reference_was_quantised is None


def test_fewer_bits_are_farther_away_and_smaller(spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore) -> None:
    schemes = ["int8-g32", "int6-g32", "int4-g32", "int3-g32"]
    rows = found(spec_of, heldout, *schemes, ends=frozenset()).rows[1:]
    assert [row.name for row in rows] == schemes
    distances, sizes = [row.kl_nats.value for row in rows], [row.weights_bytes for row in rows]
    assert distances == sorted(distances) and distances[0] < distances[-1] / 100
    assert sizes == sorted(sizes, reverse=True)
    assert all(row.simulated and row.tokens_per_second > 0 for row in rows)


def test_logits_are_held_a_few_at_a_time(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(spec_of, heldout, "int4-g32", ends=frozenset()).rows[1]
    monkeypatch.setattr("limbeck.teachers.score.HEAD_ELEMENTS", {"cpu": 300 * 7})
    shapes: list[int] = []
    original = table_module._of_rows
    monkeypatch.setattr(table_module, "_of_rows", lambda *given: shapes.append(len(given[1])) or original(*given))
    parts = found(spec_of, heldout, "int4-g32", ends=frozenset()).rows[1]
    assert max(shapes) == 7
    assert parts.kl_nats.value == pytest.approx(whole.kl_nats.value, rel=1e-5)
    assert parts.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


def test_a_scheme_without_a_plain_head_is_read_all_the_same(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    expected = found(spec_of, heldout, "int4-g32", ends=frozenset()).rows[1]
    monkeypatch.setattr(
        table_module, "load_teacher", lambda *given, **named: dataclasses.replace(load_teacher(*given, **named), head_VE=None)
    )
    row = found(spec_of, heldout, "int4-g32", ends=frozenset()).rows[1]
    assert row.kl_nats.value == pytest.approx(expected.kl_nats.value, rel=1e-4)


def test_a_padded_vocabularys_minus_infinity_is_no_nan() -> None:
    infinity = float("inf")
    one = torch.tensor([[1.0, 2.0, -infinity]])
    values = dict(table_module._of_rows(one, torch.tensor([[2.0, 1.0, -infinity]]), torch.tensor([0])))
    p = math.exp(1) / (math.exp(1) + math.exp(2))
    assert float(values["kl_N"]) == pytest.approx(p * -1 + (1 - p) * 1, rel=1e-6)
    assert bool(values["flipped_N"])
    assert float(values["entropy_p_N"]) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-6)


def test_another_tokenizer_or_width_is_refused(
    spec_of: Callable[..., HuggingFaceTeacher],
    heldout: TokenStore,
    tmp_path: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smaller = make_teacher(tmp_path / "smaller", vocab_size=290)
    with pytest.raises(LimbeckError, match="other has another tokenizer"):
        compare(spec_of(), {"other": spec_of(folder=smaller)}, store=heldout, ends=frozenset(), device=CPU)
    wider = make_teacher(tmp_path / "wider", vocab_size=320)
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(wider)
    monkeypatch.setattr(table_module, "teacher_reference", None)  # said before it is asked for
    with pytest.raises(LimbeckError, match="wide has 320 logits"):
        compare(spec_of(), {"wide": spec_of(folder=wider)}, store=heldout, ends=frozenset(), device=CPU)


def test_what_is_wrong_with_an_arm_is_said_before_anything_is_read(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import PackageNotFoundError

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("read")

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(table_module, "teacher_reference", refuse)
    monkeypatch.setattr("limbeck.teachers.backends.version", absent)
    with pytest.raises(TeacherError, match="bnb-nf4 needs bitsandbytes"):
        found(spec_of, heldout, "int4-g32", "bnb-nf4", ends=frozenset())


def test_a_scheme_that_says_nan_is_named(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        teacher = load_teacher(*given, **named)
        if teacher.quantised:
            teacher.model.get_input_embeddings().weight[0] = float("nan")  # of the start token
        return teacher

    monkeypatch.setattr(table_module, "load_teacher", broken)
    table = found(spec_of, heldout, "int4-g32", ends=frozenset())
    assert [(row.name, row.why) for row in table.failed] == [
        ("int4-g32", "int4-g32: the logits on the held-out documents are not finite; use float32 or more bits")
    ]


def test_a_scheme_that_fails_late_leaves_the_others(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spec: Any, **named: Any) -> Any:
        if spec.quantisation is not None and spec.quantisation.slug == "int4-g32":
            raise TeacherError("a matrix too large")
        return load_teacher(spec, **named)

    monkeypatch.setattr(table_module, "load_teacher", broken)
    table = found(spec_of, heldout, "int8-g32", "int4-g32", "int3-g32", ends=frozenset())
    assert [row.name for row in table.rows] == ["reference", "int8-g32", "int3-g32"]
    assert [(row.name, row.why) for row in table.failed] == [("int4-g32", "a matrix too large")]


def test_one_teacher_is_held_at_a_time(
    spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    held: list[int] = []

    def watched(spec: Any, **named: Any) -> Any:
        held.append(len(alive))
        teacher = load_teacher(spec, **named)
        alive.add(teacher.model)
        if spec.quantisation is not None and spec.quantisation.slug == "int6-g32":
            raise TeacherError("late")
        return teacher

    monkeypatch.setattr(table_module, "load_teacher", watched)
    monkeypatch.setattr("limbeck.evals.reference.load_teacher", watched)
    found(spec_of, heldout, "int8-g32", "int6-g32", "int4-g32", ends=frozenset())
    assert held == [0] * 5  # before each is loaded: for the kept hidden states, the reference, three schemes


def narrow_teacher(folder: Path) -> Path:
    """Its rows of 48 weights are no blocks of 32."""
    make_tokenizer(folder)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, bos_token_id=0, eos_token_id=1, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        ("gguf-q4_k", "gguf-q4_k: .*rows of 48 weights are no whole blocks"),
        ("torchao-int4-g128", "torchao-int4-g128 computes on CUDA in bfloat16 only"),
    ],
)
def test_what_a_scheme_cannot_take_is_said_before_anything_is_read(
    spec_of: Callable[..., HuggingFaceTeacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, sentence: str
) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("read")

    monkeypatch.setattr(table_module, "teacher_reference", refuse)
    monkeypatch.setattr("limbeck.teachers.backends.version", lambda name: "1.0")
    folder = narrow_teacher(tmp_path / "narrow")
    (tmp_path / "x.txt").write_text("the state of the union.", encoding="utf-8")
    store = prepare_texts(FileTexts(paths=(str(tmp_path / "x.txt"),)), load_tokenizer(str(folder)), title="x")
    arms = {name: spec_of(name, folder=folder) for name in ("int4-g32", scheme)}
    with pytest.raises(TeacherError, match=sentence):
        compare(spec_of(folder=folder), arms, store=store, ends=frozenset(), device=CPU)


def test_a_gguf_file_has_its_own_size_and_is_simulated(
    spec_of: Callable[..., HuggingFaceTeacher],
    heldout: TokenStore,
    teacher_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The conversion is another test's: here the file stands for the tiny teacher's folder."""
    from limbeck.teachers import files

    path = tmp_path / "Tiny-Q4_0.gguf"
    path.write_bytes(b"x" * 12345)
    here = files.TeacherFiles("tiny-q4_0", str(teacher_folder), quantisation="gguf Q4_0")
    monkeypatch.setattr(files, "_converted", lambda gguf, *, name: here)
    arm = GGUFTeacher(path=str(path), dtype="float32", context=CONTEXT)
    row = compare(spec_of(), {str(path): arm}, store=heldout, ends=frozenset(), device=CPU).rows[1]
    assert (row.simulated, row.weights_bytes, row.quantised_share, row.quantisation) == (True, 12345, None, "gguf Q4_0")
    reference, other_dtype = compare(arm, {"float16": arm}, store=heldout, ends=frozenset(), device=CPU).rows
    assert not reference.simulated and not other_dtype.simulated
    assert reference.weights_bytes == other_dtype.weights_bytes > 12345


def test_only_the_last_piece_of_a_text_ends_it(texts_folder: Path, teacher_folder: Path) -> None:
    folder = texts_folder.parent / "cut"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("the state.\n\nthe union.\n\nthe people.", encoding="utf-8")
    (folder / "b.txt").write_text("the war.", encoding="utf-8")
    texts = FileTexts(paths=(f"{folder}/*.txt",), split_bytes=12)
    store = prepare_texts(texts, load_tokenizer(str(teacher_folder)), title="held-out")
    backend = AutoTokenizer.from_pretrained(teacher_folder)
    ends = whole_text_ends(texts)
    said = [backend.decode(store.document(index)[1:-1]) for index in range(len(store)) if store.ids[index] in ends]
    assert len(store) == 4
    assert sorted(said) == ["the people.", "the war."]
    uncut = texts.model_copy(update={"split_bytes": None})
    assert whole_text_ends(uncut) == frozenset(prepare_texts(uncut, load_tokenizer(str(teacher_folder)), title="x").ids)


def test_the_figure_has_a_line_for_every_scheme(spec_of: Callable[..., HuggingFaceTeacher], heldout: TokenStore) -> None:
    table = found(spec_of, heldout, "int8-g32", "int4-g32", ends=frozenset())
    draw, size = forest(table)
    picture = render_both(draw, size=size)[1].decode("utf-8")
    assert picture == render_both(draw, size=size)[1].decode("utf-8")
    from matplotlib.figure import Figure

    figure = Figure()
    draw(figure)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["int8-g32 (simulated)", "int4-g32 (simulated)"]
    assert [bar.get_width() for bar in right.patches] == [row.weights_bytes / 1e6 for row in table.rows[1:]]
    drawn = sorted(float(line.get_xdata()[0]) for line in left.lines if line.get_marker() == "s" and len(line.get_xdata()))
    assert drawn == sorted(row.kl_nats.value for row in table.rows[1:])
