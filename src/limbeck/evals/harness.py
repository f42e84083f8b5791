"""Downstream tasks through EleutherAI's lm-evaluation-harness, on the model as it is loaded: students of every family too.

Everything that can be missing is found by `check`, before anything is measured: the package, a task, its data. What the model
answers is written line by line as it comes (`<name>.generations.jsonl`), before anything is scored; the scored samples follow
(`<name>.samples.jsonl`). The harness's own response cache is not used: it unpickles.
"""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import DataError, LimbeckError, SpecError, first_line
from limbeck.eval_results import Metric
from limbeck.evals.local_tasks import task_name, write_task
from limbeck.evals.subject import EvalModel
from limbeck.gguf_folder import remembered_sha256
from limbeck.paths import cache_folder, write_atomically
from limbeck.spec.base import nearest
from limbeck.spec.evals.harness import Harness

NORMAL_95 = 1.959964
"""The harness gives a standard error; the interval is the normal one around its mean."""
LAYOUT = 1
"""Of the tasks made of local files: another number where the same file is to become another task."""
BOOTSTRAP = 1000
"""Resamples for metrics that have no formula for their error (F1, BLEU)."""


def check(model: EvalModel, spec: Harness) -> None:
    """What would stop `measure`, found before it: `LimbeckError` with the remedy."""
    _require_package()
    with _quiet():
        tasks = _load(spec)
    generating = [name for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"]
    if generating and spec.batch_size > 1 and not _pads(model):
        raise SpecError(f"harness.tasks={generating[0]} generates, and {model.name} cannot pad rows: set harness.batch_size=1")
    if spec.chat and not model.tokenizer.backend.chat_template:
        raise SpecError(f"harness.chat=true, but the tokenizer of {model.name} has no chat template: set it to false")


def measure(model: EvalModel, spec: Harness, *, generations: Path | None = None) -> tuple[dict[str, Metric], dict[str, Any]]:
    """`<task>/<metric>` of every task and group. `generations` is the file that keeps the answers."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _quiet(), _responses(generations) as hook:
        reader = HFLM(
            pretrained=model.reader.model,
            tokenizer=copy.deepcopy(model.tokenizer.backend),  # the harness gives it a padding token
            batch_size=spec.batch_size,
            max_length=model.window(model.longest),
        )
        reader.set_cache_hook(hook)
        found = lm_eval.simple_evaluate(
            model=reader,
            tasks=_named(spec),
            task_manager=_manager(spec),
            num_fewshot=spec.num_fewshot,
            limit=spec.limit,
            apply_chat_template=spec.chat,
            bootstrap_iters=BOOTSTRAP,
        )
    if generations is not None:
        _write_samples(
            generations.with_name(f"{generations.name.removesuffix('.generations.jsonl')}.samples.jsonl"), found["samples"]
        )
    return _metrics(found), {"versions": found["versions"], "fewshot": found["n-shot"], "lm_eval": found["lm_eval_version"]}


class _Responses:
    """Stands where the harness expects its cache, and writes every answer down as it comes."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def add_partial(self, attr: str, req: Sequence[Any], res: Any) -> None:
        """What the harness calls with a method's name, its arguments and what the model answered."""
        if self.file is not None:
            line = json.dumps({"request": attr, "arguments": req, "response": res}, ensure_ascii=False, default=str)
            self.file.write(line + "\n")
            self.file.flush()


@contextmanager
def _responses(path: Path | None) -> Iterator[_Responses]:
    if path is None:
        yield _Responses(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yield _Responses(file)


def _write_samples(path: Path, by_task: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    lines = [{"task": task, **sample} for task, rows in by_task.items() for sample in rows]
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    write_atomically(path, text)


def _pads(model: EvalModel) -> bool:
    """Whether rows of several lengths can be generated together: a student of Limbeck's own class remembers unpadded rows."""
    return bool(model.reader.model.config.model_type != "limbeck")


def _named(spec: Harness) -> list[str]:
    return [*spec.tasks, *(task_name(Path(file)) for file in spec.files)]


def _manager(spec: Harness) -> Any:
    """The harness's index of tasks: its own where one of them is asked for, with local ones over them."""
    from lm_eval.tasks import TaskManager

    local = [_local_folder(spec)] if spec.files else []
    local += [spec.include_path] if spec.include_path is not None else []
    manager = TaskManager(include_path=local, include_defaults=False) if local else None
    if manager is None or any(name not in manager.all_tasks for name in _named(spec)):
        return TaskManager(include_path=local or None)
    return manager


def _local_folder(spec: Harness) -> str:
    """The tasks made of `spec.files`, in the user cache."""
    names = [task_name(Path(file)) for file in spec.files]
    lost = next((file for file in spec.files if not Path(file).is_file()), None)
    if lost is not None:
        raise SpecError(f"harness.files={lost} is not there: correct the path (relative to {Path.cwd()})")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"harness.files has two files that become the task {twice}: rename one")
    described = [[name, remembered_sha256(Path(file))] for name, file in zip(names, spec.files, strict=True)]
    key = hashlib.sha256(json.dumps([LAYOUT, described]).encode("utf-8")).hexdigest()[:20]
    folder = cache_folder() / "harness" / key
    for name, file in zip(names, spec.files, strict=True):
        if not (folder / f"{name}.yaml").is_file():  # datasets reads a file again that is newer
            write_task(Path(file), folder)
    return str(folder)


def _load(spec: Harness) -> dict[str, Any]:
    """The tasks, with their data."""
    if spec.include_path is not None and not Path(spec.include_path).is_dir():
        raise SpecError(f"harness.include_path={spec.include_path} is not a folder: name the one that holds the task files")
    manager = _manager(spec)
    tasks: dict[str, Any] = {}
    for name in _named(spec):
        if name not in manager.all_tasks:
            raise SpecError(f"harness.tasks={name} is not a task{nearest(name, manager.all_tasks, shown=['lm_eval ls tasks'])}")
        tasks |= _loaded(manager, name)
    return tasks


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    try:
        return dict(manager.load([name])["tasks"])
    except Exception as error:  # datasets, its download libraries and a task's own code each have errors of their own
        raise DataError(
            f"harness.tasks={name} cannot be loaded ({type(error).__name__}: {first_line(error)}): its data must be in the "
            "datasets cache or reachable, or use harness.files or harness.include_path with local data"
        ) from error


def _require_package() -> None:
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise LimbeckError(
            f"harness needs the package lm-eval ({first_line(error)}): pip install 'limbeck[harness]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks on what is as intended here (a loaded model, zero examples), nor bars of small files."""
    from datasets import disable_progress_bars, enable_progress_bars

    logger, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        enable_progress_bars()


def _metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    """`<task>/<metric>`, or `<task>/<metric>/<filter>` where a task reads answers in several ways."""
    metrics: dict[str, Metric] = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise LimbeckError(
                    f"harness: {task} {metric} is {value}: the model's logits are not finite, or it answered nothing"
                )
            error = values.get(f"{metric}_stderr,{how}")
            half = NORMAL_95 * error if isinstance(error, int | float) and math.isfinite(error) else None
            metrics[f"{task}/{metric}" + ("" if how == "none" else f"/{how}")] = Metric(
                value=float(value),
                low=None if half is None else value - half,
                high=None if half is None else value + half,
                n=_documents(found, task, values),
                better=_better(found, task, metric),
            )
    return metrics


def _documents(found: Mapping[str, Any], task: str, values: Mapping[str, Any]) -> int | None:
    counted = found["n-samples"].get(task, {}).get("effective", values.get("sample_len"))
    return None if counted is None else int(counted)


def _better(found: Mapping[str, Any], task: str, metric: str) -> Any:
    higher = found["higher_is_better"].get(task, {}).get(metric)
    return None if higher is None else "higher" if higher else "lower"
