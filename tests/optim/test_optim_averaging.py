"""EMA and SWA against sums in float64; swapping in and back; resuming bit for bit."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import SpecError
from limbeck.optim.averaging import WeightAverage
from limbeck.optim.schedules import lr_factor
from limbeck.spec.base import parse
from limbeck.spec.optim import Averaging, Cosine, ExponentialAverage, NoAveraging, SnapshotAverage, WarmupStableDecay
from limbeck.spec.recipe import Recipe

STEPS = 50
SCHEDULE = WarmupStableDecay(warmup=0.2, decay=0.6)
KINDS: list[Averaging] = [NoAveraging(), ExponentialAverage(decay=0.9), SnapshotAverage(below=0.5, every=0.1)]


def walk(model: nn.Module, average: WeightAverage, *, steps: range, schedule: Cosine | WarmupStableDecay = SCHEDULE) -> None:
    """Random weights after every step, and their average."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        average.update(model, lr_factor=lr_factor(schedule, (step + 0.5) / STEPS), fraction=(step + 1) / STEPS)


def weights_after(step: int) -> Iterator[Tensor]:
    """Of `walk`, for a 3 x 2 map with bias."""
    generator = torch.Generator().manual_seed(step)
    yield from (torch.randn(shape, generator=generator).double() for shape in ((2, 3), (2,)))


def averaged(average: WeightAverage, model: nn.Module) -> list[Tensor]:
    with average.swapped(model):
        return [parameter.detach().clone() for parameter in model.parameters()]


def test_ema_is_its_sum() -> None:
    """a_n = d^n w_0 + (1 - d) sum_k d^(n-k) w_k."""
    model = nn.Linear(3, 2)
    start = [parameter.detach().double() for parameter in model.parameters()]
    average = WeightAverage(ExponentialAverage(), model)
    walk(model, average, steps=range(STEPS))
    seen = [list(weights_after(step)) for step in range(STEPS)]
    for index, found in enumerate(averaged(average, model)):
        past = sum(0.003 * 0.997 ** (STEPS - 1 - step) * weights[index] for step, weights in enumerate(seen))
        torch.testing.assert_close(found.double(), 0.997**STEPS * start[index] + past, rtol=1e-5, atol=1e-6)


def test_swa_is_the_mean_of_its_snapshots() -> None:
    """Warmup ends at 0.2, decay begins at 0.4 and passes one half at 0.7, after step 35: at 0.8, 0.9 and 1 there is a snapshot.
    At 0.1, when warming up, the rate is below one half too, and no snapshot is taken.
    """
    model = nn.Linear(3, 2)
    average = WeightAverage(SnapshotAverage(below=0.5, every=0.1), model)
    walk(model, average, steps=range(STEPS))
    assert average.count == 3
    seen = [list(weights_after(step)) for step in (39, 44, 49)]
    for index, found in enumerate(averaged(average, model)):
        torch.testing.assert_close(found.double(), sum(each[index] for each in seen) / 3, rtol=1e-6, atol=1e-7)


