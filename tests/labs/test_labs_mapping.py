"""The mapping problem against a labeller in plain Python; a stack of networks against `torch.nn`; kills, seeds, verdicts."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from limbeck.errors import DivergedError, LimbeckError
from limbeck.labs import mapping
from limbeck.labs.mapping import draw, initial, logits, run, stream, train
from limbeck.labs.settings import MappingSettings
from limbeck.labs.verdict import MappingResult, Measured, Point

TINY = MappingSettings(
    teacher_widths=(4, 6),
    student_width=3,
    seeds=3,
    teacher_steps=12,
    student_steps=10,
    batch=32,
    heldout=256,
    learning_rate=1e-2,
)


def answer(digits: list[int]) -> int:
    """The label by the words of the problem; fails where an input breaks them."""
    context, pointer = digits[:8], digits[8:]
    assert sorted(pointer) == [0] * 7 + [1]
    assert set(context) <= {0, 1, 2}
    asked = pointer.index(1)
    if context[asked] == 0:
        return asked
    places = [place for place in range(8) if context[place] == context[asked]]
    assert len(places) == 2, "the value asked for must occur exactly twice"
    return next(place for place in places if place != asked)


def test_examples_obey_the_problem_and_fill_its_space():
    digits_BI, labels_B = draw((150_000,), generator=stream("test", 0))
    inputs = digits_BI.int().tolist()
    assert digits_BI.dtype == torch.float32 and torch.equal(digits_BI, digits_BI.round())
    assert [answer(digits) for digits in inputs] == labels_B.tolist()
    values = [digits[digits.index(1, 8) - 8] for digits in inputs]
    for value in range(3):
        assert values.count(value) / len(values) == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / len(values)))
    places = torch.bincount(digits_BI[:, 8:].argmax(1) * 8 + labels_B, minlength=64).view(8, 8) / len(labels_B)
    # 1/8 for where, then 1/3 for the same place and 2/3 shared by seven others; four standard deviations
    expected = torch.where(torch.eye(8, dtype=torch.bool), 1 / 24, 2 / 3 / 56)
    assert torch.all((places - expected).abs() < 4 * (expected / len(labels_B)).sqrt())
    zero = 8 * 3**7  # places asked for, contexts of the others
    assert len({tuple(digits) for digits in inputs if digits[digits.index(1, 8) - 8]}) == 24_664 - zero


def plain(layers: mapping.Layers, seed: int) -> nn.Sequential:
    """One network of the stack as a module of its own."""
    modules: list[nn.Module] = []
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data.copy_(weight[seed].T)
        linear.bias.data.copy_(bias[seed, 0])
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("taught", [False, True])
def test_a_stack_trains_each_network_as_if_it_were_alone(taught):
    settings = replace(TINY, teacher_steps=30)
    begin = initial(6, seeds=3, generator=stream("weights", 1))
    teacher = initial(5, seeds=3, generator=stream("other", 1)) if taught else None
    trained = train(begin, steps=30, settings=settings, generator=stream("data", 1), teacher=teacher, advance=lambda _: None)
    generator = stream("data", 1)
    batches = [draw((3, settings.batch), generator=generator) for _ in range(30)]
    for seed in range(3):
        network = plain(begin, seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
        for step, (digits, labels) in enumerate(batches):
            fraction = (step + 0.5) / 30
            factor = fraction / 0.05 if fraction < 0.05 else (1 + math.cos(math.pi * (fraction - 0.05) / 0.95)) / 2
            optimizer.param_groups[0]["lr"] = 1e-2 * factor
            log_p = network(digits[seed]).log_softmax(-1)
            if teacher is None:
                loss = -log_p[torch.arange(len(log_p)), labels[seed]].mean()
            else:
                with torch.no_grad():
                    target = plain(teacher, seed)(digits[seed]).softmax(-1)
                loss = (target * (target.log() - log_p)).sum(-1).mean()  # forward KL
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        alone = plain(trained, seed)
        for expected, found in zip(network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # 30 steps of up to 1e-2 in float32
        # and they have moved by far more than that
        assert max((a - b[seed]).abs().max().item() for a, b in zip((t[seed] for t in trained), begin, strict=True)) > 0.05
        stacked_BC = logits(trained, batches[0][0])[seed]
        torch.testing.assert_close(stacked_BC, alone(batches[0][0][seed]), rtol=0, atol=1e-5)


def test_training_learns_the_problem(tmp_path: Path):
    settings = replace(TINY, teacher_widths=(24,), teacher_steps=400, student_steps=60, batch=256, seeds=2, heldout=2048)
    result = run(settings, path=tmp_path / "mapping.json")
    teacher, student = result.points[0].teacher, result.points[0].student
    for loss, accuracy in zip(teacher.losses, teacher.accuracies, strict=True):
        assert loss < 0.85 * math.log(8)
        assert 0.35 < accuracy < 1  # always naming the place asked for hits one in three
    assert len({*teacher.losses}) == len({*student.losses}) == 2


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(tmp_path: Path):
    first = run(TINY, path=tmp_path / "a.json")
    assert run(TINY, path=tmp_path / "b.json") == first
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    other = run(replace(TINY, seed=1), path=tmp_path / "c.json")
    assert not set(other.control.losses) & set(first.control.losses)


def test_all_random_numbers_come_from_the_seed_and_one_thread_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seeds, threads, before = set(), set(), torch.get_num_threads()

    def spied(purpose: str, seed: int) -> torch.Generator:
        seeds.add(seed)
        threads.add(torch.get_num_threads())
        return stream(purpose, seed)

    monkeypatch.setattr(mapping, "stream", spied)
    torch.set_num_threads(2)
    try:
        run(replace(TINY, seed=7), path=tmp_path / "mapping.json")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seeds == {7}
    assert threads == {1}


def test_students_begin_alike_whoever_teaches_them(tmp_path: Path):
    result = run(replace(TINY, learning_rate=1e-30), path=tmp_path / "mapping.json")
    assert len(set(result.control.losses)) == TINY.seeds
    assert all(point.student == result.control for point in result.points)


def test_a_width_does_not_depend_on_the_others(tmp_path: Path):
    both = run(TINY, path=tmp_path / "both.json")
    alone = run(replace(TINY, teacher_widths=(6,)), path=tmp_path / "alone.json")
    assert alone.points == both.points[1:]
    assert alone.control == both.control


class Mortal:
    """`mapping.draw` that counts training batches, and is killed when it is asked for one more than `lives`."""

    def __init__(self, lives: int) -> None:
        self.batches, self.lives = 0, lives

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if len(shape) == 2:
            self.batches += 1
            if self.batches > self.lives:
                raise KeyboardInterrupt
        return draw(shape, generator=generator)


# killed in the control (10 steps), in the first teacher (12), in the second, in the last student
@pytest.mark.parametrize(("lives", "kept"), [(5, 0), (11, 10), (40, 10 + 22), (52, 10 + 22)])
def test_a_killed_run_continues_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int, kept: int):
    whole, path = run(TINY, path=tmp_path / "whole.json"), tmp_path / "killed.json"
    monkeypatch.setattr(mapping, "draw", Mortal(lives))
    with pytest.raises(KeyboardInterrupt):
        run(TINY, path=path)
    for again in (10 + 2 * 22 - kept, 0):  # training steps left to do, then none
        counter = Mortal(lives=1000)
        monkeypatch.setattr(mapping, "draw", counter)
        assert run(TINY, path=path) == whole
        assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
        assert counter.batches == again


def test_results_of_other_settings_are_kept(tmp_path: Path):
    path = tmp_path / "mapping.json"
    run(TINY, path=path)
    before = path.read_bytes()
    with pytest.raises(LimbeckError, match=r"mapping\.json holds results of other settings"):
        run(replace(TINY, student_steps=11), path=path)
    assert path.read_bytes() == before
    for damaged in (b"", b"[]", b"{}", before[: len(before) // 2], before.replace(b'"losses"', b'"lost"')):
        path.write_bytes(damaged)
        with pytest.raises(LimbeckError, match=r"mapping\.json is no result"):
            run(TINY, path=path)


def test_a_learning_rate_that_is_far_too_high_is_said(tmp_path: Path):
    with pytest.raises(DivergedError, match="learning-rate"):
        run(replace(TINY, learning_rate=1e30), path=tmp_path / "mapping.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"teacher_widths": ()},
        {"teacher_widths": (0,)},
        {"teacher_widths": (8, 8)},
        {"student_width": 0},
        {"seeds": 1},
        {"teacher_steps": 0},
        {"student_steps": -1},
        {"batch": 0},
        {"heldout": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(LimbeckError, match=next(iter(wrong)).replace("teacher_widths", "teacher widths")):
        MappingSettings(**wrong)


def measured(*losses: float) -> Measured:
    return Measured(losses, (0.5,) * len(losses))


def result_of(*students: tuple[float, ...], control: tuple[float, ...]) -> MappingResult:
    """Teachers 8, 16, … of falling loss, with students of these losses."""
    points = [
        Point(8 * 2**rank, measured(*[1.0 / (rank + 1)] * len(losses)), measured(*losses))
        for rank, losses in enumerate(students)
    ]
    settings = MappingSettings(teacher_widths=tuple(point.teacher_width for point in points), seeds=len(control))
    return MappingResult(settings, measured(*control), tuple(points))


def test_a_u_is_told_where_both_ends_are_worse():
    verdict = result_of((1.5, 1.7, 1.6), (0.9, 1.0, 0.8), (1.2, 1.2, 1.2), control=(1.1, 1.3, 1.2)).verdict()
    assert (verdict.weakest_width, verdict.best_width, verdict.strongest_width) == (8, 16, 32)
    assert verdict.u_shape
    # 0.3, 0.2, 0.4: mean 0.3, standard deviation 0.1
    assert verdict.strongest_above_best.mean == pytest.approx(0.3)
    assert verdict.strongest_above_best.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert verdict.weakest_above_best.mean == pytest.approx(0.7)
    assert verdict.best_above_control.mean == pytest.approx(-0.3)
    assert verdict.strongest_above_control.mean == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    "students",
    [
        ((1.5, 1.7, 1.6), (1.2, 1.2, 1.2), (0.9, 1.0, 0.8)),  # the stronger the better
        ((0.9, 1.0, 0.8), (1.2, 1.2, 1.2), (1.5, 1.7, 1.6)),  # the weaker the better
        ((1.5, 1.7, 1.6), (0.9, 1.6, 0.8), (1.2, 1.2, 1.2)),  # the middle is better by 0.1 ± 0.25
    ],
)
def test_no_u_is_told_where_an_end_is_as_good_or_the_seeds_disagree(students):
    assert not result_of(*students, control=(1.0, 1.1, 1.2)).verdict().u_shape


def test_strength_is_the_teachers_loss_not_its_width():
    result = result_of((1.5, 1.6), (0.9, 1.0), (1.2, 1.3), control=(1.0, 1.1))
    weak, middle, strong = result.points
    swapped = (replace(weak, teacher=strong.teacher), middle, replace(strong, teacher=weak.teacher))
    turned = replace(result, points=swapped)
    assert (turned.verdict().weakest_width, turned.verdict().strongest_width) == (32, 8)


def test_the_best_teacher_does_not_look_better_by_having_been_picked():
    generator, differences = torch.Generator().manual_seed(0), []
    for _ in range(300):
        noise = 0.1 * torch.randn(6, 8, generator=generator)
        students = [tuple(row.tolist()) for row in noise]
        differences.append(result_of(*students, control=students[0]).verdict().strongest_above_best.mean)
    # teachers that teach alike; the smallest of the six means would lie 1.27 · 0.1 / √8 = 0.045 below the strongest's
    assert mean(differences) == pytest.approx(0, abs=0.012)


def test_the_file_holds_the_verdict_on_its_numbers(tmp_path: Path):
    run(TINY, path=tmp_path / "mapping.json")
    held = json.loads((tmp_path / "mapping.json").read_text())
    assert [point["teacher_width"] for point in held["points"]] == [4, 6]
    strongest = min(held["points"], key=lambda point: mean(point["teacher"]["losses"]))
    expected = mean(strongest["student"]["losses"]) - mean(held["control"]["losses"])
    assert held["verdict"]["strongest_above_control"]["mean"] == pytest.approx(expected, abs=1e-12)
    assert held["verdict"]["strongest_width"] == strongest["teacher_width"]
