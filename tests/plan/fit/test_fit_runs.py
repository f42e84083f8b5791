"""Run folders as points: nats per token from bits per byte, which runs count, which are refused."""

import math
from pathlib import Path

import pytest
from fit_points import write_run

from limbeck.errors import DataError, LimbeckError
from limbeck.plan.fit.runs import read_runs

RUN = {"params": 1e6, "tokens": 2e6, "bits_per_byte": 1.5}


def test_a_run_is_a_point_in_nats_per_token(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", **RUN)
    distilled = write_run(tmp_path / "distilled", **{**RUN, "bits_per_byte": 1.4}, teacher_bits=1.1)
    found = read_runs([alone, distilled])
    assert found.warnings == ()
    assert found.alone is not None
    assert found.distilled is not None
    assert (found.alone.params[0], found.alone.tokens[0], found.alone.teacher_loss) == (1e6, 2e6, None)
    # 1.5 bits a byte, 4,000 bytes in 1,000 tokens: 6 bits a token.
    assert found.alone.loss[0] == pytest.approx(6 * math.log(2), rel=1e-15)
    assert found.distilled.loss[0] == pytest.approx(5.6 * math.log(2), rel=1e-15)
    assert found.distilled.teacher_loss is not None
    assert found.distilled.teacher_loss[0] == pytest.approx(4.4 * math.log(2), rel=1e-15)


def test_a_folder_of_runs_is_its_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, **RUN)
    (tmp_path / "other").mkdir()
    found = read_runs([tmp_path, tmp_path / "a"])
    assert found.alone is not None
    assert found.alone.places == (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(LimbeckError, match="is no run and holds none"):
        read_runs([tmp_path / "other"])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"finished": False}, "is unfinished, `limbeck train"),
        ({"bits_per_byte": float("nan")}, "without a finite loss"),
        ({"heldout_tokens": None}, "lacks what its held-out text measures"),
        ({"teacher_bits": 1.0, "teacher": None}, "teacher was not measured"),
    ],
)
def test_a_run_that_is_no_point_is_left_out(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    good, bad = write_run(tmp_path / "good", **RUN), write_run(tmp_path / "bad", **{**RUN, **values})
    found = read_runs([good, bad])
    assert found.alone is not None and len(found.alone) == 1
    assert found.distilled is None
    assert len(found.warnings) == 1
    assert f"{bad} is left out: " in found.warnings[0]
    assert reason in found.warnings[0]
    with pytest.raises(DataError, match="none of the 1 runs is a point"):
        read_runs([bad])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heldout_bytes": 5000}, "held-out bytes.*same held-out text"),
        ({"heldout_tokens": 900}, "different tokenizers"),
        ({"overrides": {"student.vocab_size": 1000}}, "different tokenizers"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    folders = [write_run(tmp_path / "a", **RUN), write_run(tmp_path / "b", **{**RUN, **values})]
    with pytest.raises(DataError, match=message):
        read_runs(folders)


def test_other_texts_and_other_objectives_are_said(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", **RUN),
        write_run(tmp_path / "b", **RUN, overrides={"data.train.first_year": 1900}),
        write_run(tmp_path / "c", **RUN, overrides={"data.train.sample_tokens": 1000}),  # the same text, less of it
        write_run(tmp_path / "d", **RUN, teacher_bits=1.0, objective="hard", overrides={"signal": {"kind": "hard"}}),
    ]
    warnings = read_runs(folders).warnings
    assert len(warnings) == 2
    assert "2 different training texts" in warnings[0]
    assert f"{tmp_path}/d minimises hard" in warnings[1]
