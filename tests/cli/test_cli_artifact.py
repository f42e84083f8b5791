"""`limbeck artifact write` and `eval`, and reading in windows that slide: against float64 arithmetic, token by token."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from limbeck.data.prepare import prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.bits_per_byte import evaluate
from limbeck.spec.data import FileTexts
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.teacher import Context
from limbeck.students import hf
from limbeck.students.artifact import read_artifact
from limbeck.students.build import build
from limbeck.students.decoder import Decoder

Command = Callable[..., Any]
VOCABULARY = 300
SPEC = GolfStudent(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=48,
    exclusive_layers=1,
    bigram_buckets=64,
    bigram_size=16,
    ntk_length=None,
    softcap=3.0,
    vocab_size=VOCABULARY,
)
"""Its logits are large beside its softcap."""
COARSE = ("small_elements=100", "matrix_bits=3", "compression=zlib")


@pytest.fixture
def run(values: dict[str, Any], recipe_file: Path, teacher_folder: Path) -> Path:
    """The folder of a run that ended, as far as artifacts look at it; its recipe is `recipe_file`."""
    values |= {"student": SPEC.model_dump(mode="json"), "objective": {"kind": "ce"}}
    recipe_file.write_text(yaml.safe_dump(values), encoding="utf-8")
    student = build(SPEC, vocab_size=VOCABULARY, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    path = Path(values["output"]) / "runs" / "tiny"
    hf.save(student, spec=SPEC, folder=path / "student", max_positions=32, tokenizer_folder=teacher_folder)
    (path / "recipe.yaml").write_bytes(recipe_file.read_bytes())
    return path


@pytest.fixture
def heldout(teacher_folder: Path, texts_folder: Path) -> TokenStore:
    texts = FileTexts(paths=(f"{texts_folder}/heldout/*.txt",))
    return prepare_texts(texts, load_tokenizer(str(teacher_folder)), title="held-out")


@torch.no_grad()
def bits_by_document(student: Decoder, store: TokenStore, *, window: int, stride: int) -> list[float]:
    """Every text token by a forward pass of its own, that begins where its window does."""
    student, found = student.double(), []
    for index in range(len(store)):
        ids, nats = [int(token) for token in store.document(index)], []
        for position in range(len(ids) - 2):  # the end token has no bytes
            start = 0 if position < window else ((position - window) // stride + 1) * stride
            logits = student.logits(student(torch.tensor([ids[start : position + 1]])).hidden_BTD)[0, -1]
            nats.append(-float(logits.log_softmax(-1)[ids[position + 1]]))
        found.append(math.fsum(nats) / math.log(2))
    return found


@pytest.mark.parametrize(("window", "stride"), [(32, 32), (16, 4)])
def test_eval_measures_both_students_and_their_difference(
    limbeck: Command, run: Path, recipe_file: Path, tmp_path: Path, heldout: TokenStore, window: int, stride: int
) -> None:
    file = tmp_path / "student.limbeck"
    assert limbeck("artifact", "write", run, "-o", file, *COARSE).code == 0
    outcome = limbeck(
        "artifact", "eval", file, "--recipe", recipe_file, "--window", window, "--overlap", window - stride, "--json"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    students = (hf.load(run / "student")[0], read_artifact(file)[0])
    bits_before, bits_after = (np.array(bits_by_document(each, heldout, window=window, stride=stride)) for each in students)
    size = heldout.bytes_per_document
    assert found["bits_per_byte_before"] == pytest.approx(bits_before.sum() / size.sum(), rel=1e-5)
    assert found["bits_per_byte_after"] == pytest.approx(bits_after.sum() / size.sum(), rel=1e-5)
    by_document = (bits_after - bits_before) / size
    difference = found["difference"]
    assert difference["value"] == pytest.approx((bits_after - bits_before).sum() / size.sum(), rel=1e-3)
    # Of two documents one resample in four is the first twice, and one the second twice.
    assert (difference["low"], difference["high"]) == pytest.approx((by_document.min(), by_document.max()), rel=1e-3)
    assert abs(difference["value"]) > 1e-3
    assert (found["window"], found["overlap"], found["documents"]) == (window, window - stride, 2)
    lines = limbeck("artifact", "eval", file, "--recipe", recipe_file, "--run", run / "student").out.splitlines()
    assert any(line.startswith("difference: ") and "95% over documents" in line for line in lines)


def test_write_says_what_counts(limbeck: Command, run: Path, tmp_path: Path) -> None:
    outcome = limbeck("artifact", "write", run, "-o", tmp_path / "new" / "a", *COARSE, "--json")
    found = json.loads(outcome.out)
    assert found["weights_bytes"] == (tmp_path / "new" / "a").stat().st_size
    assert found["total_bytes"] == found["weights_bytes"] + found["code_bytes"]
    assert found["code_bytes"] == sum(Path(path).stat().st_size for path in found["code"])
    assert found["parameters"] == sum(parameter.numel() for parameter in hf.load(run / "student")[0].parameters())
    (tmp_path / "run.py").write_bytes(b"x" * 1000)
    own = json.loads(limbeck("artifact", "write", run, "-o", tmp_path / "b", "--code", tmp_path / "run.py", "--json").out)
    assert own["code_bytes"] == 1000
    assert own["weights_bytes"] > found["weights_bytes"]  # by default so small a student is kept in float16


def test_a_run_trained_to_be_rounded_is_rounded_so(limbeck: Command, run: Path, tmp_path: Path) -> None:
    """What is said on the command line goes first."""
    said = ("matrix_bits=3", "small_elements=100")
    limbeck("artifact", "write", run, "-o", tmp_path / "said", *said)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["quantisation_aware"] = {"matrix_bits": 3, "small_elements": 100}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    limbeck("artifact", "write", run, "-o", tmp_path / "trained")
    limbeck("artifact", "write", run, "-o", tmp_path / "other", "matrix_bits=4")
    said_bytes, trained, other = ((tmp_path / name).read_bytes() for name in ("said", "trained", "other"))
    assert said_bytes == trained
    assert len(other) > len(trained)


def test_what_is_wrong_is_one_line(limbeck: Command, run: Path, recipe_file: Path, tmp_path: Path) -> None:
    over = limbeck("artifact", "write", run, "-o", tmp_path / "a", "--limit", 100_000, *COARSE)
    assert over.code == 1
    assert "over the limit of 100,000" in over.complaint
    assert "the largest tensors, in bytes: model.embed_tokens.weight" in over.complaint
    assert not (tmp_path / "a").exists()
    wrong = limbeck("artifact", "write", run, "matrix_bit=3")
    assert (wrong.code, "did you mean 'matrix_bits'?" in wrong.complaint) == (2, True)
    assert "holds no config.json" in limbeck("artifact", "write", tmp_path).complaint
    assert limbeck("artifact", "write", run, "-o", tmp_path / "a").code == 0
    (run / "student").rename(run / "gone")
    for command in (("write", run), ("eval", tmp_path / "a", "--recipe", recipe_file)):
        assert "tiny is unfinished: `limbeck train" in limbeck("artifact", *command).complaint
    (run / "gone").rename(run / "student")
    assert "tiny.yaml is damaged, or no artifact" in limbeck("artifact", "eval", recipe_file, "--recipe", recipe_file).complaint
    other = SPEC.model_copy(update={"softcap": 4.0})
    hf.save(build(other, vocab_size=VOCABULARY, seed=0), spec=other, folder=tmp_path / "other", max_positions=32)
    complaint = limbeck("artifact", "eval", tmp_path / "a", "--recipe", recipe_file, "--run", tmp_path / "other").complaint
    assert "is not of the student in" in complaint
    overlap = limbeck("artifact", "eval", tmp_path / "a", "--recipe", recipe_file, "--overlap", 32)
    assert (overlap.code, "overlap=32 must be smaller than window=32" in overlap.complaint) == (2, True)


class _Pairs:
    """A reader that looks at one token: whatever the windows, a target has the same loss, and hardly two have the same."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.head_VE: Tensor | None = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(tokens_BT, VOCABULARY).float()

    def logits(self, tokens_BT: Tensor) -> Tensor:
        assert self.head_VE is not None
        return self.hidden(tokens_BT) @ self.head_VE.T


