"""The loss and gradient of a whole step where the answer is known: other shapes, a one-hot teacher, a student taught by itself.

All through the pieces of the loop: `open_setup`, the loader, `batch_loss`. A digit is a token of its own, so a text of 31 of
them is a document of 33 tokens, 32 positions: sequences of 32 cut no document.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_world import make_teacher, make_tokenizer
from torch import Tensor

from limbeck.runs import open_run
from limbeck.signals.types import TopKRows
from limbeck.signals.writer import StoreWriter
from limbeck.spec.base import parse
from limbeck.spec.load import load_study
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import TopKSignal
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.study.run import run_study
from limbeck.study.stores import write_recipe_stores
from limbeck.teachers.cache import store_identity
from limbeck.teachers.huggingface import load_teacher
from limbeck.train.loop import batch_loss
from limbeck.train.setup import Setup, open_setup
from limbeck.train.texts import open_texts
from limbeck.train.train import train

VOCAB, ROWS = 300, 32
SIGNALS: list[dict[str, Any]] = [{"kind": "topk", "k": 20}, {"kind": "sampled", "draws": 15}, {"kind": "dense"}]


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


@pytest.fixture
def even(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe over eight documents of 32 positions, for a student whose distributions are far from flat."""
    (tmp_path / "even").mkdir()
    generator = torch.Generator().manual_seed(5)
    for index in range(8):
        digits = torch.randint(10, (ROWS - 1,), generator=generator).tolist()
        (tmp_path / "even" / f"{index}.txt").write_text("".join(map(str, digits)), encoding="utf-8")
    values["data"]["train"]["paths"] = [f"{tmp_path}/even/*.txt"]
    values["student"]["init_std"] = 0.3
    assert set(open_texts(recipe_of(values)).train.lengths.tolist()) == {ROWS + 1}
    return values


