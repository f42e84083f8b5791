"""What is measured and kept while a run goes on: evaluations, milestones, ends of stages.

    RUN/milestones/AMOUNT/   the student as it was when so much of the budget was spent, a Hugging Face folder
    RUN/stages/NAME/         the student as a stage left it; the last stage's is RUN/student/

All of it is done before the step's checkpoint: a run that is killed in between does it again, and none twice.
"""

import copy
from pathlib import Path

import torch

from limbeck.optim.averaging import WeightAverage
from limbeck.runs import Costs, RunWriter
from limbeck.students.pretrained import PretrainedStudent
from limbeck.train.budget import fraction, passes_a_multiple
from limbeck.train.course import Course
from limbeck.train.expert_watch import watch_experts
from limbeck.train.measure import measure, save_student
from limbeck.train.setup import Setup
from limbeck.train.sharding import gathered


def on_the_way(
    setup: Setup, course: Course, before: Costs, costs: Costs, *, average: WeightAverage, path: Path, writer: RunWriter | None
) -> None:
    """After every step. Measured by the process that writes, and by all where each holds a part of the student.

    What is kept is measured in float32, as `limbeck eval` measures the folder.
    """
    budget = course.recipe.budget
    milestones = course.milestones(before, costs)
    ended = course.stage is not None and not course.is_last and fraction(budget, costs) >= course.ends
    multiple = passes_a_multiple(budget, before, costs, every=course.recipe.evaluation.every) and fraction(budget, costs) < 1
    if not (milestones or ended or multiple) or (writer is None and not setup.sharded):
        return
    folders = [path / "milestones" / amount_name(each) for each in milestones]
    folders += [path / "stages" / course.stage.name] if ended and course.stage is not None else []
    with average.swapped(setup.student):
        heldout = measure(setup, dtype=torch.float32 if folders else setup.dtype)
        if folders:
            _keep(setup, folders)
        if writer is not None and (multiple or ended):
            writer.record("eval", costs, bits_per_byte=heldout.bits_per_byte, kl_to_teacher_nats=None)
        watch_experts(setup, course.recipe, costs, path=path, writer=writer)
    if writer is None:
        return
    length = setup.recipe.data.sequence_length
    for amount in milestones:
        writer.record("milestone", costs, amount=amount, bits_per_byte=heldout.bits_per_byte, sequence_length=length)


def amount_name(amount: float) -> str:
    """An amount of the budget as the name of a folder."""
    return str(int(amount)) if amount == int(amount) else repr(amount)


def _keep(setup: Setup, folders: list[Path]) -> None:
    """The student as it is, in each folder; what is there is replaced as a whole. It goes on training as it was."""
    student = gathered(setup.student, setup.processes)
    if student is None or not setup.processes.is_first:
        return
    if student is setup.student and isinstance(student, PretrainedStudent):
        student = copy.deepcopy(student)  # an adapter is merged where it is saved
    for folder in folders:
        save_student(setup, student, folder)
