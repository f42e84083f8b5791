"""The verdict says what the numbers say, whichever way they go."""

import dataclasses

import pytest
from handmade import BITS, cell, result, shifted, study

from limbeck.report.answer import answer, basis_sentences
from limbeck.report.arms import arms_of
from limbeck.report.axes import axes_of, axis_finding
from limbeck.report.comparisons import BASES, comparisons, equal_reading, nearest_pairs
from limbeck.report.limits import limits
from limbeck.runs import Costs


@pytest.fixture
def make_arm(make_run):
    def make(name, **keywords):
        return cell(name, make_run(**keywords))

    return make


def held_against(cells, control):
    """The cells, every one with the control on every basis."""
    others = [dataclasses.replace(each, controls=dict.fromkeys(BASES, control.name)) for each in cells if each is not control]
    return [control, *others]


def said(cells, control, stores=()):
    view = study(*held_against(cells, control), stores=stores)
    arms = arms_of(view)
    verdict = answer(view, arms, found=comparisons(arms), axes=[])
    return verdict.outcome, verdict.headline, " ".join(verdict.paragraphs).replace("\xa0", " ")


def judged(*cells):
    """Headline and the sentences of every basis of a study whose cells say themselves what they are held against."""
    view = study(*cells)
    arms = arms_of(view)
    found, axes = comparisons(arms), [axis_finding(axis) for axis in axes_of(arms)]
    bases = basis_sentences(found, arms)
    return answer(view, arms, found=found, axes=axes), [item.replace("\xa0", " ") for item in bases.items] if bases else []


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
    early = BITS + at_controls_end
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
    assert f"(10.0 s, the control’s end), “kl” stands at {BITS + stood:.4f}" in sentence
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
    assert said([control, cell("kl", None)], control)[1] == "Nothing to compare yet"


def test_a_better_arm_without_a_teacher_is_not_distillation(make_arm):
    control, tuned = make_arm("ce"), make_arm("tuned", documents=shifted(-0.5))
    taught = make_arm("kl", objective="forward_kl", documents=shifted(0.1))
    assert said([control, tuned, taught], control)[0] == "behind"


def test_other_heldout_documents_do_not_compare(make_arm):
    control, arm = make_arm("ce"), make_arm("kl", objective="forward_kl", documents=[(10, 10.0), (20, 20.0)])
    assert said([control, arm], control)[1] == "Not comparable"


def test_limits_speak_of_this_study(make_arm):
    control = make_arm("ce", parameters={"total": 900, "embedding": 500, "non_embedding": 400})
    first = make_arm("kl", objective="forward_kl", overrides={"optimizer.lr": 0.01, "seed": 7})
    second = make_arm("hard", objective="forward_kl")
    arms = arms_of(study(*held_against([control, first, second], control)))
    teacher = {"name": "X-Instruct", "bits_per_byte": 1.0}
    text = " ".join(limits(arms, found=comparisons(arms), teacher=teacher))
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


SLOW = Costs(10, 1000, 20.0, 1e12)


def test_over_seeds_the_verdict_says_so(seeds):
    cells = [*seeds("ce", [2.4, 2.5, 2.45]), *seeds("kl", [2.3, 2.38, 2.36], controls="ce", objective="forward_kl")]
    verdict, bases = judged(*cells)
    assert verdict.headline == "Distillation is ahead of the control at equal tokens"
    text = verdict.paragraphs[0].replace("\xa0", " ")
    assert "as a mean over 3 seeds, “kl”, the best arm with a teacher, needs 2.3467 bits per byte" in text
    assert "(95% interval over seeds −0.1" in text
    assert bases[0].startswith("At equal tokens, against the control “ce” (95% intervals over 3 seeds). Ahead: “kl” −0.1033 [")


def test_what_is_unequal_is_said_and_not_numbered(seeds):
    cells = [*seeds("ce", [2.4, 2.5]), *seeds("kl", [2.3, 2.38], controls="ce", objective="forward_kl", end=SLOW)]
    _, bases = judged(*cells)
    assert bases[1] == "At equal training seconds, against the control “ce”. No number: “kl” (unequal, 2.00×)."


def test_arms_without_teachers_are_counted_against_the_one_they_are_compared_with(seeds):
    base = seeds("base", [2.4, 2.5, 2.46])
    better = seeds("better", [2.3, 2.39, 2.37], compared_with="base")
    worse = seeds("worse", [2.6, 2.68, 2.67], compared_with="base")
    same = seeds("same", [2.41, 2.49, 2.46], compared_with="base")
    verdict, bases = judged(*base, *better, *worse, *same)
    assert verdict.headline == ("Of 3 arms at equal tokens: 1 ahead of “base”, 1 behind “base”, 1 cannot be told apart")
    assert verdict.outcome == "level"
    assert "Ahead: “better” −0.1000" in bases[0]
    assert "behind: “worse” +0.1967" in bases[0]
    assert "cannot be told apart: “same”" in bases[0]
    assert judged(*base, *better)[0].headline == "“better” is ahead of “base” at equal tokens"


