"""Formulas against Python's own evaluation of the same text, and everything that they must refuse."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limbeck.errors import SpecError
from limbeck.plan.formula import parse_formula

VALUES = {"N": 3.0, "D": 7.0, "x_1": -0.5}
NUMBERS = st.sampled_from(["1", "2", "3", "0.5", "1e-2", "1.5e3", "N", "D", "x_1"])
PYTHONS = {
    "log": math.log,
    "log10": math.log10,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": math.fabs,  # refuses what is complex in Python and NaN here
    "minimum": min,
    "maximum": max,
    "__builtins__": {},
}


def sums(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.builds(
        lambda left, op, right: f"{left} {op} {right}", children, st.sampled_from(["+", "-", "*", "/"]), children
    )
    grouped = st.builds(
        lambda left, op, right: f"({left}) {op} ({right})", children, st.sampled_from(["*", "/", "-"]), children
    )
    power = st.builds(lambda base, exponent: f"({base})**{exponent}", children, st.sampled_from(["2", "-1", "0.5", "2**2"]))
    signed = st.builds(lambda sign, of: f"{sign}{of}", st.sampled_from(["-", "+"]), children)
    of_one = st.builds(lambda name, of: f"{name}({of})", st.sampled_from(["log", "log10", "exp", "sqrt", "abs"]), children)
    of_two = st.builds(lambda name, a, b: f"{name}({a}, {b})", st.sampled_from(["minimum", "maximum"]), children, children)
    return st.one_of(binary, grouped, power, signed, of_one, of_two)


ARITHMETIC = st.recursive(NUMBERS, sums, max_leaves=8)


def by_python(text: str) -> float:
    """Discards what Python itself can't say: 1/0, log(-1), 1e300**2, and (-1)**0.5, which is complex there."""
    try:
        value = eval(text, dict(PYTHONS), dict(VALUES))  # the test's own text
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        assume(False)
    assume(not isinstance(value, complex) and math.isfinite(value))
    return value


@settings(max_examples=300, deadline=None)
@given(text=ARITHMETIC)
def test_arithmetic_is_pythons(text):
    expected = by_python(text)
    with np.errstate(all="ignore"):
        assert parse_formula(text).evaluate(VALUES) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(text=ARITHMETIC)
def test_arrays_are_evaluated_element_by_element(text):
    formula = parse_formula(text)
    columns = {name: np.array([value, 2 * value, value + 0.25]) for name, value in VALUES.items()}
    with np.errstate(all="ignore"):
        together = np.broadcast_to(formula.evaluate(columns), 3)
        one_by_one = [formula.evaluate({name: float(column[row]) for name, column in columns.items()}) for row in range(3)]
    np.testing.assert_allclose(together, np.array(one_by_one, dtype=float), rtol=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.tuples(ARITHMETIC, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), ARITHMETIC), min_size=1, max_size=3
    ),
    joins=st.lists(st.sampled_from([" and ", " or ", " and not ", " or not "]), min_size=2, max_size=2),
)
def test_conditions_are_pythons(parts, joins):
    comparisons = [f"{left} {op} {right}" for left, op, right in parts]
    for left, _, right in parts:  # rounding may turn a comparison of equals
        assume(abs(by_python(left) - by_python(right)) > 1e-6 * abs(by_python(left)))
    text = "".join(part for pair in zip(comparisons, [*joins, ""], strict=False) for part in pair)
    text = text if len(parts) == 3 else " and ".join(comparisons)
    with np.errstate(all="ignore"):
        assert bool(parse_formula(text).evaluate(VALUES)) == by_python(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2**2", -4),
        ("2**3**2", 512),
        ("2**-1", 0.5),
        ("10**-2", 0.01),
        ("2**200", 2.0**200),
        ("7/2", 3.5),
        ("1 - 2 - 3", -4),
        ("8/4/2", 1),
        ("not 1 < 2", False),
        ("1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("1 < 2 or 1 < 2 and 2 < 1", True),
        (" 1 +\t1 ", 2),
        ("log(exp(3)) + log10(1000) + sqrt(16) + abs(-1)", 11),
        ("minimum(2, 5) - maximum(2, 5)", -3),
    ],
)
def test_precedence_and_functions(text, expected):
    formula = parse_formula(text)
    assert formula.names == frozenset()
    assert formula.evaluate({}) == pytest.approx(expected)


