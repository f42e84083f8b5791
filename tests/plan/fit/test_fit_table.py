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
    reading.refuse_unused({"--where": [] if where is None else [where]})
    return (reading if where is None else reading.where(where)).points(with_teacher=with_teacher)


def test_columns_and_arithmetic_on_them() -> None:
    reading = Reading(read_table(CHINCHILLA_CSV), parse_columns("N=Model Size, D=`Training FLOP` / (6 * N), loss=loss"))
    points, expected = reading.points(with_teacher=False), chinchilla_points(dropped=0)
    np.testing.assert_array_equal(points.params, expected.params)
    np.testing.assert_allclose(points.tokens, expected.tokens, rtol=1e-15)
    np.testing.assert_array_equal(points.loss, expected.loss)


@pytest.mark.parametrize(
    "columns",
    [
        "N=Model Size,C=Training FLOP,D=C/(6*N)",
        "D=C/(6*N),C=Training FLOP,N=Model Size",
        "six=6,N=Model Size,ND=C/six,D=ND/N,C=Training FLOP",
        "N=Model Size,D=Training FLOP/(6*Model Size)",
        "N='Model Size', D='Training FLOP'/(6*N)",
        'N="Model Size"*1,D=Training FLOP/(6*`Model Size`)',
        "lambda=Model Size,N=lambda,D=Training FLOP/(6*lambda)",
    ],
)
def test_many_spellings_are_the_same_points(columns: str) -> None:
    expected = chinchilla_points(dropped=0)
    points = Reading(read_table(CHINCHILLA_CSV), parse_columns(columns)).points(with_teacher=False)
    np.testing.assert_array_equal(points.params, expected.params)
    np.testing.assert_allclose(points.tokens, expected.tokens, rtol=1e-15)


def test_commas_equals_and_quotes_in_names(tmp_path: Path) -> None:
    header = '"Size, N=all",tokens,"teacher\'s loss","student\'s, loss"\n'
    columns = "N='Size, N=all'*10,D=maximum(tokens, 1),loss=student's, loss,teacher_loss=teacher's loss"
    points = read(tmp_path, header + "1e8,1e9,2.5,3.5\n", columns, with_teacher=True)
    assert points.teacher_loss is not None
    values = [float(each[0]) for each in (points.params, points.tokens, points.loss, points.teacher_loss)]
    assert values == [1e9, 1e9, 3.5, 2.5]
    assert read(tmp_path, header + "1e8,1e9,2.5,3.5\n", "N=`Size, N=all`,D=tokens,loss=teacher's loss").params == [1e8]


def test_a_name_of_ones_own_may_hide_a_column(tmp_path: Path) -> None:
    text = "N,tokens,loss\n1e8,2,3.5\n1e9,3,2.6\n"
    assert read(tmp_path, text, "D=tokens,tokens=tokens*1e9").tokens.tolist() == [2e9, 3e9]
    assert read(tmp_path, text, "D=tokens*1,tokens=tokens*1e9").tokens.tolist() == [2e9, 3e9]


def test_names_of_ones_own_are_for_conditions_too(tmp_path: Path) -> None:
    columns = "group=kind,ratio=D/N,big=N*2"
    assert read(tmp_path, SMALL, columns, where="group==b and ratio>=20 and big>2e9").params.tolist() == [2e9]


def test_a_column_of_true_and_false_is_a_condition(tmp_path: Path) -> None:
    text = "N,D,loss,done\n1e8,1e9,3.5,False\n1e9,2e10,2.6,True\n"
    assert read(tmp_path, text, where="done").params.tolist() == [1e9]
    assert read(tmp_path, text, where="not done").params.tolist() == [1e8]


def test_text_stays_text_where_few_rows_are_left(tmp_path: Path) -> None:
    """`kind` of the rows that are left is empty or a number, but not in the file."""
    path = tmp_path / "data.csv"
    path.write_text("N,D,loss,kind\n1e8,1e9,3.5,a\n1e9,2e10,2.6,7\n2e9,4e10,2.5,\n", encoding="utf-8")
    reading = Reading(read_table(path), {}).where("N>5e8")
    assert reading.where("kind!=a").points(with_teacher=False).params.tolist() == [1e9, 2e9]
    assert reading.where("kind=='7'").points(with_teacher=False).params.tolist() == [1e9]


def test_a_column_without_a_number_is_none_of_losses(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("N,D,loss,teacher_loss\n1e8,1e9,3.5,\n1e9,2e10,2.6,2.4\n", encoding="utf-8")
    reading = Reading(read_table(path), {})
    assert reading.has("teacher_loss")
    assert not reading.where("N<5e8").has("teacher_loss")


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
        (SMALL, "M=N", None, "M is not what a point has, and nothing uses it.*valid: N, D, loss, teacher_loss"),
        (SMALL, "los=loss", None, "los is not what a point has, and nothing uses it; did you mean 'loss'"),
        (SMALL, "N=M,M=P,P=N+1", None, "goes round in a circle, (N needs M needs P needs N):"),
        (SMALL, "N=D*1,D=N*20", None, "goes round in a circle, N needs D needs N:"),
        (SMALL, "N=M,M=M*2", None, "has no column 'M'"),
        (SMALL, "N=M,M=MM", None, "no column 'MM'"),
        (SMALL, "N=N,D=D,", None, "has a comma too many"),
        (SMALL, "N=N,,D=D", None, "has a comma too many"),
        (SMALL, "N=N,1D=D", None, "1D is not a name"),
        (SMALL, "N=loss>2", None, "N=loss>2 is true or false"),
        (SMALL, "N=not loss", None, "is true or false"),
        (SMALL, "N='a'", None, "no column 'a'"),
        (SMALL, "N='Dd'/2", None, "no column 'Dd'; did you mean 'D'"),
        (SMALL, "N=N^2", None, r"write \*\* for powers"),
        (SMALL, "", "kind=c", "--where: 'kind=c' is not a formula"),
        (SMALL, "", "kin==b", "--where: .*'kin'.*did you mean 'kind'"),
        (SMALL, "", "N==tokns", "--where: .*'tokns'"),
        (SMALL, "", "kind<b", "--where: .*needs 'b', which is not known"),
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
    assert points.tokens.tolist() == [2e10, 4e11, 8e11]
    swapped = read(tmp_path, SMALL, "N=D,D=N")
    assert (swapped.params.tolist(), swapped.tokens.tolist()) == ([1e9, 2e10, 4e10], [1e8, 1e9, 2e9])


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
