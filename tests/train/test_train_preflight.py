"""The preflight lets sound runs pass, tells gradients as formulas do, and stops mistakes that raise no error elsewhere."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.packing import Piece
from limbeck.errors import LimbeckError
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.manifest import info
from limbeck.signals.types import DenseRows, SignalRows, SparseTarget, TopKRows
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train import preflight as module
from limbeck.train.preflight import PreflightError, preflight
from limbeck.train.setup import Setup, open_setup
from limbeck.train.train import train

TOPK = {"kind": "topk", "k": 20}
BOTH = [{"weight": 1, "term": {"kind": "hidden"}}, {"weight": 1, "term": {"kind": "ce"}}]


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


def setup_of(values: dict[str, Any], **changes: Any) -> Setup:
    recipe = recipe_of(values, **changes)
    if recipe.uses_store:
        write_recipe_stores([recipe])
    return open_setup(recipe)


class Changed:
    """A row source whose rows are passed through a function."""

    is_live, bytes_read, tokens_scored = False, 0, 0

    def __init__(self, source: Any, change: Callable[[Any], SignalRows]) -> None:
        self.source, self.change = source, change

    def rows(self, pieces: list[Piece]) -> SignalRows:
        return self.change(self.source.rows(pieces))


def with_rows(setup: Setup, change: Callable[[Any], SignalRows]) -> Setup:
    setup.loader.source = Changed(setup.loader.source, change)
    return setup


def one_hot(setup: Setup, *, ahead: int) -> Setup:
    """The teacher is certain of the token that many places after the next."""

    def change(rows: TopKRows) -> TopKRows:
        (batch,) = [setup.loader.stream.sequence(0)]
        following = [
            torch.from_numpy(setup.loader.store.document(piece.document)[piece.start + 1 : piece.stop + 1].astype("int64"))
            for piece in batch
        ]
        ids_T = torch.cat(following).roll(-ahead)
        nothing_T = torch.zeros(len(ids_T))
        return TopKRows(ids_T[:, None], torch.zeros(len(ids_T), 1), nothing_T, nothing_T)

    return with_rows(setup, change)


@pytest.mark.parametrize(
    ("signal", "objective"),
    [
        (TOPK, {"kind": "forward_kl"}),
        (TOPK, {"kind": "jsd"}),
        ({"kind": "sampled", "draws": 15}, {"kind": "forward_kl"}),
        ({"kind": "hybrid", "k": 5, "draws": 5}, {"kind": "reverse_kl"}),
        ({"kind": "hard"}, {"kind": "hard"}),
        ({"kind": "dense", "temperature": 2.0}, {"kind": "forward_kl"}),
        (
            {"kind": "dense"},
            {"kind": "mixture", "terms": BOTH},
        ),
    ],
    ids=lambda value: value["kind"],
)
def test_sound_runs_pass(values: dict[str, Any], signal: dict[str, Any], objective: dict[str, Any]) -> None:
    setup = setup_of(values, signal=signal, objective=objective)
    before = {name: weight.clone() for name, weight in setup.student.state_dict().items()}
    state = torch.random.get_rng_state()
    found = preflight(setup)
    assert all(size > 0 and math.isfinite(size) for size in found.gradients.values())
    assert found.mass_on_text is not None and 0 <= found.mass_on_text <= 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in setup.student.state_dict().items())
    assert all(parameter.grad is None for parameter in setup.student.parameters())


def plain_logits(setup: Setup) -> tuple[Tensor, Tensor]:
    """Of the first sequence, float64."""
    batch = setup.loader.batch([setup.loader.stream.sequence(0)])
    with torch.no_grad():
        reading = setup.student(batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT)
    return reading.hidden_BTD.flatten(0, 1).double() @ setup.student.head_VD.detach().double().T, batch.targets_BT.flatten()


def test_gradients_are_those_of_the_formulas(values: dict[str, Any]) -> None:
    """Of cross-entropy: softmax less one-hot; of a dense KL at temperature 2, with its square: 2 (q - p)."""
    values["student"]["init_std"] = 0.3
    terms = [{"weight": 0.25, "term": {"kind": "ce"}}, {"weight": 0.5, "term": {"kind": "forward_kl"}}]
    setup = setup_of(
        values, signal={"kind": "dense", "temperature": 2.0}, objective={"kind": "mixture", "terms": terms}, precision="float32"
    )
    found = preflight(setup)
    logits_TV, targets_T = plain_logits(setup)
    assert len(targets_T) <= module.POSITIONS
    labels_TV = torch.nn.functional.one_hot(targets_T, logits_TV.shape[1])
    assert found.gradients["ce"] == pytest.approx(0.25 * float((logits_TV.softmax(1) - labels_TV).norm(dim=1).mean()), rel=1e-4)
    rows = setup.loader.batch([setup.loader.stream.sequence(0)]).rows
    assert isinstance(rows, DenseRows)
    teacher_TV = (rows.hidden_TE.double() @ rows.head_VE.double().T / 2).softmax(1)
    pull_TV = 2 * ((logits_TV / 2).softmax(1) - teacher_TV)
    assert found.gradients["forward_kl"] == pytest.approx(0.5 * float(pull_TV.norm(dim=1).mean()), rel=1e-4)
    assert found.ce_nats == pytest.approx(float(torch.nn.functional.cross_entropy(logits_TV, targets_T)), rel=1e-5)


def test_mass_on_text_is_that_of_the_store(values: dict[str, Any]) -> None:
    """A dense teacher's mass on the next tokens of every document, by hand; k = V keeps all of it."""
    setup = setup_of(values, signal={"kind": "topk", "k": 300}, objective={"kind": "forward_kl"})
    live = setup_of(values, signal={"kind": "dense"}, objective={"kind": "forward_kl"})
    store, total, rows_read = setup.loader.store, 0.0, 0
    for document in range(len(store)):
        piece = Piece(document, 0, int(store.lengths[document]) - 1)
        rows = live.loader.source.rows([piece])
        probs_TV = (rows.hidden_TE.double() @ rows.head_VE.double().T).softmax(1)
        following_T = torch.from_numpy(store.document(document)[1:].astype("int64"))
        total += float(probs_TV.gather(1, following_T[:, None]).sum())
        rows_read += len(following_T)
    assert info(Path(setup.recipe.store_path))["mass_on_text"] == pytest.approx(total / rows_read, rel=1e-3)
    assert preflight(setup).mass_on_text_of_store == pytest.approx(total / rows_read, rel=1e-3)


