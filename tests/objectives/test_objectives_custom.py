"""A user's own loss: found where it lies, named apart from ours, and told in one line when it is wrong."""

import sys
from pathlib import Path

import pytest
import torch
from objective_problem import gradients, loss_of, problem, topk_rows
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.objectives.custom import load_function
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget
from limbeck.spec.objective import Custom, Mixture

FINE = "def loss(student, target):\n    return student.lse_T\n"


def log_sum(student: HeadStatistics, target: SparseTarget) -> Tensor:
    return student.lse_T


z_loss = ce = seconds = hidden_cosine = log_sum
not_a_function = 3


def of_one(student: HeadStatistics) -> Tensor:
    return student.lse_T


def number(student: HeadStatistics, target: SparseTarget) -> float:
    return 1.0


def counts(student: HeadStatistics, target: SparseTarget) -> Tensor:
    return target.ids_TK[:, 0]


def detached(student: HeadStatistics, target: SparseTarget) -> Tensor:
    return student.lse_T.detach()


def stumbles(student: HeadStatistics, target: SparseTarget) -> Tensor:
    return student.lse_T + target.no_such_field


def own(name: str) -> Custom:
    return Custom(function=f"{__name__}:{name}")


def own_loss(name: str) -> Tensor:
    given = problem()
    return loss_of(own(name), given, topk_rows(given.teacher_probs(), 5)).loss


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of an installed script: not on the path."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["z_loss", "ce", "seconds", "hidden_cosine"])
def test_a_name_that_is_ours_too_stays_apart(name: str) -> None:
    """Loss and gradient are those of lse + 0.1 lse^2, whatever the function is called."""
    given = problem()
    objective = Custom(function=f"{__name__}:{name}", z_loss_weight=0.1)
    output = loss_of(objective, given, topk_rows(given.teacher_probs(), 5))
    lse_T = torch.logsumexp(given.hidden_TD @ given.head_VD.T, -1)
    expected = (lse_T + 0.1 * lse_T**2).mean()
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(output.loss, given), gradients(expected, given), rtol=0, atol=1e-12)
    assert set(output.per_term) == {"ce", f"custom_{name}", "z_loss"}
    torch.testing.assert_close(output.per_term[f"custom_{name}"], lse_T.mean().detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(output.per_term["z_loss"], (lse_T**2).mean().detach(), rtol=0, atol=1e-12)


def test_two_functions_of_one_name_are_numbered(folder: Path) -> None:
    (folder / "other_file_of_one_name.py").write_text("def log_sum(student, target):\n    return 2 * student.lse_T\n")
    given = problem()
    both = Mixture(
        terms=(
            {"weight": 1, "term": own("log_sum")},
            {"weight": 1, "term": {"kind": "custom", "function": "other_file_of_one_name:log_sum"}},
        )
    )
    found = loss_of(both, given, topk_rows(given.teacher_probs(), 5)).per_term
    torch.testing.assert_close(found["custom_log_sum_2"], 2 * found["custom_log_sum"], rtol=0, atol=1e-12)


def test_a_file_in_the_working_directory_is_found(folder: Path) -> None:
    (folder / "losses_beside_the_recipe.py").write_text(FINE)
    assert callable(load_function("losses_beside_the_recipe:loss"))


def test_the_working_directory_is_searched_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file there that is called like a module of Python's own must not take its place."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (folder / "colorsys.py").write_text("")
    (folder / "losses_that_need_colours.py").write_text("from colorsys import rgb_to_hsv\n" + FINE)
    assert callable(load_function("losses_that_need_colours:loss"))


@pytest.mark.parametrize(
    ("text", "function", "complaint"),
    [
        ("def loss(:\n", "loss", r"SyntaxError: invalid syntax \(broken_file.py, line 1\)"),
        ("1 / 0\n", "loss", "ZeroDivisionError: division by zero"),
        ("import a_package_that_is_not_there\n", "loss", "No module named 'a_package_that_is_not_there'"),
        (FINE, "lost", "has no attribute 'lost'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_sentence(folder: Path, text: str, function: str, complaint: str) -> None:
    (folder / "broken_file.py").write_text(text)
    with pytest.raises(SpecError, match=rf"objective\.function=broken_file:{function} cannot be loaded \(.*{complaint}"):
        load_function(f"broken_file:{function}")
    sys.modules.pop("broken_file", None)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("not_a_function", "is of type int: name a function"),
        ("of_one", r"raised TypeError \(of_one\(\) takes 1 positional argument but 2 were given\): it is called with"),
        ("number", "returned float and not a tensor"),
        ("counts", r"returned a tensor of torch\.int64"),
        ("detached", "returned a tensor without a gradient"),
    ],
)
def test_what_is_no_loss_is_one_sentence(name: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=rf"^objective\.function={__name__}:{name} {complaint}"):
        own_loss(name)


def test_where_a_function_stumbles_is_told() -> None:
    line = stumbles.__code__.co_firstlineno + 1
    with pytest.raises(SpecError, match=rf"raised AttributeError at {Path(__file__).name}:{line} \(.*no_such_field"):
        own_loss("stumbles")


def test_without_gradients_none_is_asked_for() -> None:
    with torch.no_grad():
        assert torch.isfinite(own_loss("detached"))
