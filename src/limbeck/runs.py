"""What a run leaves behind, and the only code that reads or writes it.

    RUN/recipe.yaml        the resolved recipe
    RUN/environment.json   versions, device, processor
    RUN/preflight.json     what the first batch showed before the first step, and which weights the student began with
    RUN/stages.json        of a curriculum: what the texts of each stage are like
    RUN/metrics.jsonl      one record a line: `event` train, eval, milestone or experts, always with the six costs; with a
                           curriculum also `stage` (its name) and `sequence_length`
    RUN/checkpoint.pt      what resuming needs (written by `limbeck.train.checkpoint`);
    RUN/checkpoint-STEP/   of a sharded student (`limbeck.train.sharded_checkpoint`)
    RUN/student/           the student as a Hugging Face folder
    RUN/milestones/AMOUNT/ and RUN/stages/NAME/, the same as it was on the way (`limbeck.train.on_the_way`)
    RUN/experts/           while it goes on: which experts held-out tokens saw (`limbeck.train.expert_watch`)
    RUN/rollouts.jsonl     what an on-policy run wrote and learnt from (`limbeck.train.rollout_file`); of further processes
                           rollouts-RANK.jsonl
    RUN/summary.json       written last: its presence means that the run is finished

Torch-free, so that `report` and `plan` start at once.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import LimbeckError, SpecError
from limbeck.paths import write_atomically
from limbeck.spec.base import parse
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe


@dataclass(frozen=True)
class Costs:
    """What a run has spent so far. Every record carries all six."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training time: compilation, evaluation and checkpointing excluded."""
    student_flops: float = 0.0
    teacher_flops: float = 0.0
    """Of the teacher for the rows that this run used: each row of a store counted once, a live teacher every time."""
    bytes_read: int = 0
    """From the signal store."""


Listener = Callable[[str, Costs, Mapping[str, float | None]], None]
"""Is called with a record's event, costs and values."""


@dataclass(frozen=True)
class Run:
    """A run as read from disk. `summary` is None while it is unfinished."""

    path: Path
    recipe: Recipe
    records: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    summary: dict[str, Any] | None

    def events(self, event: str) -> list[dict[str, Any]]:
        """The records of one kind, in order: 'train', 'eval', 'milestone' or 'experts'."""
        return [record for record in self.records if record["event"] == event]


def open_run(path: str | Path) -> Run:
    """Read a run folder; a `LimbeckError` names what is missing or damaged."""
    path = Path(path)
    if not (path / "recipe.yaml").is_file():
        raise LimbeckError(f"{path} is not a run folder: it has no recipe.yaml")
    try:
        recipe = parse(
            Recipe, yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8")), source=str(path / "recipe.yaml")
        )
        summary_path = path / "summary.json"
        return Run(
            path=path,
            recipe=recipe,
            records=tuple(_read_records(path / "metrics.jsonl")),
            environment=json.loads((path / "environment.json").read_text(encoding="utf-8")),
            summary=json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else None,
        )
    except (json.JSONDecodeError, FileNotFoundError, yaml.YAMLError) as error:
        raise LimbeckError(f"{path} is damaged ({error}): remove the folder and train again") from error


def student_folder(path: str | Path) -> Path:
    """The student of a run, or the folder of a student itself; `LimbeckError` where there is none, or the run is unfinished."""
    path = Path(path)
    if (path / "student").is_dir():
        return path / "student"
    if (path / "recipe.yaml").is_file():
        raise LimbeckError(f"{path} is unfinished: `limbeck train {path}/recipe.yaml` continues it")
    if not (path / "config.json").is_file():
        raise LimbeckError(f"{path} holds no config.json: name a finished run, or the folder of a saved student")
    return path


def is_finished(path: str | Path) -> bool:
    """Whether the run's summary, which is written last, is there."""
    return (Path(path) / "summary.json").is_file()


def read_preflight(path: str | Path) -> dict[str, Any]:
    """What the first batch showed, and what the student began with; empty for a run that has not begun."""
    file = Path(path) / "preflight.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise LimbeckError(f"{file} is damaged ({error}): remove it, the same command continues") from error
    return found


def read_stages(path: str | Path) -> dict[str, dict[str, Any]]:
    """Of every stage that has been opened what its texts are: padding, documents left out, traces; empty without stages."""
    file = Path(path) / "stages.json"
    try:
        found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise LimbeckError(f"{file} is damaged ({error}): remove it, the same command continues") from error
    return found


def require_recipe(path: str | Path, recipe: Recipe) -> None:
    """`SpecError` if the run folder holds a run of another recipe."""
    _refuse_another_recipe(Path(path), open_run(path).recipe.model_dump(mode="json"), recipe)


