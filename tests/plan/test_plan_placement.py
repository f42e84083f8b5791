"""Where a teacher should run, against cases that were worked out by hand."""

import pytest

from limbeck.plan.placement import Phases, Placed, balanced_pool, expected


def by_kind(phases: Phases, *, devices: int, tokens: float = 1000.0) -> dict[str, Placed]:
    return {each.kind: each for each in expected(phases, devices=devices, tokens=tokens)}


def test_off_policy_teachers_read_ahead() -> None:
    """8 devices, 30 device-seconds of teaching and 10 of training: teachers' share is 6, and 6 beside 2 take 5 seconds each."""
    phases = Phases(generate=0, teach=30, train=10)
    assert balanced_pool(phases, devices=8) == 6
    found = by_kind(phases, devices=8)
    assert found["same"] == Placed("same", 0, 0, 5.0, 200.0)
    assert found["pool"] == Placed("pool", 6, 0, 5.0, 200.0)
    assert found["split"] == Placed("split", 4, 0, 7.5, 1000 / 7.5)
    assert [each.kind for each in expected(phases, devices=8, tokens=1)][-1] == "split"


def test_students_that_share_teachers_unevenly_wait_for_the_busiest() -> None:
    """5 devices, shares 4 to 6: 2 teach 3 students, one of them 2; that one reads two thirds of 4 seconds."""
    phases = Phases(generate=0, teach=4, train=6)
    assert balanced_pool(phases, devices=5) == 2
    found = by_kind(phases, devices=5)
    assert found["pool"].step_seconds == pytest.approx(max(4 * 2 / 3, 6 / 3))
    assert found["split"] == Placed("split", 2, 1, 3.0, pytest.approx(1000 / 3))
    # 6 devices, shares 7 to 3: 4.2 rounds up to 5 teachers, all asked by one student.
    assert by_kind(Phases(0, 7, 3), devices=6)["pool"].step_seconds == pytest.approx(max(7 / 5, 3))
    # 7 devices, shares 60 to 40: 5 teach 2 students, of whom one has 2 and waits for half of its half from each.
    assert by_kind(Phases(0, 60, 40), devices=7)["pool"].step_seconds == pytest.approx(max(60 / 4, 40 / 2))


def test_on_policy_phases_follow_one_another() -> None:
    """4 devices, 4 seconds each: 3 on each device, 6 on two pairs; 2 teachers and 2 students take 2 + 2 + 2."""
    phases = Phases(generate=4, teach=4, train=4)
    assert balanced_pool(phases, devices=4) == 2
    found = by_kind(phases, devices=4)
    assert [found[kind].step_seconds for kind in ("same", "split", "pool")] == pytest.approx([3, 6, 6])
    assert expected(phases, devices=4, tokens=1)[0].kind == "same"


@pytest.mark.parametrize(("teach", "devices", "teachers"), [(0.001, 4, 1), (1000, 4, 3), (1.0, 2, 1), (0.5, 3, 1)])
def test_a_pool_is_never_empty_and_never_all(teach: float, devices: int, teachers: int) -> None:
    assert balanced_pool(Phases(0.0, teach, 1.0), devices=devices) == teachers


def test_on_one_device_there_is_no_choice() -> None:
    assert expected(Phases(1, 2, 3), devices=1, tokens=60) == [Placed("same", 0, 0, 6.0, 10.0)]
