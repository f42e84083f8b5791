"""A light search for the shape that a pruned model of a wanted size should have (arXiv 2407.14679, section 3.4).

Shapes near the target are counted from the configuration alone (`limbeck.plan.prune_shapes`). A few of them are cut and read
the rows of the calibration that are set aside for it; with healing, each is then trained for a few steps on the others and
reads them again (`limbeck.surgery.heal`), and that decides, as rankings flip by training. Loss is no downstream score: depth
looks better by it than by generated answers. What is known of a shape is kept in the user cache, so that a killed search goes
on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import SpecError
from limbeck.paths import cache_folder, write_atomically
from limbeck.plan.pretrained import student_config
from limbeck.plan.prune_shapes import AmountOf, Found, GivenCaps, Shape, base_pruning, find_shapes, probe_sizes, shaped
from limbeck.plan.prune_target import Costs, Target, Workload, costs_of
from limbeck.plan.pruned import pruned_config
from limbeck.progress import say
from limbeck.spec.base import parse
from limbeck.spec.data import Data
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning, TaskScore
from limbeck.students.pretrained import load_causal_lm
from limbeck.surgery import heal as healing
from limbeck.surgery.bypass import ModelReader, mean_nats
from limbeck.surgery.calibration import calibration_rows
from limbeck.surgery.decode_time import decode_ms, device_name, fitted_decode_ms
from limbeck.surgery.depth_costs import TASK_KEY
from limbeck.surgery.identity import digest_of, parent_of
from limbeck.surgery.importance import products_dtype
from limbeck.surgery.prune import prune
from limbeck.surgery.task_score import read_task

FORMAT = 2
"""Of what is known of shapes: another one where it is measured otherwise."""
_REMEMBERED = ("parameters", "loss_pruned", "loss_healed", "decode_ms")
MEASURED_ROWS = 32
"""At most, and at most a quarter of all."""


@dataclass(frozen=True)
class Asked:
    """What is searched for, and how thoroughly."""

    target: Target
    tolerance: float = 0.05
    top: int = 5
    """Shapes that are cut and measured."""
    heal_steps: int = 0
    caps: GivenCaps = field(default_factory=GivenCaps)
    workload: Workload = field(default_factory=Workload)


@dataclass(frozen=True)
class Measured:
    """A shape that was cut."""

    shape: Shape
    parameters: int
    """Counted on the model."""
    loss_pruned: float
    """Nats per token of rows that healing does not read."""
    loss_healed: float | None
    decode_ms: float | None
    """Measured; None where the target is not latency."""

    @property
    def loss(self) -> float:
        """By which shapes are ranked."""
        return self.loss_pruned if self.loss_healed is None else self.loss_healed

    def departure(self, wanted: float) -> float:
        """From the target, as a share: of what was measured, as what latency was guessed to be may prove wrong."""
        return (self.shape.amount if self.decode_ms is None else self.decode_ms) / wanted - 1


@dataclass(frozen=True)
class Searched:
    """What came of it."""

    whole: Costs
    whole_amount: float
    wanted: float
    whole_loss: float
    """Of the model before, on the same rows."""
    found: Found
    ranked: tuple[Measured, ...]
    """The best first; those beyond the tolerance by measured latency last, the nearest of them first."""
    rows: int
    tokens: int
    """That were read for each loss."""


def search(
    spec: HuggingFaceStudent, values: Mapping[str, Any], asked: Asked, *, data: Data | None, device: torch.device | None = None
) -> Searched:
    """Shapes of the model that `spec` names, near the target. `values` are Pruning's: sizes in them stay as they are.

    `SpecError` where the target is no less than the model or cannot be met, before anything is loaded.
    """
    parent, device = parent_of(spec), device or pick_device("auto")
    config = student_config(spec.model_copy(update={"prune": None}))
    whole = costs_of(config, asked.workload)
    tokenizer = load_tokenizer(parent.source.model, **parent.source.arguments)
    base = base_pruning(values)
    if isinstance(base.depth, TaskScore):
        read_task(base.depth.file, limit=1, key=TASK_KEY)
    rows = calibration_rows(base.calibration, tokenizer, data=data)
    heldout, read = _parted(rows)
    amount_of, whole_amount = _amounts(config, whole, asked, tokenizer, device=device)
    wanted = asked.target.of(whole_amount, name=spec.model)
    found = find_shapes(
        config,
        values,
        wanted=wanted,
        amount_of=amount_of,
        workload=asked.workload,
        tolerance=asked.tolerance,
        top=asked.top,
        caps=asked.caps,
    )
    say(f"{found.counted:,} shapes counted, {found.near:,} within {asked.tolerance:.0%}: measuring {len(found.shapes)}")
    model = load_causal_lm(spec).to(device).requires_grad_(False)
    if asked.heal_steps:
        healing.with_head(model)  # refuses what cannot be healed before anything is measured
    bench = _Bench(model, tokenizer, parent.identity, heldout, read, values, asked, data, device)
    measured = [bench.measured(shape) for shape in found.shapes]
    ranked = sorted(measured, key=lambda each: _rank(each, wanted, asked))
    tokens = sum(len(row) - 1 for row in heldout)
    loss = mean_nats(ModelReader(model), heldout)
    return Searched(whole, whole_amount, wanted, loss, found, tuple(ranked), len(heldout), tokens)


def _rank(measured: Measured, wanted: float, asked: Asked) -> tuple[bool, float]:
    """By loss, and after those the shapes that proved beyond the tolerance, the nearest first."""
    off = abs(measured.departure(wanted))
    return (True, off) if off > asked.tolerance else (False, measured.loss)


def _amounts(
    config: Mapping[str, Any], whole: Costs, asked: Asked, tokenizer: Tokenizer, *, device: torch.device
) -> tuple[AmountOf, float]:
    """What the target is about, of every shape and of the whole model."""
    quantity = asked.target.quantity
    if quantity != "latency":
        return (lambda _, costs: float(getattr(costs, quantity))), float(getattr(whole, quantity))
    probes = [config, *_probes(config)]
    costs = [costs_of(probe, asked.workload) for probe in probes]
    guess, times = fitted_decode_ms(probes, costs, tokenizer, asked.workload, device=device)
    return guess, times[0]


def _probes(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that the class can have."""
    for sizes in probe_sizes(config):
        with suppress(SpecError):
            yield pruned_config(config, parse(Pruning, sizes, source="prune"))


