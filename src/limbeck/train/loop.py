"""The training loop: batch, rows, forward, objective, backward, step, log. Everything it names is a function in a sibling file.

Time is counted around the steps alone, so evaluation, checkpoints and start-up take nothing from a budget in seconds.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from limbeck.compute import autocast
from limbeck.data.loader import Batch
from limbeck.errors import DivergedError
from limbeck.objectives.across_loss import pieces_of
from limbeck.objectives.objective import START, LossOutput, objective_loss
from limbeck.objectives.schedule import Moment
from limbeck.optim.averaging import WeightAverage
from limbeck.optim.build import build_optimizer
from limbeck.optim.schedules import lr_factor, set_moment
from limbeck.progress import progress, say
from limbeck.runs import Costs, RunWriter
from limbeck.signals.rows import to_device
from limbeck.students.fake_quantise import quantising
from limbeck.train.budget import fraction, fraction_during_next_step, mean_step
from limbeck.train.course import Course
from limbeck.train.expert_watch import forget_after
from limbeck.train.guards import RolloutsError
from limbeck.train.interrupt import Interrupted, finish_the_step
from limbeck.train.on_policy import OnPolicySteps
from limbeck.train.on_the_way import on_the_way
from limbeck.train.parallel import any_says, clip_gradients, from_first, sum_gradients, sum_values
from limbeck.train.resume import resume, save
from limbeck.train.setup import Setup


def run(setup: Setup, *, path: Path, writer: RunWriter | None, course: Course | None = None) -> Costs:
    """Train to the end of the budget, or of the stage, from the last checkpoint if there is one.

    `course` is the place in a curriculum whose stage is set up. Only the process with a `writer` writes.
    """
    recipe, budget = setup.recipe, setup.recipe.budget
    course = course or Course(recipe)
    began = course.place.began
    optimizer = build_optimizer(recipe.optimizer, setup.trained, dtype=setup.dtype)
    average = WeightAverage(recipe.averaging, setup.student)
    costs = resume(setup, path, optimizer=optimizer, average=average)
    if costs.step:
        say(f"{recipe.name}: {f'stage {course.stage.name}' if course.stage else 'resuming'} at step {costs.step}")
    if writer is not None:
        writer.rewind(costs.step)
        forget_after(path, step=costs.step)
    if recipe.compile:
        compile_ahead(setup, fraction=fraction(budget, costs))
    on_policy = OnPolicySteps(setup, path, began=began.step) if recipe.on_policy is not None else None
    stream = setup.loader.steps(costs.step - began.step) if on_policy is None else on_policy.steps(costs.step)
    keep, saved_at = partial(save, setup, path, optimizer=optimizer, average=average), costs.seconds
    title = f"training {recipe.name}"
    with (
        closing(stream) as steps,
        progress(title, total=1, done=fraction(budget, costs)) as advance,
        finish_the_step() as interrupt,
    ):
        while fraction(budget, costs) < course.ends:
            started = time.perf_counter()
            expected = mean_step(costs) if on_policy is not None and costs.step else setup.step_costs
            spent = fraction_during_next_step(budget, costs, step=expected)
            moment = Moment(fraction=spent, lr_factor=lr_factor(recipe.schedule, spent))
            setup.student.set_fraction(spent)
            batches = _next_of(steps, save_it=partial(keep, costs=costs, place=course.place))
            logged = optimizer_step(setup, optimizer, batches, moment=moment)
            if not math.isfinite(logged["loss_nats"] + logged["grad_norm"]):
                raise DivergedError(
                    f"{path}: loss or gradient is not finite at step {costs.step + 1}; try a lower optimizer.lr under another "
                    "name (the checkpoint before it is kept)"
                )
            before, costs = costs, _after(setup, costs, batches, seconds=time.perf_counter() - started, began=began)
            if on_policy is not None:
                logged |= on_policy.logged(seconds=costs.seconds - before.seconds)
            average.update(setup.student, lr_factor=moment.lr_factor, fraction=fraction(budget, costs))
            ended = fraction(budget, costs) >= course.ends
            stopping = any_says(interrupt.asked, setup.processes, setup.device)
            if writer is not None:
                writer.record("train", costs, **logged)
                advance(fraction(budget, costs) - fraction(budget, before), f"loss {logged['loss_nats']:.3f} nats")
            on_the_way(setup, course, before, costs, average=average, path=path, writer=writer)
            if ended or stopping or costs.seconds - saved_at >= recipe.checkpoint.seconds:
                place = course.after(costs).place if ended and not course.is_last else course.place
                keep(costs=costs, place=place)
                saved_at = costs.seconds
            if stopping and not (ended and course.is_last):
                raise Interrupted(f"{path}: stopped after step {costs.step}; the same command continues from there")
    if course.is_last:
        average.put_in_place(setup.student)
    return costs


def _next_of(steps: Iterator[list[Batch]], *, save_it: Callable[[], None]) -> list[Batch]:
    """The next step's; where the student writes what it cannot learn from, what it has learnt is saved."""
    try:
        return next(steps)
    except RolloutsError:
        save_it()
        raise


def compile_ahead(setup: Setup, *, fraction: float) -> None:
    """Compile before the clock runs: the passes of a step at that share of the budget, whose gradients are thrown away."""
    setup.student.set_fraction(fraction)
    for batch in setup.loader.step(0):
        output, _ = batch_loss(setup, batch)
        output.loss.backward()
    setup.trained.zero_grad(set_to_none=True)


