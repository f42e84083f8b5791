"""Students of another tokenizer than their teacher's, from the recipe to the summary: live, from a store, killed and resumed."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_world import make_other_tokenizer

from limbeck.errors import DataError, SpecError, StoreError
from limbeck.runs import open_run
from limbeck.signals.store import SignalStore, verify
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.train.setup import open_setup
from limbeck.train.train import train

TERMS = {
    "alm": "none",
    "uld": "last",
    "gold": "last",
    "projected_kl": "mean",
    "byte_kl": "bytes",
}


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_other_tokenizer(tmp_path_factory.mktemp("reads") / "other"))


@pytest.fixture
def across(values: dict[str, Any], other_tokenizer: str) -> dict[str, Any]:
    """The tiny recipe with a student of another tokenizer."""
    values["data"]["tokenizer"] = other_tokenizer
    values["objective"] = {"kind": "alm"}
    values["signal"] = {"kind": "chunks"}
    return values


def live(values: dict[str, Any]) -> dict[str, Any]:
    return {**values["signal"], "live": True}


def losses(path: Path) -> list[float]:
    return [record["loss_nats"] for record in open_run(path).events("train")]


@pytest.mark.parametrize("kind", TERMS)
def test_live_and_stored_chunks_train_the_same_student(across: dict[str, Any], kind: str) -> None:
    across["objective"] = {"kind": "mixture", "terms": [{"weight": 1.0, "term": {"kind": "ce"}}, {"weight": 0.5, "term": {"kind": kind}}]}
    across["signal"] = {"kind": "chunks", "distribution": TERMS[kind], "k": 16}
    across["budget"] = {"kind": "steps", "amount": 3}
    stored = recipe_of(across, name="stored")
    write_recipe_stores([stored])
    assert verify(stored.store_path).intact
    one, other = train(stored), train(recipe_of(across, name="live", signal=live(across)))
    assert losses(one) == pytest.approx(losses(other), rel=2e-3)
    assert open_run(one).events("train")[-1]["bytes_read"] > 0
    assert open_run(other).events("train")[-1]["bytes_read"] == 0
    summary = open_run(one).summary
    assert summary is not None
    assert summary["kl_to_teacher_nats"] is None