def test_arms_with_controls_of_their_own_share_one_sentence(seeds):
    cells = []
    for number in range(3):
        cells += seeds(f"ce{number}", [2.4, 2.5])
        cells += seeds(f"kl{number}", [2.3, 2.4 + number / 1000], controls=f"ce{number}", objective="forward_kl")
    verdict, bases = judged(*cells)
    assert len(bases) == 3
    assert bases[0].startswith("At equal tokens, against their controls (95% intervals over 2 seeds). Ahead: “kl0” ")
    assert verdict.headline.startswith("Of 3 arms at equal tokens: ")


def test_a_single_run_claims_nothing(make_run):
    verdict, bases = judged(cell("alone", make_run()))
    assert (verdict.outcome, bases) == ("unknown", [])
    assert verdict.headline == "One arm, and nothing to compare it with"
    assert verdict.paragraphs == ("“alone” needs 2.3370 bits per byte after 1,000 tokens (1 seed).",)


def test_a_study_of_axes_alone_names_the_best_values(seeds):
    cells = [*seeds("a", [2.0, 2.01, 2.0], settings={"lr": 1}), *seeds("b", [2.5, 2.52, 2.5], settings={"lr": 2})]
    assert judged(*cells)[0].headline == "Best: lr = 1"
    level = [*seeds("a", [2.0, 2.1, 2.0], settings={"lr": 1}), *seeds("b", [2.1, 2.0, 2.05], settings={"lr": 2})]
    assert judged(*level)[0].headline == "No value of an axis can be told from the best"


def test_headline_and_table_hold_the_same_costs_for_equal(seeds):
    end = Costs(step=10, tokens=1040, seconds=10.4, student_flops=1e12, teacher_flops=1e12)
    cells = [*seeds("ce", [2.4, 2.5, 2.6]), *seeds("kl", [2.3, 2.4, 2.5], controls="ce", objective="forward_kl", end=end)]

    def found(**values):
        view = study(*cells, **values)
        arms = arms_of(view)
        each = comparisons(arms)
        equal = {one.basis for one in each if one.difference is not None}
        reading = equal_reading(nearest_pairs(arms.named("kl"), arms), "tokens", arms=arms)
        return answer(view, arms, found=each, axes=[]).headline.split(" at ")[1], equal, reading.read_early

    assert found() == ("equal student FLOPs", set(), "arm")
    assert found(teacher_share=0.0) == ("equal FLOPs of the student", {"flops"}, "arm")
    assert found(tolerance=0.05) == ("equal tokens", {"tokens", "seconds"}, "neither")


def test_limits_count_intervals_of_metrics_and_of_axes(seeds):
    cells = []
    for lr, bits in ((1, [2.4, 2.5, 2.61]), (2, [2.3, 2.4, 2.5]), (3, [2.2, 2.3, 2.39])):
        controls = {} if lr == 1 else {"compared_with": "a1"}
        for number, each in enumerate(seeds(f"a{lr}", bits, settings={"lr": lr}, **controls)):
            evals = {"latency": result("latency", {"x": 1.0 * number * lr, "y": 2.0 * number * lr})}
            cells.append(dataclasses.replace(each, evals=evals))
    arms = arms_of(study(*cells))
    axes = [axis_finding(axis) for axis in axes_of(arms)]
    text = " ".join(limits(arms, found=comparisons(arms), teacher=None, axes=axes))
    # Two arms on three bases, two arms with two metrics, and three pairs of three values.
    assert "There are 13 comparisons here (6 of bits per byte, 4 of other metrics, 3 between values of an axis)" in text


def test_limits_name_seeds_many_comparisons_unequal_costs_and_what_is_lost(seeds):
    cells = seeds("ce", [2.4, 2.5, 2.6])
    for number in range(5):
        cells += seeds(f"kl{number}", [2.3, 2.4, 2.5 + number / 100], controls="ce", objective="forward_kl", end=SLOW)
    lost = cell("bad", None, seed=1, status="failed", note="out of memory", controls={"tokens": "ce-1"})
    arms = arms_of(study(*cells, lost))
    text = " ".join(limits(arms, found=comparisons(arms), teacher=None)).replace("\xa0", " ")
    assert "Arms were trained with 3 seeds, and differences are paired by seed" in text
    assert "There are 10 comparisons here" in text
    assert "about 0.5 would exclude zero by chance" in text
    assert "more than 2% are not compared as equal: “kl0” in seconds" in text
    assert "Not part of any mean: “bad-1” (failed: out of memory)." in text
