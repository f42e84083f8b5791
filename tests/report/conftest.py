"""Fixtures that make runs, each in a folder of its own, and take the drawing out of what is no test of figures."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import handmade
import pytest

from limbeck.report.cells import Cell
from limbeck.runs import Run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    folders = (tmp_path / f"run-{number}" for number in itertools.count())

    @functools.wraps(handmade.make_run)
    def make(**keywords) -> Run:
        return handmade.make_run(next(folders), **keywords)

    return make


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Makes a run once in a session for every way of asking."""
    made: dict[str, Run] = {}

    def make(**keywords) -> Run:
        key = repr(sorted(keywords.items()))
        if key not in made:
            made[key] = handmade.make_run(tmp_path_factory.mktemp("template"), **keywords)
        return made[key]

    return make


@pytest.fixture
def seeds(template: Callable[..., Run]) -> Callable[..., list[Cell]]:
    """Makes the cells of an arm: a seed for each number of bits per byte, every document shifted to it."""

    def make(arm: str, bits: list[float], *, controls: str = "", objective: str = "ce", **values) -> list[Cell]:
        keywords = {key: values.pop(key) for key in ("end", "overrides") if key in values}
        cells = []
        for seed, each in enumerate(bits, 1):
            documents = handmade.shifted(each - handmade.BITS)
            run = handmade.remeasured(template(objective=objective, **keywords), documents)
            named = {"controls": dict.fromkeys(("tokens", "seconds", "flops"), f"{controls}-{seed}")} if controls else {}
            cells.append(handmade.cell(arm, run, seed=seed, **named, **values))
        return cells

    return make


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else."""
    monkeypatch.setattr("limbeck.drawing.render_both", lambda draw, *, size: (b"png", b"<svg/>"))
