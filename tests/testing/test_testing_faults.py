"""`check_objective` finds a planted fault of each sort, in losses that a user brings, and names the rule."""

import pytest
import torch

from limbeck.errors import SpecError
from limbeck.spec.objective import CrossEntropy, Custom, ForwardKL, Mixture, Objective, ReverseKL
from limbeck.spec.signal import DenseSignal, SampledSignal, Signal, TopKSignal, TopPSignal
from limbeck.testing import Claims, ConformanceError, Plain, check_objective

TOPK = TopKSignal(k=6)
WHOLE = TopKSignal(k=31)
REST = Claims(zero_at_teacher=True)


def custom(name: str) -> Custom:
    return Custom(function=f"faulty_losses:{name}")


def test_a_users_own_loss_passes_where_it_is_sound() -> None:
    report = check_objective(custom("sound"), signal=TOPK, claims=REST)
    assert {"gradient of its value", "student equal to teacher", "padding", "misalignment"} <= set(report.checks)
    assert check_objective(custom("sound"), signal=WHOLE, claims=REST).scale == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("wrong_gradient", "gradient of its value"),
        ("means_over_the_batch", "mask|chunks"),
        ("knows_its_position", "permutation"),
        ("reads_padding", "padding"),
        ("is_deaf_to_the_teacher", "misalignment"),
        ("overflows", "finite"),
        ("is_never_at_rest", "student equal to teacher"),
    ],
)
def test_a_fault_is_named(name: str, rule: str) -> None:
    claims = Claims(zero_at_teacher=name == "is_never_at_rest")
    with pytest.raises(ConformanceError, match=rf"^({rule})"):
        check_objective(custom(name), signal=TOPK, claims=claims)


def test_a_hidden_factor_is_found_by_the_stated_scale() -> None:
    stated = Claims(zero_at_teacher=True, scale=2.0)
    assert "scale" in check_objective(custom("sound"), signal=WHOLE, claims=stated).checks
    with pytest.raises(ConformanceError, match=r"^scale: 1\.0.* beside the stated 2"):
        check_objective(custom("hides_a_factor"), signal=WHOLE, claims=stated)


def test_a_wrong_twin_is_not_believed() -> None:
    def of_other_text(plain: Plain) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(plain.logits_TV, plain.targets_T.roll(1), reduction="none")

    with pytest.raises(ConformanceError, match="plain twin"):
        check_objective(CrossEntropy(), twin=of_other_text)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("forgets_the_mean", r"returned the shape \(\) for 17 positions"),
        ("stumbles", r"raised AttributeError at faulty_losses\.py:\d+ \("),
        ("wants_the_text", "raised TypeError"),
    ],
)
def test_a_loss_without_a_value_for_each_position_is_refused(name: str, found: str) -> None:
    with pytest.raises(ConformanceError, match=rf"^a loss for each position: objective\.function=faulty_losses:{name} {found}"):
        check_objective(custom(name), signal=TOPK)


@pytest.mark.parametrize(
    ("name", "signal", "rule"),
    [
        ("has_the_wrong_sign", TOPK, r"towards the teacher: -0\.99.* nats near the teacher, -5\.8"),
        ("has_the_wrong_sign", TopPSignal(p=0.9, cap=9), "towards the teacher"),
        ("is_wrong_on_dense", DenseSignal(), "towards the teacher"),
        ("says_nothing", TOPK, "pull: the gradient at the logits is 0"),
        ("subtracts_itself", WHOLE, "pull: the gradient at the logits is"),
    ],
)
def test_a_loss_that_would_not_teach_is_refused_without_claims(name: str, signal: Signal, rule: str) -> None:
    with pytest.raises(ConformanceError, match=rf"^{rule}"):
        check_objective(custom(name), signal=signal)


@pytest.mark.parametrize(
    ("objective", "signal"),
    [(ReverseKL(form="stop_gradient"), TopKSignal(k=2)), (CrossEntropy(z_loss_weight=1.0), TOPK)],
)
def test_ours_that_are_no_distance_do_not_claim_to_be(objective: Objective, signal: Signal) -> None:
    assert "towards the teacher" not in check_objective(objective, signal=signal).checks


def test_a_term_that_is_no_distance_can_say_so() -> None:
    claims = Claims(zero_at_teacher=False, hears_misalignment=False, prefers_its_teacher=False)
    report = check_objective(custom("has_the_wrong_sign"), signal=TOPK, claims=claims)
    assert "towards the teacher" not in report.checks
    assert "pull" in report.checks


@pytest.mark.parametrize("function", ["no_such_module:loss", "faulty_losses:absent"])
def test_a_function_that_is_not_there_is_named(function: str) -> None:
    with pytest.raises(SpecError, match=rf"objective\.function={function} cannot be loaded"):
        check_objective(Custom(function=function), signal=TOPK)


def test_an_objective_on_a_signal_that_cannot_serve_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"signal\.kind=topk has no hidden states"):
        check_objective(Mixture(terms=({"weight": 1, "term": {"kind": "hidden"}},)), signal=TOPK)


def test_sampled_is_not_held_to_zero_at_its_teacher() -> None:
    assert "student equal to teacher" not in check_objective(ForwardKL(), signal=SampledSignal(draws=9)).checks
