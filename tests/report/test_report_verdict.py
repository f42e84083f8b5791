"""The verdict says what the numbers say, whichever way they go."""

import pytest
from handmade import shifted

from limbeck.errors import LimbeckError
from limbeck.report.arms import Arm, find_control
from limbeck.report.limits import limits
from limbeck.report.verdict import decide
from limbeck.runs import Costs


def said(arms, control, stores=()):
    verdict = decide(arms, control=control, stores=stores)
    return verdict.outcome, verdict.headline, " ".join(verdict.paragraphs).replace("\xa0", " ")


def test_win(make_arm):
    control, worse = make_arm("ce"), make_arm("worse", objective="forward_kl", documents=shifted(-0.1))
    best = make_arm("kl", objective="forward_kl", documents=shifted(-0.2, wobble=0.05))
    outcome, headline, text = said([control, worse, best], control)
    assert (outcome, headline) == ("ahead", "Distillation is ahead of the control at equal tokens")
    assert "“kl”, the best arm" in text
    assert "the distilled student is better" in text
    assert "2 ahead" in text


def test_loss(make_arm):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl", documents=shifted(0.2, wobble=0.05))
    outcome, headline, text = said([control, arm], control)
    assert (outcome, headline) == ("behind", "Distillation is behind the control at equal tokens")
    assert "the distilled student is worse" in text


@pytest.mark.parametrize("amount", [-0.02, 0.05])
def test_tie(make_arm, amount):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl", documents=shifted(amount, wobble=0.1))
    outcome, headline, text = said([control, arm], control)
    assert outcome == "level"
    assert headline.startswith("No difference")
    assert "the interval contains zero, so no difference can be told" in text
    assert "better" not in text
    assert "worse" not in text


def test_without_documents_there_is_no_interval_and_no_claim(make_arm):
    control = make_arm("ce", documents=None, bits_per_byte=2.5)
    arm = make_arm("kl", objective="forward_kl", documents=None, bits_per_byte=2.0)
    outcome, headline, text = said([control, arm], control)
    assert outcome == "unknown"
    assert headline.startswith("Whether distillation differs from the control cannot be told")
    assert "−0.5000" in text


def test_costs_are_compared_with_the_teacher_counted_and_scoring_named(make_arm):
    control = make_arm("ce", end=Costs(10, 1000, 20.0, 1e12))
    arm = make_arm("kl", objective="forward_kl", documents=shifted(-0.2), end=Costs(10, 1000, 25.0, 1e12, 3e12))
    store = {"path": arm.run.recipe.store_path, "tokens": 9000, "scoring_tokens_per_second": 100.0}
    _, _, text = said([control, arm], control, [store])
    assert "25.0 s against 20.0 s (1.25×)" in text
    assert "it spent 4.00× the control’s" in text
    assert "scoring of the signal store, which took about 90.0 s" in text
    assert "nothing can be said: the curves do not overlap, since “kl” is first measured at 4.00 × 10¹² FLOPs" in text


def slow_win(make_arm, at_controls_end):
    """An arm that ends 0.2 ahead but took twice as long; at the control's end it stood where the caller says."""
    control = make_arm("ce", end=Costs(10, 1000, 10.0, 1e12))
    early = control.bits_per_byte + at_controls_end
    end = Costs(10, 1000, 20.0, 1e12, 1e12)
    documents = shifted(-0.2, wobble=0.05)
    return control, make_arm(
        "kl", objective="forward_kl", documents=documents, evals=[(Costs(5, 500, 10.0, 5e11, 5e11), early)], end=end
    )


@pytest.mark.parametrize(
    ("stood", "words"),
    [(-0.1, "the control does not catch up"), (0.1, "the control is ahead"), (0.001, "no difference can be told")],
)
def test_equal_seconds_is_its_own_question(make_arm, stood, words):
    control, arm = slow_win(make_arm, stood)
    outcome, _, text = said([control, arm], control)
    assert outcome == "ahead"
    sentence = text[text.index("At equal training seconds") :].split(". ")[0]
    assert f"(10.0 s, the control’s end), “kl” stands at {control.bits_per_byte + stood:.4f}" in sentence
    assert words in sentence


def test_equal_ends_refer_to_the_final_comparison(make_arm):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl", documents=shifted(-0.2))
    assert "Both spent the same training seconds" in said([control, arm], control)[2]


def test_unequal_budgets_are_not_called_equal(make_arm):
    control = make_arm("ce", end=Costs(10, 1000, 10.0, 1e12))
    arm = make_arm("kl", objective="forward_kl", documents=shifted(-0.2), end=Costs(20, 2000, 30.0, 2e12, 3e12))
    assert said([control, arm], control)[1].endswith("at the end of unequal budgets")


def test_nothing_to_compare_yet(make_arm):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl")
    unfinished = make_arm("ce2", finished=False)
    assert said([unfinished, arm], unfinished)[1] == "Nothing to compare yet"
    assert said([control, Arm("kl", None)], control)[1] == "Nothing to compare yet"


def test_a_better_arm_without_a_teacher_is_not_distillation(make_arm):
    control, tuned = make_arm("ce"), make_arm("tuned", documents=shifted(-0.5))
    taught = make_arm("kl", objective="forward_kl", documents=shifted(0.1))
    assert said([control, tuned, taught], control)[0] == "behind"


def test_other_heldout_documents_do_not_compare(make_arm):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl", documents=[(10, 10.0), (20, 20.0)])
    assert said([control, arm], control)[1] == "Not comparable"


def test_no_control(make_arm):
    arm = make_arm("kl", objective="forward_kl")
    with pytest.raises(LimbeckError, match=r"control=ce is not one of the arms \(kl\)"):
        find_control([arm], "ce")
    with pytest.raises(LimbeckError, match="learns from a teacher itself"):
        find_control([arm], "kl")
    with pytest.raises(LimbeckError, match="share a name"):
        find_control([arm, arm], "kl")


def test_limits_speak_of_this_study(make_arm):
    control = make_arm("ce", parameters={"total": 900, "embedding": 500, "non_embedding": 400})
    first = make_arm("kl", objective="forward_kl", overrides={"optimizer.lr": 0.01, "seed": 7})
    second = make_arm("hard", objective="forward_kl")
    arms = [control, first, second]
    text = " ".join(limits(arms, control=control, teacher={"name": "X-Instruct", "bits_per_byte": 1.0}))
    assert "in objective" not in text
    for words in (
        "differ in their seed (0, 7)",
        "6 held-out documents, 9.2\xa0kB",
        "The best of 2 arms was chosen",
        "900 parameters",
        "1,000 tokens, 2.5 for each parameter",
        "“kl” in optimizer.lr; “kl” in seed",
        "X-Instruct, was tuned",
        "1.0000 bits per byte on these documents, 1.3370 fewer",
    ):
        assert words in text