def _parted(rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Some rows, evenly spread, to measure on, all others to heal with."""
    if len(rows) < 2:
        raise SpecError(
            "student.prune.calibration gives one row, and a search wants some to measure on and others to heal with: name more "
            "texts, or shorten calibration.sequence_length"
        )
    every = max(4, -(-len(rows) // MEASURED_ROWS)) if len(rows) >= 4 else 2
    heldout = list(rows[::every])
    return heldout, [row for place, row in enumerate(rows) if place % every]


@dataclass(frozen=True)
class _Bench:
    """Where one shape after another is cut and measured."""

    model: Any
    tokenizer: Tokenizer
    identity: str
    heldout: Sequence[Tensor]
    read: Sequence[Tensor]
    values: Mapping[str, Any]
    asked: Asked
    data: Data | None
    device: torch.device

    def measured(self, shape: Shape) -> Measured:
        """From the user cache, or now."""
        pruning = shaped(self.values, shape.sizes)
        path = cache_folder() / "surgery" / f"shape-{self._key(pruning)}.json"
        if path.is_file():
            return Measured(shape, **json.loads(path.read_text(encoding="utf-8")))
        now = self._measure(shape, pruning)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({key: getattr(now, key) for key in _REMEMBERED}))
        return now

    def _measure(self, shape: Shape, pruning: Pruning) -> Measured:
        name = ", ".join(f"{key}={size}" for key, size in shape.sizes.items())
        done = prune(self.model, pruning, tokenizer=self.tokenizer, identity=self.identity, data=self.data, device=self.device)
        model = done.model.to(self.device).requires_grad_(False)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        loss_pruned, loss_healed = mean_nats(ModelReader(model), self.heldout), None
        if self.asked.heal_steps:
            healing.heal(model, self.model, self.read, steps=self.asked.heal_steps, title=f"healing {name}")
            loss_healed = mean_nats(ModelReader(model), self.heldout)
        healed = "" if loss_healed is None else f", {loss_healed:.4f} healed"
        say(f"{name}: loss {loss_pruned:.4f}{healed}")
        timed = None
        if self.asked.target.quantity == "latency":
            timed = decode_ms(model, self.tokenizer, self.asked.workload, device=self.device)
        return Measured(shape, parameters, loss_pruned, loss_healed, timed)

    def _key(self, pruning: Pruning) -> str:
        rows = hashlib.sha256(b"".join(row.numpy().tobytes() for row in [*self.heldout, *self.read])).hexdigest()
        latency, steps = self.asked.target.quantity == "latency", self.asked.heal_steps
        return digest_of(
            {
                "format": FORMAT,
                "model": self.identity,
                "dtype": str(products_dtype(self.device)),
                "pruning": pruning.model_dump(mode="json"),
                "rows": rows,
                "heal": [steps, healing.PEAK_LR, healing.BATCH_TOKENS.get(self.device.type)] if steps else None,
                "timed": asdict(self.asked.workload) | {"device": device_name(self.device)} if latency else None,
            }
        )


def best_pruning(searched: Searched, values: Mapping[str, Any]) -> Pruning:
    """What to ask of pruning for the best shape."""
    return shaped(values, searched.ranked[0].shape.sizes)
