"""The capacity gap by experiment: small networks on the mapping problem, trained for real (arXiv 2502.08606, Appendix C).

An input is 16 digits: 8 of context in {0, 1, 2} and a one-hot position i. Where the context holds 0 at i, the label is i;
otherwise the value there occurs exactly once more in the context, and the label is that other position. The paper prints
examples and no listing; this rule fits them. Values 0, 1, 2 are asked for equally often. There are 24,664 different inputs, so
training sees them all: held-out examples are freshly drawn, not new, and what is measured is capacity and optimisation.

Teachers of growing width learn from labels. Students of one small width then learn from each teacher's probabilities alone
(forward KL, temperature 1), and once from labels, as the control. All have two equal ReLU layers and are trained with Adam on a
cosine with warm-up. A seed fixes a student's initial weights and its examples, whoever teaches it, so students are compared
pairwise. All seeds of a width train at once, as a stack of independent networks.

What the defaults show is a small U: the students of the strongest teacher (width 64) lie 0.027 ± 0.008 nats above those of the
best (width 32) with `seed=0`, and 0.018 ± 0.007 with `seed=1` (standard errors over 32 seeds); those without a teacher lie
within 0.006 of the strongest teacher's. The settings come from a small search with other random numbers, and leave students far
from converged: with 2000 steps at a rate of 1e-2, 8 seeds could tell no U.

Suffixes: S seeds, B examples, I inputs of a layer, O its outputs, C the 8 positions. Losses are in nats per example.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import DivergedError, LimbeckError
from limbeck.labs.settings import MappingSettings
from limbeck.labs.verdict import MappingResult, Measured, Point
from limbeck.optim.schedules import lr_factor
from limbeck.paths import write_atomically
from limbeck.progress import progress
from limbeck.spec.optim import Cosine

POSITIONS = 8
INPUTS = 2 * POSITIONS
SCHEDULE = Cosine(warmup=0.05, final=0.0)
Layers = tuple[Tensor, ...]
"""weights_SIO, biases_S1O, and so on: three layers of S networks."""


def draw(shape: tuple[int, ...], *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh examples: float32 digits of `shape` + 16, and int64 labels of `shape`."""

    def random(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, (*shape, *size), generator=generator)

    asked, value = random(0, POSITIONS), random(0, 3)
    partner = (asked + random(1, POSITIONS)) % POSITIONS
    anything_C, another_C = random(0, 3, POSITIONS), (value[..., None] + random(1, 3, POSITIONS)) % 3
    is_pair = value > 0
    context_C = torch.where(is_pair[..., None], another_C, anything_C)
    context_C.scatter_(-1, asked[..., None], value[..., None])
    label = torch.where(is_pair, partner, asked)
    context_C.scatter_(-1, label[..., None], value[..., None])
    return torch.cat([context_C, F.one_hot(asked, POSITIONS)], dim=-1).float(), label


def initial(width: int, *, seeds: int, generator: torch.Generator) -> Layers:
    """Stacked networks of two hidden layers, uniform in ±1/√inputs as `torch.nn.Linear` begins."""
    layers: list[Tensor] = []
    for inputs, outputs in ((INPUTS, width), (width, width), (width, POSITIONS)):
        for rows in (inputs, 1):
            layers.append((torch.rand(seeds, rows, outputs, generator=generator) * 2 - 1) / math.sqrt(inputs))
    return tuple(layers)


def logits(layers: Layers, digits_SBI: Tensor) -> Tensor:
    """Each network's logits_SBC on its own examples."""
    weights_1, biases_1, weights_2, biases_2, weights_3, biases_3 = layers
    hidden_SBO = torch.baddbmm(biases_1, digits_SBI, weights_1).relu()
    hidden_SBO = torch.baddbmm(biases_2, hidden_SBO, weights_2).relu()
    return torch.baddbmm(biases_3, hidden_SBO, weights_3)


