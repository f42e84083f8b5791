"""CSV files as points: columns, arithmetic, conditions, and what is said about a bad file."""

from pathlib import Path

import numpy as np
import pytest
from fit_points import CHINCHILLA_CSV, ISOFLOPS_CSV, chinchilla_points, isoflops_points

from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.plan.fit.points import Points, split
from limbeck.plan.fit.table import Reading, parse_columns, read_table

SMALL = "N,D,loss,teacher_loss,kind\n1e8,1e9,3.5,2.5,a\n1e9,2e10,2.6,2.4,b\n\n2e9,4e10,2.5,2.2,b\n"


def read(tmp_path: Path, text: str, columns: str = "", *, where: str | None = None, with_teacher: bool = False) -> Points:
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    reading = Reading(read_table(path), parse_columns(columns) if columns else {})
    return (reading if where is None else reading.where(where)).points(with_teacher=with_teacher)


def test_columns_and_arithmetic_on_them() -> None:
    reading = Reading(read_table(CHINCHILLA_CSV), parse_columns("N=Model Size, D=`Training FLOP` / (6 * N), loss=loss"))
    points, expected = reading.points(with_teacher=False), chinchilla_points(dropped=0)
    np.testing.assert_array_equal(points.params, expected.params)
    np.testing.assert_allclose(points.tokens, expected.tokens, rtol=1e-15)
    np.testing.assert_array_equal(points.loss, expected.loss)


def test_a_condition_on_text_and_numbers() -> None:
    reading = Reading(read_table(ISOFLOPS_CSV), parse_columns("N=params,D=tokens,loss=loss"))
    chosen = reading.where("experiment=='llama_3__raw_loss' and outlier=='False'").points(with_teacher=False)
    expected = isoflops_points("llama_3__raw_loss")
    assert len(chosen) == 116
    np.testing.assert_array_equal(chosen.loss, expected.loss)
    small = reading.where("experiment=='llama_3__raw_loss' and outlier=='False' and N < 1e9").points(with_teacher=False)
    assert len(small) == (expected.params < 1e9).sum() > 0


def test_names_stand_for_columns_of_these_names(tmp_path: Path) -> None:
    points = read(tmp_path, SMALL, with_teacher=True)
    assert points.teacher_loss is not None
    assert points.teacher_loss.tolist() == [2.5, 2.4, 2.2]
    assert points.places == tuple(f"{tmp_path}/data.csv, row {row}" for row in (2, 3, 5))  # row 4 is blank
    assert read(tmp_path, SMALL).teacher_loss is None


def test_a_name_may_be_computed_from_its_own_column(tmp_path: Path) -> None:
    points = read(tmp_path, "N,D,loss\n0.1,1,3.5\n1,20,2.6\n", "N=N*1e9,D=D*1e9")
    assert points.params.tolist() == [1e8, 1e9]
    assert points.tokens.tolist() == [1e9, 20e9]


def test_a_condition_sees_the_points_values(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL, "N=N*10", where="N>5e9").params.tolist() == [1e10, 2e10]


def test_a_byte_order_mark_and_quoted_cells_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, '\ufeffN,D,loss\n"1e8","1e9"," 3.5"\n').loss.tolist() == [3.5]


@pytest.mark.parametrize(
    ("text", "columns", "where", "message"),
    [
        (SMALL, "N=Nn", None, "no column 'Nn'; did you mean 'N'"),
        (SMALL.replace("loss", "Los s"), "loss=Loss s", None, "no such column; did you mean 'Los s'"),
        (SMALL.replace("N,D", "N,tokens"), "", None, r"D=D: .* has no column 'D'.*valid: N, kind"),
        (SMALL, "M=N", None, "M is not what a point has.*valid: N, D, loss, teacher_loss"),
        (SMALL, "N=N,N=D", None, "names N twice"),
        (SMALL, "N", None, "says no column"),
        (SMALL, "loss=kind", None, "row 2: kind is 'a', which is not a number"),
        (SMALL, "loss=kind*2", None, "row 2: kind is 'a', which is not a number"),
        (SMALL.replace("2.6", "-2.6"), "", None, "row 3: loss is -2.6, but must be"),
        (SMALL.replace("2.6", "nan"), "", None, "row 3: loss is nan"),
        (SMALL.replace("2.5,2.2", "0,2.2"), "", None, "row 5: loss is 0"),
        (SMALL.replace("2.6", ""), "", None, "row 3: loss is '', which is not a number"),
        (SMALL, "D=D/(N-N)", None, "row 2: D is inf"),
        (SMALL, "", "kind=='c'", "leaves none of the 3 rows"),
        (SMALL, "", "kin=='b'", "--where: .*'kin'.*did you mean 'kind'"),
        (SMALL, "", "kind<3", "--where: .*calculates with text"),
        (SMALL, "", "N+1", "is not a condition"),
        (SMALL + "1,2\n", "", None, "row 6 has 2 cells, the header 5"),
        ("N,D,N\n1,2,3\n", "", None, "two columns called 'N'"),
        ("", "", None, "is empty"),
        ("N,D,loss\n", "", None, "is empty"),
        ('N,D,loss\n"1,2,3\n', "", None, "no CSV file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, columns: str, where: str | None, message: str) -> None:
    with pytest.raises(LimbeckError, match=message) as caught:
        read(tmp_path, text, columns, where=where)
    assert "\n" not in str(caught.value)


def test_swapped_columns_are_no_loop(tmp_path: Path) -> None:
    points = read(tmp_path, SMALL, "N=D,D=N*20")
    assert points.params.tolist() == [1e9, 2e10, 4e10]


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"N,D\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="no CSV file in UTF-8"):
        read_table(tmp_path / "binary.csv")


def test_the_five_lowest_ratios_are_the_five_highest_losses() -> None:
    """As the published refit says."""
    points = chinchilla_points(dropped=0)
    kept = split(points, points.named(), drop_lowest=5).fitted
    assert len(kept) == 240
    assert kept.loss.max() < np.sort(points.loss)[-5]


def test_points_set_aside_are_not_fitted() -> None:
    points = chinchilla_points()
    parts = split(points, points.named(), hold_out="loss<2.3 and N>1e9")
    assert parts.held_out is not None
    expected = (points.loss < 2.3) & (points.params > 1e9)
    assert len(parts.held_out) == expected.sum() > 0
    assert len(parts.fitted) == (~expected).sum()
    assert set(parts.held_out.loss).isdisjoint(parts.fitted.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out": "loss<1"}, "sets no point aside"),
        ({"hold_out": "loss<100"}, "no point is left"),
        ({"drop_lowest": 240}, "no point is left"),
        ({"hold_out": "los<1"}, "did you mean 'loss'"),
    ],
)
def test_empty_groups_are_refused(options: dict[str, object], message: str) -> None:
    points = chinchilla_points()
    with pytest.raises((DataError, SpecError), match=message):
        split(points, points.named(), **options)
