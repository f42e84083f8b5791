"""`docs/objectives.md` keeps its word: its table is that of the specs, and its example is a sound loss."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from reference import coarse

from limbeck.objectives.head import HeadStatistics
from limbeck.objectives.objective import objective_loss
from limbeck.signals.types import SparseTarget, TopKRows
from limbeck.spec.base import Spec, kind_of, parse, spec_classes
from limbeck.spec.objective import Custom, Objective, Term, serving_signals
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, Signal, TopKSignal, TopPSignal
from limbeck.testing import check_objective
from limbeck.testing.toy import make_toy, toy_rows

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


class Asked(Spec):
    objective: Objective
    signal: Signal


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Custom:
    """The page's example, written where the page says."""
    (tmp_path / "my_losses.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    asked = parse(Asked, yaml.safe_load(blocks("yaml")[0]), source="docs/objectives.md")
    assert isinstance(asked.objective, Custom)
    return asked.objective


def test_the_table_is_that_of_the_specs() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[1:] for row in rows if len(row) == 4}
    classes = {kind_of(each): each for each in spec_classes(Recipe.model_fields["objective"].annotation)}
    assert set(table) == set(classes)
    of_one_term = {kind_of(each) for each in spec_classes(Term)} - {"ce"}
    for kind in of_one_term:
        term = classes[kind](**({"function": "a:b"} if kind == "custom" else {}))
        assert set(re.findall(r"`(\w+)`", table[kind][1])) == set(serving_signals(term)), kind
    for kind, (_, _, settings) in table.items():
        keys = set(re.findall(r"`(\w+)`", settings)) - {"sampled", "weight", "term", "entropy"}
        fields = set(classes[kind].model_fields) - {"kind", "z_loss_weight", "temperature_squared"}
        assert keys == fields - (set() if kind in ("decoupled", "alm") else {"temperature"}), kind


@pytest.mark.parametrize("given", [HeadStatistics, SparseTarget])
def test_the_fields_that_a_loss_is_given_are_all_told(given: type) -> None:
    table = PAGE.partition(f"| `{given.__name__}`: ")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [field.name for field in fields(given)]


@pytest.mark.parametrize("signal", [TopKSignal(k=6), TopKSignal(k=6, temperature=2.0), TopPSignal(p=0.9, cap=9)])
def test_the_example_passes(objective: Custom, signal: Signal) -> None:
    assert {"pull", "towards the teacher", "padding"} <= set(check_objective(objective, signal=signal).checks)


def test_the_example_is_total_variation(objective: Custom) -> None:
    toy, signal = make_toy(), TopKSignal(k=6)
    rows = toy_rows(signal, toy)
    assert isinstance(rows, TopKRows)
    both = [coarse(each, rows.ids_TK) for each in (toy.teacher_probs(1.0), (toy.hidden_TD @ toy.head_VD.T).softmax(-1))]
    output = objective_loss(objective, hidden_TD=toy.hidden_TD, head_VD=toy.head_VD, targets_T=toy.targets_T, rows=rows)
    torch.testing.assert_close(output.loss, 0.5 * (both[0] - both[1]).abs().sum(-1).mean(), rtol=0, atol=1e-12)
    assert "custom_total_variation" in output.per_term


def test_the_pages_way_to_check_it_runs(objective: Custom) -> None:
    exec(blocks("python")[1], {})


def test_what_the_page_says_of_dense_is_the_forward_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def forward(student, target):\n    assert target is None and student.gathered_TK.shape[1] == 0\n"
    body += "    return student.lse_T - student.expected_T - student.teacher_entropy_T\n"
    (tmp_path / "losses_on_dense.py").write_text(body)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    report = check_objective(Custom(function="losses_on_dense:forward"), signal=DenseSignal())
    assert "towards the teacher" in report.checks
    toy = make_toy()
    p_TV, log_q_TV = toy.teacher_probs(1.0), (toy.hidden_TD @ toy.head_VD.T).log_softmax(-1)
    assert report.loss_nats == pytest.approx(float((p_TV * (p_TV.log() - log_q_TV)).sum(-1).mean()), abs=1e-10)