def train(
    layers: Layers,
    *,
    steps: int,
    settings: MappingSettings,
    generator: torch.Generator,
    teacher: Layers | None,
    advance: Callable[[float], None],
) -> Layers:
    """Networks like `layers`, trained on `generator`'s examples: on labels, or on the probabilities of `teacher`.

    The loss is the sum over networks of each one's mean cross-entropy, so that gradients, and Adam, are those of training each
    alone. Cross-entropy to probabilities differs from the forward KL by the teacher's entropy, which no student changes.
    """
    seeds = layers[0].shape[0]
    layers = tuple(layer.clone().requires_grad_() for layer in layers)
    optimizer = torch.optim.Adam(layers, lr=settings.learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * lr_factor(SCHEDULE, (step + 0.5) / steps)
        digits_SBI, labels_SB = draw((seeds, settings.batch), generator=generator)
        targets = labels_SB if teacher is None else logits(teacher, digits_SBI).softmax(dim=-1)
        loss = F.cross_entropy(logits(layers, digits_SBI).flatten(0, 1), targets.flatten(0, 1)) * seeds
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(1)
    return tuple(layer.detach() for layer in layers)


def run(settings: MappingSettings, *, path: Path) -> MappingResult:
    """The experiment, or what is left of it: each finished width is in the JSON file at `path`, which is then completed."""
    control, points = _read(path, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    per_width = settings.teacher_steps + settings.student_steps
    total, done = settings.student_steps + per_width * len(settings.teacher_widths), per_width * len(points)
    with _one_thread(), progress("mapping", total=total, done=done + (settings.student_steps if control else 0)) as advance:
        if control is None:
            control = _measure(_student(settings, teacher=None, advance=advance), settings, name="control")
            _write(path, settings, control, points)
        for width in sorted(set(settings.teacher_widths) - set(points)):
            teacher = _teacher(width, settings, advance=advance)
            student = _student(settings, teacher=teacher, advance=advance)
            measured = [
                _measure(net, settings, name=f"{kind} {width}") for kind, net in (("teacher", teacher), ("student", student))
            ]
            points[width] = Point(width, *measured)
            _write(path, settings, control, points)
    result = MappingResult(settings, control, tuple(points[width] for width in sorted(points)))
    write_atomically(path, json.dumps(result.as_json(), indent=1))
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that numbers don't depend on the cores; more threads gain little on networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _teacher(width: int, settings: MappingSettings, *, advance: Callable[[float], None]) -> Layers:
    begin = initial(width, seeds=settings.seeds, generator=stream(f"teacher {width} weights", settings.seed))
    examples = stream(f"teacher {width} examples", settings.seed)
    return train(begin, steps=settings.teacher_steps, settings=settings, generator=examples, teacher=None, advance=advance)


def _student(settings: MappingSettings, *, teacher: Layers | None, advance: Callable[[float], None]) -> Layers:
    """The same initial weights and examples, whoever teaches."""
    begin = initial(settings.student_width, seeds=settings.seeds, generator=stream("student weights", settings.seed))
    examples = stream("student examples", settings.seed)
    return train(begin, steps=settings.student_steps, settings=settings, generator=examples, teacher=teacher, advance=advance)


def stream(purpose: str, seed: int) -> torch.Generator:
    """Random numbers of their own for each purpose."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def _measure(layers: Layers, settings: MappingSettings, *, name: str) -> Measured:
    """On the same examples for all networks."""
    digits_BI, labels_B = draw((settings.heldout,), generator=stream("held-out examples", settings.seed))
    losses: list[float] = []
    accuracies: list[float] = []
    for seed in range(settings.seeds):  # one network at a time: a stack of hidden layers over all examples is large
        logits_BC = logits(tuple(layer[seed : seed + 1] for layer in layers), digits_BI[None])[0]
        losses.append(F.cross_entropy(logits_BC.double(), labels_B).item())
        accuracies.append((logits_BC.argmax(dim=-1) == labels_B).double().mean().item())
    if not all(map(math.isfinite, losses)):
        raise DivergedError(f"mapping: the {name} diverged; lower --learning-rate={settings.learning_rate}")
    return Measured(tuple(losses), tuple(accuracies))


def _read(path: Path, settings: MappingSettings) -> tuple[Measured | None, dict[int, Point]]:
    """What an earlier call of the same settings finished."""
    if not path.exists():
        return None, {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        same = held["settings"] == json.loads(json.dumps(asdict(settings)))
        control = _measured(held["control"])
        points = [
            Point(point["teacher_width"], _measured(point["teacher"]), _measured(point["student"])) for point in held["points"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise LimbeckError(f"{path} is no result of this laboratory; delete it or name another folder with -o") from error
    if not same:
        raise LimbeckError(f"{path} holds results of other settings; delete it or name another folder with -o")
    return control, {point.teacher_width: point for point in points}


def _measured(held: dict[str, list[float]]) -> Measured:
    return Measured(tuple(held["losses"]), tuple(held["accuracies"]))


def _write(path: Path, settings: MappingSettings, control: Measured, points: dict[int, Point]) -> None:
    finished = [asdict(points[width]) for width in sorted(points)]
    values = {"settings": asdict(settings), "control": asdict(control), "points": finished}
    write_atomically(path, json.dumps(values, indent=1))