@pytest.mark.parametrize(("window", "stride"), [(16, 1), (16, 3), (16, 16), (7, 2), (500, 64)])
def test_sliding_windows_score_each_target_once(heldout: TokenStore, window: int, stride: int) -> None:
    """The published evaluation clips its last windows to one end, and counts what is there many times."""
    reader = _Pairs()
    assert reader.head_VE is not None
    log_p_VV = reader.head_VE.T.double().log_softmax(-1).numpy()
    found = evaluate(reader, heldout, context=Context(window=window, overlap=window - stride))
    for index, bits in enumerate(found.bits_by_document):
        ids = heldout.document(index)[:-1].astype(np.int64)
        assert bits == pytest.approx(-log_p_VV[ids[:-1], ids[1:]].sum() / math.log(2), rel=1e-5)


def test_a_stride_as_long_as_the_window_is_reading_in_chunks(heldout: TokenStore) -> None:
    student = build(SPEC.model_copy(update={"softcap": None}), vocab_size=VOCABULARY, seed=0).double()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))

    class Whole:
        device = torch.device("cpu")
        head_VE: Tensor | None = student.head_VD.detach()

        def hidden(self, tokens_BT: Tensor) -> Tensor:
            return student(tokens_BT).hidden_BTD

        def logits(self, tokens_BT: Tensor) -> Tensor:
            return student.logits(self.hidden(tokens_BT))

    found = evaluate(Whole(), heldout, context=Context(window=16, overlap=0))
    for index, bits in enumerate(found.bits_by_document):
        ids = torch.from_numpy(heldout.document(index).astype(np.int64))
        nats = []
        with torch.no_grad():
            for start in range(0, len(ids) - 2, 16):
                chunk, targets = ids[start : start + 16], ids[start + 1 : min(start + 17, len(ids) - 1)]
                log_p_TV = student.logits(student(chunk[None, : len(targets)]).hidden_BTD)[0].log_softmax(-1)
                nats.append(-float(log_p_TV.gather(1, targets[:, None]).sum()))
        assert bits == pytest.approx(math.fsum(nats) / math.log(2), rel=1e-6)
    slid = evaluate(Whole(), heldout, context=Context(window=16, overlap=12))
    assert abs(slid.bits_per_byte - found.bits_per_byte) > 1e-3
