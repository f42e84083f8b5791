"""`limbeck eval RUN|FOLDER|HUB_ID … --by-position`: where in a document models lose what."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from limbeck.cli.output import emit, table
from limbeck.errors import LimbeckError, SpecError
from limbeck.report.statistics import Estimate
from limbeck.spec.data import Texts

FILE = "by-position"


def show_by_position(models: dict[str, str], *, texts: Texts, window: int, output: Path, as_json: bool) -> None:
    """Measure, write `by-position.json`, `.svg` and `.png` under `output`, and print the table."""
    import json

    from limbeck.drawing import write_figure
    from limbeck.evals.by_position import evaluate_by_position
    from limbeck.evals.by_position_figure import curves
    from limbeck.paths import write_atomically

    result = evaluate_by_position(models, texts=texts, window=window)
    draw, size = curves(result)
    output.mkdir(parents=True, exist_ok=True)
    _, picture = write_figure(draw, output / FILE, size=size)
    written = output / f"{FILE}.json"
    values = {**asdict(result), "texts": texts.model_dump(mode="json")}
    write_atomically(written, json.dumps(values, indent=1, allow_nan=False))
    names = list(result.models)
    headers = ["position", "tokens", "documents", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    rows = []
    for same in zip(*result.models.values(), strict=True):
        first = same[0]
        differences = [_signed(bucket.difference) for bucket in same[1:]]
        counts = [f"{first.tokens:,}", str(first.documents)]
        rows.append([f"{first.first}-{first.stop - 1}", *counts, *(_plain(bucket.nats) for bucket in same), *differences])
    lines = [f"nats per token [95% over documents], the first {window:,} tokens of {result.documents} documents", ""]
    emit(values, as_json=as_json, lines=[*lines, *table(headers, rows), "", f"written: {written}, {picture}"])


def labels(targets: Sequence[str]) -> dict[str, str]:
    """The targets by their last part, or by all of it where two would be alike. `SpecError` where one is named twice."""
    short = [Path(target).name for target in targets]
    if len(set(targets)) < len(targets):
        raise SpecError("the same model is named twice: name each once")
    return dict(zip(short if len(set(short)) == len(short) else targets, targets, strict=True))


def output_folder(targets: Sequence[str], output: Path | None) -> Path:
    """The one that is named, or that of the only run."""
    if output is None and len(targets) == 1 and (Path(targets[0]) / "recipe.yaml").is_file():
        return Path(targets[0])
    if output is None:
        raise LimbeckError("name a folder for the table and the figure with -o")
    return output


def _plain(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return f"{estimate.value:+.4f}{ends}"
