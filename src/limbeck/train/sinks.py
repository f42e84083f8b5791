"""A run's metrics in TensorBoard, Weights & Biases and trackio, as they are recorded.

A sink can neither stop a run nor change it: what it raises becomes one line, after which it is left alone, and it is called
between steps, where no clock of the run goes. What a run has recorded before is not sent again, so that a resumed run goes on
without a step twice; what a killed run recorded after its last checkpoint stays as it was first sent. Only the process that
writes the run's folder has sinks.
"""

import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, assert_never

from limbeck.errors import LimbeckError, first_line
from limbeck.paths import write_atomically
from limbeck.progress import say
from limbeck.runs import Costs, Listener
from limbeck.spec.recipe import Recipe
from limbeck.spec.sinks import Sink, TensorBoardSink, TrackioSink, WandbSink

LOGIN_SECONDS = 30
"""That Weights & Biases may wait for a key to be typed in."""


class Target(Protocol):
    """Where numbers go: `{name: value}` of a step, and an end."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def check_sinks(sinks: Sequence[Sink]) -> None:
    """`LimbeckError` where a sink's package is missing; before anything is computed."""
    for place, sink in enumerate(sinks):
        if importlib.util.find_spec(sink.kind) is None:  # kinds are called as their packages are
            raise LimbeckError(f"sinks.{place}.kind={sink.kind} needs its package: pip install 'limbeck[{sink.kind}]'")


@contextmanager
def open_sinks(recipe: Recipe, path: Path, *, recorded: set[tuple[str, int]]) -> Iterator[Listener]:
    """What to call with each record of the run at `path`; `recorded` are the (event, step) that were sent before."""
    guards = [_Guard(sink.kind, lambda sink=sink: _open(sink, recipe, path)) for sink in recipe.sinks]  # type: ignore[misc]

    def listen(event: str, costs: Costs, values: Mapping[str, float | None]) -> None:
        if (event, costs.step) in recorded:
            return
        numbers = {f"{event}/{name}": value for name, value in values.items() if value is not None}
        numbers |= (
            {f"costs/{name}": value for name, value in asdict(costs).items() if name != "step"} if event == "train" else {}
        )
        for guard in guards:
            guard.log(numbers, costs.step)

    try:
        yield listen
    finally:
        for guard in guards:
            guard.close()


class _Guard:
    """A target whose errors become one line; after one it is left alone."""

    def __init__(self, kind: str, opens: Callable[[], Target]) -> None:
        self.kind = kind
        self.target: Target | None = None
        self._try(lambda: self._begin(opens))

    def _begin(self, opens: Callable[[], Target]) -> None:
        self.target = opens()

    def log(self, values: Mapping[str, float], step: int) -> None:
        target = self.target
        if target is not None:
            self._try(lambda: target.log(values, step))

    def close(self) -> None:
        target, self.target = self.target, None
        if target is not None:
            self._try(target.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                act()
        except Exception as error:  # whatever a dashboard raises, the run goes on
            self.target = None
            say(f"{self.kind} is left alone from here on ({type(error).__name__}: {first_line(error)}); the run goes on")


def _open(sink: Sink, recipe: Recipe, path: Path) -> Target:
    match sink:
        case TensorBoardSink():
            return _TensorBoard(Path(sink.folder or path / "tensorboard"))
        case WandbSink():
            return _Wandb(sink, recipe, path)
        case TrackioSink():
            return _Trackio(sink, recipe, path)
        case _:
            assert_never(sink)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed run loses nothing

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, sink: WandbSink, recipe: Recipe, path: Path) -> None:
        import wandb

        self.run = wandb.init(
            project=sink.project,
            entity=sink.entity,
            name=recipe.name,
            id=_identifier(path),
            resume="allow",
            mode=sink.mode,
            dir=str(path),
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off", login_timeout=LOGIN_SECONDS),
        )
        self.run.define_metric("*", step_metric="step")  # its own step may not repeat, and counts on after a resume

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, sink: TrackioSink, recipe: Recipe, path: Path) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(
            project=sink.project,
            name=f"{recipe.name}-{_identifier(path)}",  # runs are resumed by name
            space_id=sink.space_id,
            config=recipe.model_dump(mode="json"),
            resume="allow",
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        self.trackio.finish()  # not the run's own: what is current would be finished again at exit, onto stdout


def _identifier(path: Path) -> str:
    """What a dashboard knows this run by, kept in its folder: a run that is resumed goes on there, a new one does not."""
    file = path / "sinks.json"
    if not file.is_file():
        write_atomically(file, json.dumps({"id": secrets.token_hex(4)}))
    return str(json.loads(file.read_text(encoding="utf-8"))["id"])