def test_swa_begins_with_a_falling_rate_only() -> None:
    """Without warmup too; and a plateau is no fall."""
    model = nn.Linear(3, 2)
    falling = WeightAverage(SnapshotAverage(below=1.0, every=0.02), model)
    walk(model, falling, steps=range(STEPS), schedule=Cosine(warmup=0.5))
    assert falling.count == 24  # the 25 steps of the warmup are out, and the first of the cosine is the peak
    flat = WeightAverage(SnapshotAverage(below=1.0, every=0.02), model)
    walk(model, flat, steps=range(STEPS), schedule=WarmupStableDecay(warmup=0.0, decay=0.0))
    assert flat.count == 0


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_weights_come_back_bit_for_bit(spec: Averaging) -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(spec, model)
    walk(model, average, steps=range(STEPS))
    own = [parameter.detach().clone() for parameter in model.parameters()]
    places = [parameter.data_ptr() for parameter in model.parameters()]

    def is_interrupted() -> None:
        with average.swapped(model):
            changed = [not torch.equal(parameter, before) for parameter, before in zip(model.parameters(), own, strict=True)]
            assert all(changed) or isinstance(spec, NoAveraging)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        is_interrupted()
    assert all(torch.equal(parameter, before) for parameter, before in zip(model.parameters(), own, strict=True))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    again = averaged(average, model)
    assert all(torch.equal(one, other) for one, other in zip(again, averaged(average, model), strict=True))


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_resuming_is_exact(spec: Averaging) -> None:
    """Interrupted after step 41, between two snapshots."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    whole, first = WeightAverage(spec, model), WeightAverage(spec, other)
    walk(model, whole, steps=range(STEPS))
    walk(other, first, steps=range(41))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    fresh = nn.Linear(3, 2)
    second = WeightAverage(spec, fresh)
    second.load_state_dict(torch.load(file, weights_only=True))
    walk(fresh, second, steps=range(41, STEPS))
    assert second.count == whole.count
    assert all(torch.equal(*pair) for pair in zip(averaged(whole, model), averaged(second, fresh), strict=True))


def test_an_average_of_another_model_is_refused() -> None:
    average = WeightAverage(ExponentialAverage(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="other parameters"):
        average.load_state_dict(WeightAverage(ExponentialAverage(), nn.Linear(3, 2, bias=False)).state_dict())
    with pytest.raises(ValueError, match="other parameters"):  # of one weight, which would fit anywhere
        average.load_state_dict(WeightAverage(ExponentialAverage(), nn.Linear(1, 1)).state_dict())


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("other", KINDS, ids=lambda spec: spec.kind)
def test_an_average_of_another_kind_is_refused(spec: Averaging, other: Averaging) -> None:
    average, state = WeightAverage(spec, nn.Linear(3, 2)), WeightAverage(other, nn.Linear(3, 2)).state_dict()
    if spec.kind == other.kind:
        average.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match=f"is of kind {other.kind}, not {spec.kind}"):
            average.load_state_dict(state)


def test_the_first_step_after_resuming_may_be_a_snapshot() -> None:
    """Whether the learning rate falls is told by the highest before it, which is part of the state."""
    spec, model = SnapshotAverage(below=1.0, every=0.1), nn.Linear(3, 2)
    whole = WeightAverage(spec, model)
    whole.update(model, lr_factor=1.0, fraction=0.39)
    resumed = WeightAverage(spec, model)
    resumed.load_state_dict(whole.state_dict())
    for average in (whole, resumed):
        average.update(model, lr_factor=0.9, fraction=0.4)
        assert average.count == 1


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """One last bit above 1, a thousand times: in bfloat16 an average that starts at 1 would never move."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(ExponentialAverage(), model)
    nn.init.constant_(model.weight, 1.0078125)
    for _ in range(1000):
        average.update(model, lr_factor=1.0, fraction=0.5)
    held = average.state_dict()["average"]["weight"]
    assert held.dtype == torch.float32
    assert held.item() == pytest.approx(1 + 0.0078125 * (1 - 0.997**1000), abs=1e-5)


def test_tied_weights_are_averaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    start = model.embed.weight.detach().clone()
    average = WeightAverage(ExponentialAverage(decay=0.5), model)
    nn.init.zeros_(model.embed.weight)
    average.update(model, lr_factor=1.0, fraction=0.1)
    with average.swapped(model):
        torch.testing.assert_close(model.head.weight.detach(), start / 2)
        assert model.head.weight is model.embed.weight


@pytest.mark.parametrize(
    ("schedule", "below", "lowest"),
    [
        ({"kind": "cosine", "final": 0.1}, 0.2, None),
        ({"kind": "cosine", "final": 0.2}, 0.2, 0.2),
        ({"kind": "cosine", "final": 0.5}, 0.2, 0.5),
        ({"kind": "wsd", "decay": 0.2, "final": 0.0}, 0.01, None),
        ({"kind": "wsd", "decay": 0.0}, 0.9, 1.0),
    ],
    ids=str,
)
def test_snapshots_that_would_never_be_taken_are_refused(
    values: dict[str, Any], schedule: dict[str, Any], below: float, lowest: float | None
) -> None:
    """By the recipe alone; and what is let through does take some, what is refused takes none."""
    recipe = {**values, "schedule": schedule, "averaging": {"kind": "swa", "below": below}}
    if lowest is None:
        parse(Recipe, recipe, source="test")
    else:
        with pytest.raises(SpecError, match=rf"averaging\.below={below} is never reached: the schedule ends at {lowest} of"):
            parse(Recipe, recipe, source="test")
    model = torch.nn.Linear(1, 1)
    average = WeightAverage(SnapshotAverage(below=below), model)
    held = parse(Recipe, {**values, "schedule": schedule}, source="test").schedule
    for step in range(1000):
        average.update(model, lr_factor=lr_factor(held, (step + 0.5) / 1000), fraction=(step + 1) / 1000)
    assert (average.count > 0) == (lowest is None)
