"""Phases of a step by a clock that only the test moves."""

import time
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import SpecError
from limbeck.plan.placement import Phases
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.teachers.live import LiveRows
from limbeck.train import time_phases as module
from limbeck.train.completion_server import ServerSampler
from limbeck.train.on_policy import OnPolicySteps
from limbeck.train.time_phases import time_phases

LIVE: dict[str, Any] = {"signal": {"kind": "topk", "k": 20, "live": True}, "batch": {"sequences": 4, "micro_sequences": 2}}
WRITING: dict[str, Any] = {
    "signal": {"kind": "dense"},
    "objective": {"kind": "reverse_kl"},
    "batch": {"sequences": 4},
    "on_policy": {"prompts": {"kind": "documents", "tokens": 8}, "max_new_tokens": 16, "steps_per_rollout": 2},
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher takes 5 seconds for a micro-batch of texts and 7 for what was written, a step 2, and writing 3."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slowed(place: Any, name: str, seconds: float) -> None:
        original = getattr(place, name)

        def slow(*given: Any, **named: Any) -> Any:
            now[0] += seconds
            return original(*given, **named)

        monkeypatch.setattr(place, name, slow)

    slowed(LiveRows, "rows", 5)
    slowed(LiveRows, "rows_of", 7)
    slowed(module, "optimizer_step", 2)
    slowed(OnPolicySteps, "_write", 3)


@pytest.mark.usefixtures("clock")
def test_phases_of_texts(values: dict[str, Any], tmp_path: Path) -> None:
    """Two micro-batches of two sequences of 32 tokens; nothing is left, and the recipe's own placement does not count."""
    placed = {"placement": {"kind": "split", "teacher_device": "cpu:0"}}
    timed = time_phases(parse(Recipe, {**values, **LIVE, **placed}, source="test"))
    assert timed.phases == Phases(generate=0, teach=10, train=2)
    assert (timed.tokens, timed.processes) == (4 * 32, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("clock")
def test_phases_of_a_run_that_writes(values: dict[str, Any], tmp_path: Path) -> None:
    """It writes before every second step: half of 3 seconds a step."""
    timed = time_phases(parse(Recipe, {**values, **WRITING}, source="test"))
    assert timed.phases == Phases(generate=1.5, teach=7, train=2)
    assert 4 * 8 <= timed.tokens <= 4 * 24
    assert not (tmp_path / "out").exists()


def test_a_server_keeps_its_weights(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to complete, and to load nothing."""
    asked: list[str] = []

    def post(sampler: ServerSampler, url: str, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(url)
        drawn = {"token_ids": [sampler.stops[0]], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}
        return {"choices": [{"index": index, **drawn} for index in range(len(request.get("prompt", ())))]}

    monkeypatch.setattr(ServerSampler, "_post", post)
    engine = {"kind": "server", "url": "http://x/v1", "model": "m", "refresh_url": "http://x/load"}
    recipe = parse(Recipe, {**values, **WRITING, "on_policy": {**WRITING["on_policy"], "engine": engine}}, source="test")
    time_phases(recipe, steps=2)
    assert set(asked) == {"http://x/v1/completions"}
    assert len(asked) == 1 + 2  # one that is checked, and before every second of three steps


def test_without_a_live_teacher_there_are_no_phases(values: dict[str, Any]) -> None:
    for changes in ({}, {"objective": {"kind": "ce"}}):
        with pytest.raises(SpecError, match=r"tiny: phases are those of a run with a live teacher: set signal\.live=true"):
            time_phases(parse(Recipe, {**values, **changes}, source="test"))