def test_a_column_of_training_flops():
    formula = parse_formula("`Training FLOP` / (6 * N)")
    assert formula.names == {"Training FLOP", "N"}
    result = formula.evaluate({"Training FLOP": np.array([6e20, 6e21]), "N": np.array([1e9, 1e10])})
    assert result.tolist() == [1e11, 1e11]


def test_several_names_with_spaces_and_one_of_them_twice():
    formula = parse_formula("`a b` * `c d` - `a b` / N + `Größe (nats/token)`")
    assert formula.names == {"a b", "c d", "N", "Größe (nats/token)"}
    assert formula.evaluate({"a b": 6.0, "c d": 5.0, "N": 3.0, "Größe (nats/token)": 100.0}) == 30 - 2 + 100
    assert parse_formula("`N` + N").evaluate({"N": 2.0}) == 4


def test_conditions_on_columns_of_text():
    experiment, params = np.array(["a", "b", "a"]), np.array([1e7, 1e9, 1e9])
    values = {"experiment": experiment, "N": params}
    assert parse_formula("experiment=='a' and N>1e8").evaluate(values).tolist() == [False, False, True]
    assert parse_formula("experiment!='a' or N<1e8").evaluate(values).tolist() == [True, True, False]
    assert parse_formula("not experiment=='a'").evaluate(values).tolist() == [False, True, False]
    assert parse_formula("1e8 < N <= 1e9").evaluate(values).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("E > 1 and N > 1e8", [False, True, True]),
        ("N > 1e8 or E < 1", [False, True, True]),
        ("N > 1e8 and experiment == 'a' and E > 1", [False, False, True]),
        ("0 < E < N", [True, True, True]),
    ],
)
def test_conditions_may_mix_a_coefficient_with_a_column(text, expected):
    values = {"E": 2.0, "N": np.array([1e7, 1e9, 1e9]), "experiment": np.array(["a", "b", "a"])}
    assert parse_formula(text).evaluate(values).tolist() == expected


def test_whole_numbers_of_a_table_do_not_wrap_around():
    """6 N D of 1e10 parameters and 1e11 tokens is beyond 64-bit integers."""
    values = {"N": np.array([10**10]), "D": np.array([10**11])}
    assert parse_formula("N * D * 6").evaluate(values) == pytest.approx(6e21)
    assert parse_formula("N**-1").evaluate(values) == pytest.approx(1e-10)
    assert parse_formula("N * D").evaluate({"N": 10**10, "D": 10**11}) == pytest.approx(1e21)


