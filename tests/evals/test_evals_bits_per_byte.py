"""Bits per byte and KL against float64 arithmetic on transformers' own logits, and Python's count of bytes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ByHand, by_hand, opened
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import LimbeckError, TeacherError
from limbeck.evals.bits_per_byte import check, evaluate, measure
from limbeck.evals.model import evaluate_model
from limbeck.evals.reference import teacher_reference
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.huggingface import load_teacher
from limbeck.train.train import train

CPU = torch.device("cpu")


@pytest.fixture
def recipe(values: dict[str, Any]) -> Recipe:
    """A student whose held-out documents are longer than its sequences, without a signal."""
    values |= {"objective": {"kind": "ce"}, "budget": {"kind": "steps", "amount": 3}}
    return parse(Recipe, values, source="test")


@pytest.fixture
def heldout(recipe: Recipe, teacher_folder: Path) -> TokenStore:
    return prepare(recipe.data, load_tokenizer(str(teacher_folder)))[1]


def texts_of(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((folder / "heldout").glob("*.txt"))]


@torch.no_grad()
def log_probs(folder: Path | str, text: str, *, tokenizer: Path, window: int, overlap: int) -> tuple[Tensor, list[int]]:
    """float64 log-probs [n - 1, V] of a document `<s> text </s>`, and its ids; one forward for every position."""
    ids = [0, *AutoTokenizer.from_pretrained(tokenizer)(text, add_special_tokens=False)["input_ids"], 1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows, step = [], window - overlap
    for position in range(len(ids) - 1):
        start = 0 if position < window else ((position - window) // step + 1) * step
        rows.append(model(input_ids=torch.tensor([ids[start : position + 1]])).logits[0, -1].double().log_softmax(-1))
    return torch.stack(rows), ids


def bits_and_bytes(
    folder: Path | str, texts: list[str], *, tokenizer: Path, window: int, overlap: int
) -> list[tuple[float, int]]:
    found = []
    for text in texts:
        rows, ids = log_probs(folder, text, tokenizer=tokenizer, window=window, overlap=overlap)
        predicted = [float(rows[place, ids[place + 1]]) for place in range(len(ids) - 2)]  # text tokens, not the end
        found.append((-math.fsum(predicted) / math.log(2), len(text.encode("utf-8"))))
    return found


def test_a_runs_number_is_that_of_its_saved_student(recipe: Recipe, texts_folder: Path, teacher_folder: Path) -> None:
    path = train(recipe)
    summary = open_run(path).summary
    assert summary is not None
    texts = texts_of(texts_folder)
    assert max(len(text.encode("utf-8")) for text in texts) > len(max(texts, key=len))  # some characters take two bytes
    expected = bits_and_bytes(path / "student", texts, tokenizer=path / "student", window=32, overlap=0)
    total = sum(bits for bits, _ in expected) / sum(size for _, size in expected)
    # Sums of a few hundred float32 nats, each good to about 1e-6.
    assert summary["bits_per_byte"] == pytest.approx(total, rel=1e-5)
    assert sorted(size for size, _ in summary["bits_per_byte_by_document"]) == sorted(size for _, size in expected)
    assert sorted(bits for _, bits in summary["bits_per_byte_by_document"]) == pytest.approx(
        sorted(bits for bits, _ in expected), rel=1e-5
    )
    assert summary["heldout_bytes"] == sum(size for _, size in expected)

    heldout = evaluate_model(
        str(path / "student"),
        texts=recipe.data.heldout,
        context=Context(window=32, overlap=0),
        teacher=recipe.teacher,
        device="cpu",
        dtype="float32",
    )
    assert heldout.bits_per_byte == pytest.approx(summary["bits_per_byte"], rel=1e-5)
    assert heldout.kl_to_teacher_nats == pytest.approx(summary["kl_to_teacher_nats"], rel=1e-4)
    assert (heldout.tokens, heldout.documents) == (summary["heldout_tokens"], len(texts))

    tokens = [len(AutoTokenizer.from_pretrained(teacher_folder)(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert summary["heldout_tokens"] == sum(tokens)


def test_the_kl_is_that_of_both_models_whole_distributions(recipe: Recipe, texts_folder: Path, teacher_folder: Path) -> None:
    """The student reads windows of 32, the teacher of 48 that overlap by 16: each speaks with its own context."""
    path = train(recipe)
    summary = open_run(path).summary
    assert summary is not None
    total, rows = 0.0, 0
    for text in texts_of(texts_folder):
        q_RV, _ = log_probs(path / "student", text, tokenizer=teacher_folder, window=32, overlap=0)
        p_RV, _ = log_probs(teacher_folder, text, tokenizer=teacher_folder, window=48, overlap=16)
        total += float((p_RV.exp() * (p_RV - q_RV)).sum())
        rows += len(p_RV)
    assert summary["kl_to_teacher_nats"] == pytest.approx(total / rows, rel=1e-5)
    (teacher_bits,) = {
        sum(bits for bits, _ in found) / sum(size for _, size in found)
        for found in [bits_and_bytes(teacher_folder, texts_of(texts_folder), tokenizer=teacher_folder, window=48, overlap=16)]
    }
    assert summary["teacher"]["bits_per_byte"] == pytest.approx(teacher_bits, rel=1e-5)


class Uniform:
    """A model to which all tokens are equal."""

    device = CPU
    head_VE = torch.zeros(300, 4)

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        return torch.ones(*tokens_BT.shape, 4)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        return torch.zeros(*tokens_BT.shape, 300)


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_a_uniform_model_needs_log2_v_bits_a_token(heldout: TokenStore, texts_folder: Path, window: int) -> None:
    found = evaluate(Uniform(), heldout, context=Context(window=window, overlap=0))
    num_bytes = sum(len(text.encode("utf-8")) for text in texts_of(texts_folder))
    num_tokens = int(heldout.lengths.sum()) - 2 * len(heldout)
    assert (found.tokens, found.bytes) == (num_tokens, num_bytes)
    assert found.bits_per_byte == pytest.approx(math.log2(300) * num_tokens / num_bytes, rel=1e-6)
    assert found.kl_to_teacher_nats is None


class Headless(Uniform):
    """The same, as a model whose logits are more than a product with one matrix."""

    head_VE = None  # type: ignore[assignment]


@pytest.mark.parametrize("reader", [Uniform(), Headless()], ids=["head", "headless"])
def test_the_kl_to_a_uniform_model_is_what_entropy_lacks(
    reader: Uniform, heldout: TokenStore, teacher_folder: Path, texts_folder: Path
) -> None:
    """KL(p || uniform) = ln V - H(p), over all positions, the one before the end token included."""
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16))
    found = evaluate(
        reader, heldout, context=Context(window=20, overlap=5), reference=teacher_reference(spec, heldout, device=CPU)
    )
    rows = [
        log_probs(teacher_folder, text, tokenizer=teacher_folder, window=48, overlap=16)[0] for text in texts_of(texts_folder)
    ]
    log_p_RV = torch.cat(rows)
    entropy_R = -(log_p_RV.exp() * log_p_RV).sum(-1)
    assert found.kl_to_teacher_nats == pytest.approx(math.log(300) - float(entropy_R.mean()), rel=1e-5)


@pytest.mark.parametrize(("window", "overlap"), [(48, 16), (20, 0), (9, 8)])
def test_long_documents_are_read_in_windows(
    heldout: TokenStore, teacher_folder: Path, texts_folder: Path, window: int, overlap: int
) -> None:
    teacher = load_teacher(
        HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16)), device=CPU
    )
    found = evaluate(teacher, heldout, context=Context(window=window, overlap=overlap))
    expected = bits_and_bytes(teacher_folder, texts_of(texts_folder), tokenizer=teacher_folder, window=window, overlap=overlap)
    assert found.bits_per_byte == pytest.approx(sum(b for b, _ in expected) / sum(s for _, s in expected), rel=1e-5)


def test_a_teacher_is_at_no_distance_from_itself(heldout: TokenStore, teacher_folder: Path) -> None:
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16))
    teacher = load_teacher(spec, device=CPU)
    reference = teacher_reference(spec, heldout, device=CPU)
    assert reference is not None
    found = evaluate(teacher, heldout, context=spec.context, reference=reference)
    assert found.kl_to_teacher_nats == pytest.approx(0.0, abs=1e-6)
    assert found.bits_per_byte == pytest.approx(reference.bits_per_byte, rel=1e-6)
    again = teacher_reference(spec, heldout, device=CPU)  # from the cache
    assert again is not None
    assert torch.equal(again.hidden_RE, reference.hidden_RE)
    other_context = spec.model_copy(update={"context": Context(window=16, overlap=0)})
    other = teacher_reference(other_context, heldout, device=CPU)
    assert other is not None
    assert not torch.equal(other.hidden_RE, reference.hidden_RE)


def test_a_reference_is_made_once(heldout: TokenStore, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16))
    assert teacher_reference(spec, heldout, device=CPU) is not None

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the teacher is loaded again")

    monkeypatch.setattr("limbeck.evals.reference.load_teacher", refuse)
    assert teacher_reference(spec, heldout, device=CPU) is not None


def test_a_teacher_without_distributions_has_no_reference(heldout: TokenStore, teacher_folder: Path, tmp_path: Path) -> None:
    spec = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16))
    teacher = load_teacher(spec, device=CPU)
    poisoned = int(heldout.document(1)[2])
    teacher.model.get_input_embeddings().weight.data[poisoned] = math.nan
    with pytest.raises(TeacherError, match=r"held-out document [0-9a-f]{32}"):
        teacher_reference(spec, heldout, device=CPU, teacher=teacher)


def test_a_student_that_says_nan_is_an_error(heldout: TokenStore) -> None:
    class Broken(Uniform):
        head_VE = torch.full((300, 4), math.nan)

    with pytest.raises(LimbeckError, match=f"held-out document {heldout.ids[0]}"):
        evaluate(Broken(), heldout, context=Context(window=64, overlap=0))


def test_another_tokenizer_gives_bits_but_no_kl(tmp_path: Path, teacher_folder: Path, texts_folder: Path) -> None:
    """A byte-level twin of the teacher with a smaller vocabulary: more tokens, the same bytes."""
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    state = tokenizer.backend_tokenizer.to_str()
    import json

    changed = json.loads(state)
    changed["model"]["merges"] = changed["model"]["merges"][:0]
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer_config.json"):
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes((teacher_folder / name).read_bytes())
    (other / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    texts = FileTexts(paths=(f"{texts_folder}/heldout/*.txt",))
    teacher = HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=Context(window=48, overlap=16))
    found = evaluate_model(
        str(other), texts=texts, context=Context(window=64, overlap=0), teacher=teacher, device="cpu", dtype="float32"
    )
    num_bytes = sum(len(text.encode("utf-8")) for text in texts_of(texts_folder))
    assert found.kl_to_teacher_nats is None
    assert found.tokens == found.bytes == num_bytes  # without merges a token is a byte
    expected = bits_and_bytes(other, texts_of(texts_folder), tokenizer=other, window=64, overlap=0)
    assert found.bits_per_byte == pytest.approx(sum(bits for bits, _ in expected) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "limbeck-tests/nowhere"])
def test_a_model_that_is_not_there_is_one_line(model: str, texts_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    texts = FileTexts(paths=(f"{texts_folder}/heldout/*.txt",))
    with pytest.raises(LimbeckError, match="nowhere") as caught:
        evaluate_model(model, texts=texts, context=Context(), teacher=None, device="cpu")
    assert "\n" not in str(caught.value)


def test_an_empty_document_has_no_say(heldout: TokenStore) -> None:
    """A document of start and end alone has a row, but no text: nothing of it is counted."""
    empty = TokenStore(
        path=heldout.path,
        tokens=np.concatenate([np.array([0, 1], dtype=np.uint32), np.asarray(heldout.tokens)]),
        offsets=np.concatenate([[0], heldout.offsets + 2]),
        bytes_per_document=np.concatenate([[0], heldout.bytes_per_document]),
        ids=("0" * 32, *heldout.ids),
        tokenizer_fingerprint=heldout.tokenizer_fingerprint,
    )
    context = Context(window=16, overlap=4)
    assert (
        evaluate(Uniform(), empty, context=context).bits_per_byte == evaluate(Uniform(), heldout, context=context).bits_per_byte
    )


WEIGHTS_V = torch.rand(300, generator=torch.Generator().manual_seed(0)) + 0.5


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), window=st.integers(1, 50), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_text_token_counts_once_however_it_is_read(lengths: list[int], window: int, data: st.DataObject) -> None:
    """A model that says the same everywhere: tokens cost what they cost, so one that is left out or read twice shows."""
    overlap = data.draw(st.integers(0, window - 1))
    rng = np.random.default_rng(sum(lengths))
    documents = [np.array([0, *rng.integers(2, 300, length), 1], dtype=np.uint32) for length in lengths]
    store = TokenStore(
        path=Path(),
        tokens=np.concatenate(documents),
        offsets=np.concatenate([[0], np.cumsum([len(document) for document in documents])]),
        bytes_per_document=np.array([length + 1 for length in lengths]),
        ids=tuple(f"{index:032x}" for index in range(len(lengths))),
        tokenizer_fingerprint="",
    )
    reader = ByHand(lambda tokens_T: -WEIGHTS_V.expand(len(tokens_T), 300))
    found = evaluate(reader, store, context=Context(window=window, overlap=overlap))
    nats_V = WEIGHTS_V.double() + torch.logsumexp(-WEIGHTS_V.double(), 0)
    for document, bits in zip(documents, found.bits_by_document, strict=True):
        expected = math.fsum(nats_V[document[1:-1].astype(np.int64)].tolist()) / math.log(2)
        assert bits == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert found.tokens == sum(lengths)


@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (32, 12), (10, 9)])
def test_domains_are_measured_alone_and_together(teacher_folder: Path, texts_folder: Path, window: int, overlap: int) -> None:
    """Of a document in two domains each has its own, and all of them one."""
    long, both = texts_folder / "train" / "4.txt", texts_folder / "train" / "0.txt"
    domains = {"long-ones": [long, both], "short": [both, texts_folder / "train" / "1.txt"]}
    spec = BitsPerByte(
        window=window,
        overlap=overlap,
        domains={name: FileTexts(paths=tuple(map(str, paths))) for name, paths in domains.items()},
    )
    metrics, details = measure(opened(teacher_folder, None), spec)

    def expected(paths: list[Path]) -> float:
        texts = [path.read_text(encoding="utf-8") for path in paths]
        found = bits_and_bytes(teacher_folder, texts, tokenizer=teacher_folder, window=window, overlap=overlap)
        return sum(bits for bits, _ in found) / sum(size for _, size in found)

    assert metrics["bits_per_byte_long-ones"].value == pytest.approx(expected(domains["long-ones"]), rel=1e-5)
    assert metrics["bits_per_byte_short"].value == pytest.approx(expected(domains["short"]), rel=1e-5)
    together = [long, both, texts_folder / "train" / "1.txt"]
    assert metrics["bits_per_byte"].value == pytest.approx(expected(together), rel=1e-5)
    assert [metrics[name].n for name in ("bits_per_byte", "bits_per_byte_long-ones")] == [3, 2]
    assert details["bytes"] == sum(len(path.read_bytes()) for path in together)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    assert details["tokens"] == sum(len(tokenizer.tokenize(path.read_text(encoding="utf-8"))) for path in together)
    bits = math.fsum(each for _, each in details["by_document"].values())
    assert bits / details["bytes"] == pytest.approx(metrics["bits_per_byte"].value, rel=1e-12)


def test_texts_that_the_model_cannot_read_are_known_before(teacher_folder: Path, texts_folder: Path) -> None:
    texts = FileTexts(paths=(f"{texts_folder}/heldout/*.txt",))
    for model, spec, reason in (
        (opened(teacher_folder, texts), BitsPerByte(window=300), "bits_per_byte.window=300 is more than tiny can read"),
        (opened(teacher_folder, texts), BitsPerByte(window=8, overlap=8), "bits_per_byte: overlap=8 must be smaller"),
        (opened(teacher_folder, None), BitsPerByte(), "bits_per_byte reads held-out texts and tiny names none"),
        (opened(teacher_folder, None), BitsPerByte(domains={"a": FileTexts(paths=("/nowhere/*",))}), "/nowhere/"),
    ):
        with pytest.raises(LimbeckError, match=reason):
            check(model, spec)
    small = ByHand(lambda tokens_T: torch.zeros(len(tokens_T), 299))
    small.vocab_size = int(opened(teacher_folder, texts).tokens(texts).tokens.max())
    with pytest.raises(LimbeckError, match=f"does not fit by hand: it gives ids up to {small.vocab_size}, and the model knows"):
        check(by_hand(small, teacher_folder, texts), BitsPerByte())