def loss_and_gradients(setup: Setup, *, step: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Of all micro-batches of a step, as the loop adds them up."""
    setup.student.zero_grad(set_to_none=True)
    loss = 0.0
    for batch in setup.loader.step(step):
        output, _ = batch_loss(setup, batch)
        output.loss.backward()
        loss += output.loss.item()
    return loss, {name: parameter.grad.clone() for name, parameter in setup.student.named_parameters()}


def norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the two gradients of the whole student."""
    assert one.keys() == other.keys()
    return norm({name: gradient - other[name] for name, gradient in one.items()})


def tokens_of(setup: Setup) -> list[int]:
    return [token for batch in setup.loader.step(0) for token in batch.tokens_BT.flatten().tolist()]


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal["kind"])
def test_gradients_do_not_depend_on_how_a_text_is_shaped(even: dict[str, Any], signal: dict[str, Any]) -> None:
    """Four documents, as 4 x 32, 2 x 64 and 1 x 128: the mean is over positions, whatever B and T are."""
    even["signal"] = signal
    if signal["kind"] != "dense":
        write_recipe_stores([recipe_of(even)])
    found = []
    for sequences, length in ((4, 32), (2, 64), (1, 128)):
        setup = open_setup(
            recipe_of(even, batch={"sequences": sequences}, data={**even["data"], "sequence_length": length}),
        )
        assert [len(batch.tokens_BT) for batch in setup.loader.step(0)] == [sequences]
        found.append((tokens_of(setup), *loss_and_gradients(setup)))
    tokens, loss, gradients = found[0]
    for other_tokens, other_loss, other_gradients in found[1:]:
        assert other_tokens == tokens
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert distance(other_gradients, gradients) < 1e-5 * norm(gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_gradients_of_a_batch_are_the_mean_of_its_documents(even: dict[str, Any]) -> None:
    """Also through micro-batches of uneven size."""
    write_recipe_stores([recipe_of(even)])
    _, whole = loss_and_gradients(open_setup(recipe_of(even, batch={"sequences": 4, "micro_sequences": 3})))
    single = open_setup(recipe_of(even, batch={"sequences": 1}))
    parts = [loss_and_gradients(single, step=step)[1] for step in range(4)]
    mean = {name: torch.stack([part[name].double() for part in parts]).mean(0) for name in whole}
    assert distance(whole, mean) < 1e-5 * norm(mean)


def write_one_hot_store(recipe: Recipe) -> None:
    """A store whose teacher is certain of the token that follows."""
    assert recipe.teacher is not None
    assert isinstance(recipe.signal, TopKSignal)
    texts = open_texts(recipe)
    teacher = load_teacher(recipe.teacher, device=torch.device("cpu"))
    identity = store_identity(teacher, texts.train, recipe.signal, context=recipe.teacher.context)
    documents = {ident: texts.train.document(index) for index, ident in enumerate(texts.train.ids)}
    lengths = [(ident, len(tokens)) for ident, tokens in documents.items()]
    writer = StoreWriter(Path(recipe.store_path), identity=identity, documents=lengths, shard_tokens=200)
    for shard in writer.pending_shards():
        content = []
        for ident in shard.document_ids:
            tokens = documents[ident]
            following = torch.from_numpy(tokens[1:].astype("int64"))
            nothing_T = torch.zeros(len(following))
            certain = TopKRows(following[:, None], torch.zeros(len(following), 1), nothing_T, nothing_T)
            content.append((ident, tokens, certain))
        writer.write_shard(shard.index, content)
    writer.publish()


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
@pytest.mark.filterwarnings("ignore:forward_kl with tail=renormalised")
def test_a_teacher_that_is_certain_of_the_text_is_cross_entropy(values: dict[str, Any], tail: str) -> None:
    """Exactly: ln 1 and a tail of 0 survive the store's float16. Documents are cut and packed as they come."""
    values["signal"] = {"kind": "topk", "k": 1}
    distilled = open_store_setup(recipe_of(values, objective={"kind": "forward_kl", "tail": tail}))
    control = open_setup(recipe_of(values, objective={"kind": "ce"}))
    for step in (0, 3, 9):
        loss, gradients = loss_and_gradients(distilled, step=step)
        expected_loss, expected = loss_and_gradients(control, step=step)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert distance(gradients, expected) < 1e-6 * norm(expected)


def open_store_setup(recipe: Recipe) -> Setup:
    write_one_hot_store(recipe)
    return open_setup(recipe)


def test_another_teacher_is_another_loss(values: dict[str, Any], tmp_path: Path) -> None:
    """The student, its batch and its cross-entropy are the same; what it is told is not."""
    other = make_teacher(tmp_path / "other", seed=1)
    recipes = [
        recipe_of(values),
        recipe_of(values, output=str(tmp_path / "two"), teacher={**values["teacher"], "model": str(other)}),
    ]
    outputs = []
    for recipe in recipes:
        write_recipe_stores([recipe])
        setup = open_setup(recipe)
        (batch,) = setup.loader.step(0)
        outputs.append((batch_loss(setup, batch)[0], loss_and_gradients(setup)[1]))
    (one, gradients), (two, other_gradients) = outputs
    assert torch.equal(one.per_term["ce"], two.per_term["ce"])
    assert abs(one.loss.item() - two.loss.item()) > 1e-3
    assert distance(gradients, other_gradients) > 0.1 * norm(gradients)


@pytest.fixture
def its_own_teacher(even: dict[str, Any], teacher_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The untrained student of the recipe, saved as a teacher."""
    spec = recipe_of(even).student
    folder = tmp_path / "itself"
    hf.save(
        build(spec, vocab_size=VOCAB, seed=0),
        spec=spec,
        folder=folder,
        max_positions=64,
        tokenizer_folder=teacher_folder,
        bos_token_id=0,
        eos_token_id=1,
    )
    even["teacher"]["model"] = str(folder)
    return even


def test_a_student_learns_nothing_from_its_stored_self(its_own_teacher: dict[str, Any]) -> None:
    """A stored log-prob l is within |l| 2^-11, so p ln(p'/p) sums to within the entropy, at most ln V, times 2^-11. The
    gradient in logits is as far from 0 in sum, where cross-entropy's is near 2.
    """
    its_own_teacher["signal"] = {"kind": "topk", "k": VOCAB}
    write_recipe_stores([recipe_of(its_own_teacher)])
    loss, gradients = loss_and_gradients(open_setup(recipe_of(its_own_teacher)))
    ce, expected = loss_and_gradients(open_setup(recipe_of(its_own_teacher, objective={"kind": "ce"})))
    assert ce > 4
    assert abs(loss) < math.log(VOCAB) * 2**-11
    assert norm(gradients) < 2 * math.log(VOCAB) * 2**-11 * norm(expected)
    path = train(recipe_of(its_own_teacher, budget={"kind": "steps", "amount": 1}))
    (record,) = open_run(path).events("train")
    assert record["forward_kl"] == pytest.approx(loss, abs=1e-6)


def test_a_student_learns_nothing_from_its_live_self(its_own_teacher: dict[str, Any]) -> None:
    its_own_teacher["signal"] = {"kind": "dense"}
    loss, gradients = loss_and_gradients(open_setup(recipe_of(its_own_teacher)))
    _, expected = loss_and_gradients(open_setup(recipe_of(its_own_teacher, objective={"kind": "ce"})))
    assert abs(loss) < 1e-6
    assert norm(gradients) < 1e-5 * norm(expected)


@pytest.mark.parametrize("size", [280, 320])
def test_a_control_of_another_tokenizer_says_nothing_of_the_teacher(values: dict[str, Any], tmp_path: Path, size: int) -> None:
    """A larger one than the teacher's too: there is nothing to be compared, so nothing to agree with."""
    make_tokenizer(tmp_path / "tokenizer", vocab_size=size)
    values["data"]["tokenizer"] = str(tmp_path / "tokenizer")
    values["student"]["vocab_size"] = size
    path = train(recipe_of(values, objective={"kind": "ce"}))
    opened = open_run(path)
    assert opened.summary is not None
    assert opened.summary["kl_to_teacher_nats"] is None
    assert opened.summary["teacher"] is None
    assert opened.summary["teacher_flops"] == opened.summary["teacher_flops_per_token"] == 0
    assert all(record["kl_to_teacher_nats"] is None for record in opened.events("eval"))
    losses = [record["loss_nats"] for record in opened.events("train")]
    assert losses[0] == pytest.approx(math.log(size), rel=0.01)  # an untrained student knows nothing
    assert losses[-1] < losses[0]
    assert hf.load(path / "student")[2] == size


def test_an_arm_that_diverges_stops_no_other(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms: dict[str, dict[str, Any]] = {
        "ce": {"objective.kind": "ce"},
        "wild": {"optimizer.lr": 1e30, "optimizer.clip_norm": None},
        "kl": {},
    }
    study = tmp_path / "study.yaml"
    described = {"name": "one-diverges", "recipe": str(recipe_file), "control": "ce", "arms": arms}
    study.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    result = run_study(load_study(str(study)), output=str(tmp_path / "results"), overrides={})
    found = {cell["cell"]: cell for cell in result.as_json()["cells"]}
    assert found["wild"]["bits_per_byte"] is None
    assert found["wild"]["kl_to_teacher_nats"] is None
    assert found["wild"]["tokens"] < 8 * 4 * 32
    for arm in ("ce", "kl"):
        assert found[arm]["tokens"] == 8 * 4 * 32
        assert 0 < found[arm]["bits_per_byte"] < 20
    assert "wild: loss or gradient is not finite at step" in capsys.readouterr().err
    assert result.report.is_file()
    assert "wild" in result.report.read_text(encoding="utf-8")