COLUMNS = {
    "kind": np.array(["llama-2", "v1.2", "2024-01-01", "7b", "class", "x/y", "N", "True", "log"]),
    "outlier": np.array(["True", "False", "False", "true", "True", "False", " false", "True", "FALSE"]),
    "N": np.arange(9.0),
    "a b": np.arange(9.0) + 1,
    "a": np.arange(9.0) * 2,
    "lambda": np.arange(9.0) * 3,
    "loss (nats/token)": np.full(9, 2.0),
    "teacher's loss": np.full(9, 1.5),
    "µ": np.full(9, 0.5),
    "2": np.full(9, 100.0),
    "1e3": np.full(9, 100.0),
    "-": np.full(9, 100.0),
    "(a)": np.full(9, 100.0),
    "a-b": np.arange(9.0) - 100,
    "b": np.ones(9),
}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("kind==llama-2", [0]),
        ("kind==v1.2", [1]),
        ("kind==2024-01-01", [2]),
        ("kind == 7b or kind==x/y", [3, 5]),
        ("kind==class", [4]),
        ("(kind==7b)|(kind==x/y)&N>4", [3, 5]),
        ("kind=='N'", [6]),
        ("'N' == kind", [6]),
        ("kind==log", [8]),
        ("kind==True", [7]),
        ("kind==true", [7]),
        ("not kind!=log", [8]),
        ("log==kind", [8]),
        ("kind!=llama-2 and N<3", [1, 2]),
        ("outlier", [0, 3, 4, 7]),
        ("not outlier", [1, 2, 5, 6, 8]),
        ("outlier==False", [1, 2, 5, 6, 8]),
        ("outlier!=True", [1, 2, 5, 6, 8]),
        ("False==outlier & N>5", [6, 8]),
        ("not outlier and N>5", [6, 8]),
        ("outlier & N>5 | kind==7b", [3, 7]),
        ("outlier && N>5 || kind==7b", [3, 7]),
        ("N==1+2", [3]),
        ("N==a-N", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("N==a+-N", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("N==4.0", [4]),
        ("N!=1e0 and N<3", [0, 2]),
        ("N==-1*-5", [5]),
        ("a b==4", [3]),
        ("4==a b", [3]),
        ("'a b' > 8", [8]),
        ("a b - a == 0", [1]),
        ("a-b == N-100", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("N-100 == a-b", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_conditions_need_neither_quotes_nor_backticks(text, rows):
    found = parse_formula(text, names=COLUMNS.keys()).holds(COLUMNS)
    assert np.flatnonzero(found).tolist() == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b/(6*a b)", 1 / 6),
        ("'a b' * 1", 4.0),
        ('"a b"*b', 4.0),
        ("`a b`*b", 4.0),
        ("lambda / N", 3.0),
        ("loss (nats/token)*N", 6.0),
        ("log(loss (nats/token))", math.log(2)),
        ("teacher's loss + loss (nats/token)", 3.5),
        ("µ*2", 1.0),
        ("N*2", 6.0),
        ("N*1e3", 3000.0),
        ("sqrt(a)", math.sqrt(6)),
        ("a-b", -97.0),
        ("a - b", 5.0),
    ],
)
def test_known_names_with_spaces_need_no_backticks(text, expected):
    values = {name: column[3] for name, column in COLUMNS.items()}
    assert parse_formula(text, names=values.keys()).evaluate(values) == pytest.approx(expected)


def test_the_longest_known_name_is_meant():
    values = {"Model Size": 2.0, "Model Size (all)": 3.0, "Size": 5.0}
    assert parse_formula("Model Size (all) * Size", names=values.keys()).evaluate(values) == 15
    assert parse_formula("Model Size * Size", names=values.keys()).evaluate(values) == 10


@pytest.mark.parametrize("text", ["N == D-4", "D-4 == N", "N == 5-band*2", "5-band*2 == N and True == True"])
def test_arithmetic_is_compared_where_no_name_is_known_before(text):
    assert parse_formula(text).evaluate({"N": 3.0, "D": 7.0, "band": 1.0})
    assert parse_formula(text, names=("N", "D", "band")).evaluate({"N": 3.0, "D": 7.0, "band": 1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kin==llama", "needs 'kin', which is not known; did you mean 'kind'"),
        ("N==tokns", "needs 'tokns', which is not known"),
        ("N!=tokns", "needs 'tokns', which is not known"),
        ("kind<lama", "needs 'lama', which is not known"),
        ("kind==7", r"compares text with numbers: quote what is text"),
        ("N==llama-2", r"compares text with numbers"),
        ("kind!=N", r"compares text with numbers"),
        ("outlier==0", r"compares text with numbers"),
        ("kind", "takes text for a condition: only a column of nothing but True and False"),
        ("not kind", "takes text for a condition"),
        ("N>1 and kind", "takes text for a condition"),
    ],
)
def test_what_a_condition_can_not_mean_is_said(text, message):
    with pytest.raises(SpecError, match=message):
        parse_formula(text, names=COLUMNS.keys()).holds(COLUMNS)


@pytest.mark.parametrize(
    ("text", "is_condition"),
    [("N>2", True), ("not N", True), ("N and D", True), ("N|D", True), ("-N", False), ("(N>2)*1", False), ("N", False)],
)
def test_conditions_are_told_from_numbers(text, is_condition):
    assert parse_formula(text).is_condition == is_condition


@pytest.mark.parametrize(
    "text",
    [
        "N.real",
        "N.__class__",
        "''.join",
        "__import__('os')",
        "__import__('os').system('true')",
        "eval('1')",
        "open('x')",
        "log(N)(1)",
        "(lambda: 1)()",
        "lambda: 1",
        "[x for x in N]",
        "(x for x in N)",
        "{x: 1 for x in N}",
        "[1, 2]",
        "(1, 2)",
        "{1: 2}",
        "N[0]",
        "N[0:1]",
        "f'{N}'",
        "(N := 1)",
        "log(x=1)",
        "log(N, out=D)",
        "log(*N)",
        "minimum(**N)",
        "1 if N else 2",
        "N // 2",
        "N % 2",
        "N @ D",
        "N << 2",
        "N ^ D",
        "True",
        "N < True",
        "N + True",
        "True + 1",
        "~N",
        "N is D",
        "N in D",
        "N not in D",
        "None",
        "...",
        "1j",
        "b'a'",
        "await N",
        "log(1) + log(lambda: 1)",
        "-(N.real)",
        "N < D.real",
        "N and D.real",
        "maximum(1, N.real)",
    ],
)
def test_nothing_else_can_be_written(text):
    with pytest.raises(SpecError):
        parse_formula(text)


@pytest.mark.parametrize(
    "text", ["", "   ", "1 +", "N D", "(N", "N = 1", "import os", "N; D", "N\0", "`N", "``", "1__0", "N\nD"]
)
def test_what_is_no_formula_at_all(text):
    with pytest.raises(SpecError, match="is not a formula: write it as in Python, names with spaces in backticks"):
        parse_formula(text)


def test_powers_are_two_stars():
    with pytest.raises(SpecError, match=r"'E \+ A / N\^a': write \*\* for powers"):
        parse_formula("E + A / N^a")


def test_what_can_not_stand_is_named():
    with pytest.raises(SpecError, match="Training FLOP is not a function of formulas"):
        parse_formula("`Training FLOP`(6 * N)")
    with pytest.raises(SpecError, match=r"'1 \+ N\.real': 'N\.real' can't stand in a formula"):
        parse_formula("1 + N.real")
    with pytest.raises(SpecError, match=r"ln is not a function of formulas.*\(valid: abs, exp, log, log10"):
        parse_formula("ln(N)")
    with pytest.raises(SpecError, match=r"squrt is not a function of formulas; did you mean 'sqrt'\?"):
        parse_formula("squrt(N)")


@pytest.mark.parametrize("text", ["log()", "log(N, D)", "abs(N, D)", "minimum(N)", "maximum(N, D, N)"])
def test_functions_take_as_many_arguments_as_they_have(text):
    """NumPy's log takes a second argument, which it overwrites."""
    column = np.array([1.0, 2.0])
    with pytest.raises(SpecError):
        parse_formula(text).evaluate({"N": np.array([1.0, 2.0]), "D": column})
    assert column.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("text", ["N + 'a'", "-'a'", "log('a')", "N < 'a'", "'a' * 'b'"])
def test_arithmetic_of_text_is_an_error_of_the_user(text):
    with pytest.raises(SpecError):
        parse_formula(text).evaluate({"N": np.array([1.0, 2.0])})


def test_missing_names_come_with_the_nearest():
    with pytest.raises(SpecError, match=r"needs 'tokns', which is not known; did you mean 'tokens'\? \(valid: N, tokens\)"):
        parse_formula("N * tokns").evaluate({"N": 1.0, "tokens": 2.0})
    with pytest.raises(SpecError, match=r"needs 'Training FLOPs', which is not known; did you mean 'Training FLOP'\?"):
        parse_formula("`Training FLOPs` / 6").evaluate({"Training FLOP": 1.0})


def test_functions_names_may_be_names_of_columns():
    assert parse_formula("log(log)").evaluate({"log": math.e}) == pytest.approx(1)


def test_text_is_kept():
    assert parse_formula("C/(6*N)").text == "C/(6*N)"
