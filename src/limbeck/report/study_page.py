"""The report of a study: from its cells to one page, in the order in which a reader asks.

The question and the answer in words, what every arm reached, curves, axes, costs, how the plan held, stores, evaluations, what
may and may not be concluded, and what it takes to do it again. One run is a study with one cell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from limbeck import __version__
from limbeck.report.answer import answer, axis_sentence, basis_sentences
from limbeck.report.arms import Arms, arms_of
from limbeck.report.axes import AxisFinding, AxisOf, axes_of, axis_finding, split
from limbeck.report.axis_figures import axis_table, draw_axis, setting_table
from limbeck.report.blocks import Block, Bullets, Drawn, Heading, Paragraph, Source, Table
from limbeck.report.by_size import draw_by_size
from limbeck.report.calibration import draw_reliability
from limbeck.report.cells import StudyView
from limbeck.report.comparisons import Comparison, comparisons
from limbeck.report.eval_tables import detail_tables, eval_names, metric_difference_table, metric_table
from limbeck.report.experts import course_table, draw_experts, expert_table
from limbeck.report.figures import MOST_CURVES, chosen, draw_curves
from limbeck.report.files import write_files
from limbeck.report.forest import draw_differences
from limbeck.report.limits import limits
from limbeck.report.predicted import predicted_table
from limbeck.report.rollouts import rollout_table
from limbeck.report.samples import samples
from limbeck.report.setup import (
    difference_table,
    environment_table,
    fidelity_table,
    main_arm,
    setup_table,
    store_table,
)
from limbeck.report.stages import milestone_table, stage_table, trace_table
from limbeck.report.tables import arms_table, cells_table, comparison_table, cost_table, curve_table, equal_table
from limbeck.runs import Run

CALIBRATION = "calibration"
WRITTEN = ("generation", "gsm")
"""Kinds that keep what models wrote."""
_MOST_RECIPES = 24


def write_study_report(view: StudyView, *, folder: Path) -> Path:
    """Write `folder/report.html`, `report.md`, `figures/` and `tables/`; the path of the page.

    The page needs no other file. Cells that are not finished are shown as such. `LimbeckError` where cells share a name, or are
    held against what is not there or learns from a teacher itself. Every file is replaced whole; the page comes last.
    """
    return write_files(study_blocks(view), title=view.name, folder=folder)


def study_blocks(view: StudyView) -> list[Block]:
    """The whole report before it is written."""
    arms = arms_of(view)
    found = comparisons(arms)
    axes = axes_of(arms)
    findings = {axis.title: finding for axis in axes if (finding := axis_finding(axis)) is not None}
    teacher = teacher_of(view, arms)
    return [
        *_answer(view, arms, found, list(findings.values())),
        *_arms(arms, found, teacher),
        *_evaluations(view, arms),
        *_curves(arms, teacher),
        *_axes(arms, axes, findings),
        *_costs(arms),
        *_stages(arms),
        *_experts(arms),
        *_rollouts(arms),
        *_predicted(view, arms),
        *_stores(view, arms),
        *_calibration(view, arms),
        *_generation(view, arms),
        *_details(view, arms),
        *_limits(arms, found, teacher, list(findings.values())),
        *_setup(view, arms),
    ]


def teacher_of(view: StudyView, arms: Arms) -> Mapping[str, Any] | None:
    """The one teacher of a study, as its runs know it: name, bits per byte, FLOPs per token; None where there are several."""
    known = [member.summary["teacher"] for member in arms.members if member.summary.get("teacher")]
    return known[0] if len({teacher["name"] for teacher in known}) == 1 else None


def _answer(view: StudyView, arms: Arms, found: Sequence[Comparison], findings: Sequence[AxisFinding]) -> list[Block]:
    blocks: list[Block] = [Paragraph(f"{_scale(arms)} Limbeck {__version__}.", soft=True)]
    if view.question:
        blocks.append(Paragraph(f"Question: {view.question}"))
    blocks.append(answer(view, arms, found=found, axes=findings))
    bases = basis_sentences(found, arms)
    if bases is not None:
        blocks.append(bases)
    if findings:
        blocks.append(Bullets(tuple(map(axis_sentence, findings))))
    return blocks


def _scale(arms: Arms) -> str:
    """What the answer rests on: arms, runs and their states."""
    states = [member.status for member in arms.members]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    number = f"{len(arms)} arm{'s' if len(arms) != 1 else ''}, {len(states)} run{'s' if len(states) != 1 else ''}"
    return f"{number}: {counted}." if states else "No runs."


def _arms(arms: Arms, found: Sequence[Comparison], teacher: Mapping[str, Any] | None) -> list[Block]:
    figure = draw_differences(arms, found)
    blocks: list[Block] = [figure] if figure is not None else []
    blocks += [Heading("Arms"), arms_table(arms, found=found, teacher=teacher), Paragraph(_ARMS_NOTE, soft=True)]
    notes = [f"“{member.name}” is {member.status}: {member.cell.note}" for member in arms.members if member.cell.note]
    return [*blocks, *([Bullets(tuple(notes))] if notes else []), cells_table(arms), comparison_table(found)]


_ARMS_NOTE = (
    "Fewer bits per byte are better. ± is the standard deviation over n seeds; in brackets are 95% intervals: of differences "
    "over the n seeds, paired by seed, or over what the cell says: with one seed a bootstrap over held-out documents, paired "
    "by document. “Unequal”: the costs differ by more than the study allows, so there is no number."
)


def _evaluations(view: StudyView, arms: Arms) -> list[Block]:
    names = [name for name in eval_names(arms, view.teachers) if name not in _calibrations(view, arms)]
    tables = [table for name in names for table in _metric_tables(name, view, arms)]
    figure = draw_by_size(arms, view.teachers)
    return [Heading("Evaluations"), *([figure] if figure is not None else []), *tables] if tables else []


def _metric_tables(name: str, view: StudyView, arms: Arms) -> list[Table]:
    both = (metric_table(name, arms, view.teachers), metric_difference_table(name, arms))
    return [table for table in both if table is not None]


def _calibrations(view: StudyView, arms: Arms) -> list[str]:
    return eval_names(arms, view.teachers, kinds=(CALIBRATION,))


def _curves(arms: Arms, teacher: Mapping[str, Any] | None) -> list[Block]:
    figures: list[Drawn] = draw_curves(arms, teacher=teacher)
    if not figures:
        return [Heading("Curves"), Paragraph("Nothing has been measured yet.")]
    blocks: list[Block] = [Heading("Curves")]
    if len(chosen(arms)) == MOST_CURVES and len(arms) > MOST_CURVES:
        note = f"Drawn are {MOST_CURVES} of {len(arms)} arms: those that others are held against, and the best."
        blocks.append(Paragraph(f"{note} tables/curves.csv has all.", soft=True))
    blocks += [*figures, curve_table(arms)]
    equal = equal_table(arms)
    if equal.rows:
        blocks += [Heading("Read off the curves at an equal cost"), equal, Paragraph(_EQUAL_NOTE, soft=True)]
    return blocks


_EQUAL_NOTE = (
    "Bits per byte of the arm minus what it is held against, means over seeds, at the cost in brackets; negative is better. "
    "Where one run ends before the other, the longer one is read at that cost on the straight line between two of its "
    "measurements, before its learning rate has decayed; both count against it. "
    "“No overlap”: the longer run was first measured beyond the shorter one’s end. “No difference told”: the interval over "
    "seeds contains zero, or with one seed not more than the half-width of the final interval."
)


def _stages(arms: Arms) -> list[Block]:
    tables = [table for table in (stage_table(arms), milestone_table(arms), trace_table(arms)) if table is not None]
    return [Heading("Stages"), *tables, Paragraph(_STAGES_NOTE, soft=True)] if tables else []


_STAGES_NOTE = (
    "Bits per byte are those of held-out documents in windows of the stage’s own length, so that stages of other lengths do "
    "not quite compare. Padding is the share of positions that hold nothing; left out are documents longer than a sequence. "
    "Students of milestones/ and stages/ in each run’s folder are "
    "measured with `limbeck eval`, side by side with --by-position."
)


def _experts(arms: Arms) -> list[Block]:
    found = [block for block in (draw_experts(arms), expert_table(arms), course_table(arms)) if block is not None]
    return [Heading("Experts"), *found, Paragraph(_EXPERTS_NOTE, soft=True)] if found else []


_EXPERTS_NOTE = (
    "On the same held-out tokens at every evaluation. Busiest / mean: tokens of the busiest expert over the mean, 1 where all "
    "see as many. Entropy / even: that of the loads over that of even ones. Dead: experts that see less than a tenth of the "
    "mean. Drift: the share of a token’s experts that are others than at the evaluation before, and than at the first."
)


def _rollouts(arms: Arms) -> list[Block]:
    table = rollout_table(arms)
    return [] if table is None else [Heading("What students wrote as they learnt"), table, Paragraph(_ROLLOUTS_NOTE, soft=True)]


_ROLLOUTS_NOTE = (
    "Means over the first and the last tenth of a run’s steps, of rollouts at temperature 1. Rollouts that grow longer, stop "
    "less often or end in loops while the divergence falls are a collapse: inside a loop student and teacher agree. The "
    "rollouts themselves are in rollouts.jsonl of each run."
)


def _axes(arms: Arms, axes: Sequence[AxisOf], findings: Mapping[str, AxisFinding]) -> list[Block]:
    blocks: list[Block] = [figure for axis in axes if (figure := draw_axis(axis, arms)) is not None]
    for axis in axes:
        if axis.title not in findings:
            continue
        finding = findings[axis.title]
        blocks += [axis_table(finding), Paragraph(_over(finding), soft=True)]
        apart = [(part, found) for part in split(axis) if (found := axis_finding(part)) is not None]
        if len(apart) > 1:
            blocks.append(setting_table(axis, apart))
    return [Heading("Axes"), *blocks] if blocks else []


def _over(finding: AxisFinding) -> str:
    averaged = f", averaged over {finding.settings} settings of the other axes" if finding.settings > 1 else ""
    over = {"seeds": f"over {finding.seeds} seeds", "documents": "over held-out documents (one seed)", "nothing": "not known"}
    return f"{finding.title}{averaged}; intervals {over[finding.over]}, paired."


def _costs(arms: Arms) -> list[Block]:
    return [Heading("Costs"), cost_table(arms), Paragraph(_COST_NOTE, soft=True)]


_COST_NOTE = (
    "A run of each arm, the mean over its seeds. Step time is seconds per optimizer step relative to what the arm is held "
    "against. The teacher’s FLOPs are those for the rows that an arm used, each row of a store once. Bytes are those read from "
    "the store."
)


def _predicted(view: StudyView, arms: Arms) -> list[Block]:
    table = predicted_table(arms, view.stores)
    return [Heading("Predicted → measured"), table, Paragraph(_PREDICTED_NOTE, soft=True)] if table is not None else []


_PREDICTED_NOTE = "What the planner said before the runs, what was measured, and their ratio; means over finished runs."


def _stores(view: StudyView, arms: Arms) -> list[Block]:
    taught = any(member.has_teacher for member in arms.members)
    if not view.stores and not view.fidelity and not taught:
        return []
    blocks: list[Block] = [Heading("Signal stores")]
    blocks.append(
        store_table(view.stores, arms) if view.stores else Paragraph("No signal store was used, or none is there now.")
    )
    if view.fidelity:
        blocks.append(fidelity_table(view.fidelity))
    return blocks


def _calibration(view: StudyView, arms: Arms) -> list[Block]:
    blocks: list[Block] = []
    for name in _calibrations(view, arms):
        figure = draw_reliability(name, arms, view.teachers)
        blocks += [*([figure] if figure is not None else []), *_metric_tables(name, view, arms)]
    return [Heading("Calibration"), *blocks] if blocks else []


def _generation(view: StudyView, arms: Arms) -> list[Block]:
    names = eval_names(arms, view.teachers, kinds=WRITTEN)
    shown = [sample for name in names for sample in samples(name, arms, view.teachers)]
    if not shown:
        return []
    note = "A few samples of one run of every arm, loops first. Grey is the prompt; the marked part repeats."
    return [Heading("Samples"), Paragraph(note, soft=True), *shown]


def _details(view: StudyView, arms: Arms) -> list[Block]:
    tables = [table for name in eval_names(arms, view.teachers) for table in detail_tables(name, arms, view.teachers)]
    note = "One run of every arm; the tables’ files have all."
    return [Heading("Evaluations in detail"), Paragraph(note, soft=True), *tables] if tables else []


def _limits(
    arms: Arms, found: Sequence[Comparison], teacher: Mapping[str, Any] | None, axes: Sequence[AxisFinding]
) -> list[Block]:
    reasons = limits(arms, found=found, teacher=teacher, axes=axes) if len(arms) else []
    return [Heading("What this may and may not tell you"), Bullets(tuple(reasons))] if reasons else []


def _setup(view: StudyView, arms: Arms) -> list[Block]:
    blocks: list[Block] = [Heading("To do it again")]
    if view.command:
        blocks.append(Source("Command", view.command, open=True))
    if len(arms) and main_arm(arms).first.run is not None:
        blocks += [setup_table(main_arm(arms).first), difference_table(arms), environment_table(arms)]
    if view.source:
        blocks.append(Source("Study", view.source))
    begun = [arm.first for arm in arms if arm.first.run is not None]
    blocks += [Source(f"Recipe of “{member.name}”", _recipe(member.run)) for member in begun[:_MOST_RECIPES]]
    if len(begun) > _MOST_RECIPES:
        blocks.append(Paragraph(f"{len(begun) - _MOST_RECIPES} more recipes are in their runs’ folders.", soft=True))
    return blocks


def _recipe(run: Run | None) -> str:
    assert run is not None, "only what has begun has a recipe"
    return yaml.safe_dump(run.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