def test_rows_out_of_step_are_told(values: dict[str, Any]) -> None:
    found = preflight(one_hot(setup_of(values, signal=TOPK, objective={"kind": "forward_kl"}), ahead=0))
    assert found.mass_on_text == 1
    for ahead, where in ((1, "after"), (-1, "before")):
        setup = one_hot(setup_of(values, signal=TOPK, objective={"kind": "forward_kl"}), ahead=ahead)
        with pytest.raises(PreflightError, match=f"one place {where}"):
            preflight(setup)


def test_rows_of_other_tokens_are_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(values, signal=TOPK, objective={"kind": "forward_kl"})
    held = type(setup.loader.source.signals).mass_on_text.fget(setup.loader.source.signals)
    monkeypatch.setattr(type(setup.loader.source.signals), "mass_on_text", 0.9)
    assert held < 0.4
    with pytest.raises(PreflightError, match="not of these tokens"):
        preflight(setup)


def test_ids_outside_the_vocabulary_are_told(values: dict[str, Any]) -> None:
    setup = setup_of(values, signal=TOPK, objective={"kind": "forward_kl"})
    with pytest.raises(PreflightError, match="rows name token 300"):
        preflight(with_rows(setup, lambda rows: replace(rows, ids_TK=rows.ids_TK.clamp(min=300))))
    narrow = setup_of(values, objective={"kind": "ce"})
    narrow = replace(narrow, recipe=recipe_of(values, student={**values["student"], "vocab_size": 280}))
    with pytest.raises(PreflightError, match=r"student\.vocab_size is 280"):
        preflight(narrow)


def test_targets_that_do_not_follow_are_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(values, objective={"kind": "ce"})
    batch = setup.loader.batch([setup.loader.stream.sequence(0)])
    shifted = replace(batch, targets_BT=batch.targets_BT.roll(1, dims=1))
    monkeypatch.setattr(setup.loader, "batch", lambda sequences: shifted)
    with pytest.raises(PreflightError, match="not the tokens that follow"):
        preflight(setup)


def test_damaged_rows_are_told(values: dict[str, Any]) -> None:
    setup = setup_of(values, signal=TOPK, objective={"kind": "forward_kl"})
    with pytest.raises(PreflightError, match="gradient of objective forward_kl is nan"):
        preflight(with_rows(setup, lambda rows: replace(rows, log_probs_TK=rows.log_probs_TK * math.nan)))


def test_damaged_students_are_told(values: dict[str, Any]) -> None:
    setup = setup_of(values, objective={"kind": "ce"})
    with torch.no_grad():
        setup.student.head_VD.mul_(1e4)
    with pytest.raises(PreflightError, match="before its first step the student's cross-entropy"):
        preflight(setup)


def deaf(student: HeadStatistics, target: SparseTarget | None) -> Tensor:
    """A loss that never looks at the teacher."""
    return student.lse_T


def test_a_teacher_that_is_not_read_is_told(values: dict[str, Any]) -> None:
    objective = {"kind": "custom", "function": f"{__name__}:deaf"}
    with pytest.raises(PreflightError, match="would not learn from its teacher"):
        preflight(setup_of(values, signal=TOPK, objective=objective))


def test_training_starts_with_it_and_keeps_what_it_found(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = train(recipe_of(values, objective={"kind": "ce"}))
    kept = json.loads((path / "preflight.json").read_text())
    of_packing = {"padding_share": 0.0, "documents_left_out": 0}
    assert set(kept) == {"ce_nats", "gradients", "mass_on_text", "mass_on_text_of_store", "seconds", *of_packing}
    assert kept == {**kept, **of_packing}

    def refused(setup: Setup) -> None:
        raise PreflightError("no")

    monkeypatch.setattr("limbeck.train.train.preflight", refused)
    with pytest.raises(LimbeckError, match="no"):
        train(recipe_of(values, objective={"kind": "ce"}, name="other"))
    assert not (path.parent / "other" / "checkpoint.pt").exists()
