"""The studies that come with Limbeck: they expand, every taught cell has its controls, and the planner prices them."""

import pytest

from limbeck.spec.load import load_study, shipped
from limbeck.study.price import predict
from limbeck.study.run import open_cells


@pytest.mark.parametrize(
    ("name", "cells", "taught"),
    [
        ("quickstart", 4, 3),
        ("golf", 37, 33),
        ("nano", 90, 48),
        ("laws", 145, 116),
        ("prune", 38, 22),
        ("across", 45, 36),
        ("moe", 16, 8),
    ],
)
def test_a_shipped_study_is_whole_and_priced(name: str, cells: int, taught: int, tmp_path: object) -> None:
    study = load_study(name)
    predicted = predict(study, open_cells(study, output=f"{tmp_path}/out", overrides={}))
    assert len(predicted.cells) == cells
    with_teacher = [cell for cell in predicted.cells.values() if cell.taught]
    assert len(with_teacher) == taught
    for cell in with_teacher:
        assert set(cell.controls) >= set(study.bases)
        assert not any(predicted.cells[control].taught for control in cell.controls.values())
    assert predicted.price.training_flops is not None
    assert predicted.hours is not None
    assert predicted.hours > 0


def test_every_shipped_study_is_among_them() -> None:
    assert set(shipped("studies")) == {"quickstart", "golf", "nano", "laws", "prune", "across", "moe"}