class RunWriter:
    """Writes one run folder. Opening the folder of an unfinished run of the same recipe continues it."""

    def __init__(self, path: str | Path, *, recipe: Recipe, device: str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        resolved = recipe.model_dump(mode="json")
        recipe_path = self.path / "recipe.yaml"
        if recipe_path.is_file():
            _refuse_another_recipe(self.path, yaml.safe_load(recipe_path.read_text(encoding="utf-8")), recipe)
        write_atomically(recipe_path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        write_atomically(self.path / "environment.json", json.dumps(environment(device), indent=1))
        self.listener: Listener | None = None
        """Is told of every record."""
        self.stage: dict[str, Any] = {}
        """Goes into every record: the stage at hand and what measuring depends on, where there is a curriculum."""

    def recorded(self) -> set[tuple[str, int]]:
        """(event, step) of every record that is there."""
        return {(record["event"], record["step"]) for record in _read_records(self.path / "metrics.jsonl")}

    def rewind(self, step: int) -> None:
        """Forget the records after `step`, which a killed run wrote and a resumed one will write again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():
            kept = [record for record in _read_records(metrics) if record["step"] <= step]
            write_atomically(metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def forget(self, event: str, *, step: int) -> None:
        """Forget the records of one kind at `step`, in the stage at hand, for the same reason."""
        metrics, forgotten = self.path / "metrics.jsonl", (event, step, self.stage.get("stage"))
        every = _read_records(metrics)
        kept = [record for record in every if (record["event"], record["step"], record.get("stage")) != forgotten]
        write_atomically(metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def record(self, event: str, costs: Costs, **values: float | None) -> None:
        """Append one record."""
        self._append(event, costs, values, {})

    def record_layers(
        self, event: str, costs: Costs, layers: Sequence[Mapping[str, float | None]], **means: float | None
    ) -> None:
        """The same with what is known of each of some layers, which the listener is not told."""
        self._append(event, costs, means, {"layers": list(layers)})

    def _append(self, event: str, costs: Costs, values: Mapping[str, float | None], beside: Mapping[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **asdict(costs), **self.stage, **values, **beside}) + "\n")
        if self.listener is not None:
            self.listener(event, costs, values)

    def keep_stage(self, name: str, **values: Any) -> None:
        """Keep what is known of a stage when it is opened."""
        write_atomically(self.path / "stages.json", json.dumps({**read_stages(self.path), name: values}, indent=1))

    def preflight(self, **values: Any) -> None:
        """Keep what is known before the first step."""
        write_atomically(self.path / "preflight.json", json.dumps(values, indent=1))

    def finish(self, costs: Costs, **values: Any) -> dict[str, Any]:
        """Write the summary; the run is finished."""
        summary = {**asdict(costs), **values}
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=1))
        return summary


def _refuse_another_recipe(path: Path, old: dict[str, Any], recipe: Recipe) -> None:
    new = recipe.model_dump(mode="json")
    # Where things lie, how often they are saved and who holds what do not change what is computed; nor what is not read.
    incidental = {"output", "store", "checkpoint", "parallel", "placement", "activation_checkpointing", "sinks"}
    incidental |= set() if needs_teacher(recipe.objective) else {"signal"}
    for key, there, here in _differences(old, {key: value for key, value in new.items() if key not in incidental}):
        vocabulary = key in {"student.vocab_size", "student.dense.vocab_size"}
        filled_in = (vocabulary and here is None) or (key in {"precision", "device"} and here == "auto")
        if filled_in:
            continue
        raise SpecError(
            f"{path} holds a run of another recipe ({key} is {there!r} there and {here!r} here): "
            "choose another name or output, or remove the folder"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every key of `new` whose values differ."""
    for key, here in new.items():
        there = old.get(key)
        if isinstance(here, dict) and isinstance(there, dict) and here.get("kind") == there.get("kind"):
            yield from _differences(there, here, prefix=f"{prefix}{key}.")
        elif here != there:
            yield f"{prefix}{key}", there, here


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a kill can leave half a line at the end
                return
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not {"event", *Costs.__dataclass_fields__} <= record.keys():
                raise LimbeckError(f"{path}, line {number} is damaged: remove the run folder and train again")
            yield record


def environment(device: str) -> dict[str, Any]:
    """What the run ran on: versions, processor, device."""
    packages = ("limbeck", "torch", "transformers", "numpy")
    return {
        "device": device,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package: metadata.version(package) for package in packages},
        **({"commit": commit} if (commit := checkout_commit()) is not None else {}),
    }


def checkout_commit(root: Path | None = None) -> str | None:
    """The git commit of the checkout that Limbeck runs from; None where it is installed otherwise, or that can't be read."""
    folder = (root or Path(__file__).parents[2]) / ".git"
    try:
        if folder.is_file():  # a worktree says where its folder is
            folder = folder.parent / folder.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        common = folder / "commondir"
        shared = folder / common.read_text(encoding="utf-8").strip() if common.is_file() else folder
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head or None
        name = head.removeprefix("ref:").strip()
        loose = [place / name for place in (folder, shared) if (place / name).is_file()]
        if loose:
            return loose[0].read_text(encoding="utf-8").strip() or None
        packed = (line.split() for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines())
        return next((line[0] for line in packed if len(line) == 2 and line[1] == name), None)
    except (OSError, UnicodeDecodeError):
        return None


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