def optimizer_step(
    setup: Setup, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], *, moment: Moment = START
) -> dict[str, float]:
    """One step on this process's micro-batches. Returns what is logged, summed over all processes.

    `moment` is what the objective's scheduled weights depend on. Where loss or gradient is not finite, no weight changes and no
    bias of a router; buffers that follow the schedule are set before.
    """
    optimizer.zero_grad(set_to_none=True)
    setup.student.set_fraction(moment.fraction)
    tokens = _tokens(setup, batches)
    outputs, loads = [], []
    with _rounded(setup, moment):
        for batch in batches:
            output, load_ME = batch_loss(setup, batch, moment=moment, tokens=tokens)
            output.loss.backward()
            outputs.append(output)
            loads.append(load_ME)
    sum_gradients(setup.trained, setup.processes)
    grad_norm = clip_gradients(setup.trained, norm=setup.recipe.optimizer.clip_norm)
    names = ["loss_nats", *outputs[0].per_term]
    values = torch.stack([torch.stack([output.loss.detach(), *output.per_term.values()]) for output in outputs]).sum(0)
    logged = dict(zip(names, sum_values(values, setup.processes).tolist(), strict=True))
    if math.isfinite(logged["loss_nats"] + grad_norm):
        set_moment(optimizer, lr_factor=moment.lr_factor, fraction=moment.fraction)
        optimizer.step()
        _rebalance(setup, loads)
    return {**logged, "lr": setup.recipe.optimizer.lr * moment.lr_factor, "grad_norm": grad_norm}


def _rounded(setup: Setup, moment: Moment) -> AbstractContextManager[bool]:
    """Inside, the student has rounded weights, if the recipe asks for that and it is time."""
    aware, warmup = setup.recipe.quantisation_aware, setup.recipe.schedule.warmup
    return quantising(setup.student, aware, lr_factor=moment.lr_factor, fraction=moment.fraction, warmup=warmup)


def _rebalance(setup: Setup, loads: Sequence[Tensor | None]) -> None:
    """Once a step, by what the experts saw in all its micro-batches on all processes."""
    found = [load_ME for load_ME in loads if load_ME is not None]
    if found:
        setup.student.rebalance(sum_values(torch.stack(found).sum(0), setup.processes))


def batch_loss(
    setup: Setup, batch: Batch, *, moment: Moment = START, tokens: int | None = None
) -> tuple[LossOutput, Tensor | None]:
    """The objective on one micro-batch, and what each expert saw, if there are any.

    It is divided by the tokens of the whole step that have a loss; None: those of a step that reads texts alone.
    """
    device, normaliser = setup.device, setup.step_costs.tokens if tokens is None else tokens
    sampled, shape = batch.sampled_log_probs_BT, batch.tokens_BT.shape
    pieces = None if setup.across is None else pieces_of(batch.segments_BT, shape=shape, device=device)
    with autocast(setup.dtype, device):
        reading = setup.read(batch)
        output = objective_loss(
            setup.recipe.objective,
            hidden_TD=reading.hidden_BTD.flatten(0, 1),
            head_VD=setup.student.head_VD,
            targets_T=batch.targets_BT.flatten().to(device),
            rows=to_device(batch.rows, device) if batch.rows is not None else None,
            temperature=setup.temperature,
            moment=moment,
            projection=setup.projection,
            across=setup.across,
            pieces_T=pieces,
            mask_T=batch.mask_BT.flatten().to(device) if batch.mask_BT is not None else None,
            normaliser=normaliser,
            softcap=setup.student.softcap,
            sampled_log_probs_T=sampled.flatten().to(device) if sampled is not None else None,
        )
    if reading.balance is not None:
        balance = reading.balance * batch.counted / normaliser
        output = replace(output, loss=output.loss + balance, per_term={**output.per_term, "balance": balance.detach()})
    return output, reading.load_ME


def _tokens(setup: Setup, batches: Sequence[Batch]) -> int:
    """Those of the step that have a loss, over all processes; at least 1."""
    if setup.recipe.on_policy is None and not setup.loader.masks:
        return setup.step_costs.tokens
    mine = torch.tensor(sum(batch.counted for batch in batches), device=setup.device)
    return max(1, int(sum_values(mine, setup.processes)))


def _after(setup: Setup, costs: Costs, batches: Sequence[Batch], *, seconds: float, began: Costs) -> Costs:
    """The costs with one more step; `began` are those when these texts were first read in this shape."""
    of_student, processes = setup.student_costs, setup.processes
    names = ("counted", "read", "tokens_generated", "tokens_scored", "bytes_read")
    mine = torch.tensor([sum(getattr(batch, name) for batch in batches) for name in names], device=setup.device)
    counted, read, generated, tokens_scored, bytes_read = sum_values(mine, processes).tolist()
    tokens = costs.tokens + counted
    if setup.loader.source is not None and setup.loader.source.is_live:
        scored = costs.teacher_flops + tokens_scored * setup.teacher_flops_per_scored_token
    else:  # a stored row is paid for once, however often it is read
        rows = setup.loader.stream.distinct_rows((tokens - began.tokens) * setup.rows_per_token)
        scored = began.teacher_flops + rows * setup.tokens_scored_per_row * setup.teacher_flops_per_scored_token
    return replace(
        costs,
        step=costs.step + 1,
        tokens=tokens,
        seconds=costs.seconds + from_first(seconds, processes, setup.device),
        student_flops=costs.student_flops + of_student.training_flops * read + of_student.forward_flops * generated,
        teacher_flops=scored,
        bytes_read=costs.bytes_read + bytes_read,
    )
