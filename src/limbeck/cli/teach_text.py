"""`limbeck teach-text PROMPTS`: completions by a teacher, as training data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit, human, table
from limbeck.spec.base import parse
from limbeck.spec.load import parse_overrides, read_yaml
from limbeck.spec.overrides import apply_overrides
from limbeck.spec.teach_text import TeachText


def teach_text(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A .jsonl file with `messages` (a chat to answer) or `prompt` (a text to go on with) in every line; or a YAML "
            "file that says everything.",
            metavar="PROMPTS|YAML",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="samples=4, temperature=1.0, max_new_tokens=512, efforts.low.max_new_tokens=256, efforts.low.system='Answer "
            "briefly.', truncated=keep, duplicates=null, decontaminate.files=[gsm.jsonl], engine.batch_size=32, seed=1, …",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="smollm2, a model folder, a .gguf file or a hub id; more of it by teacher.KEY=VALUE.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write; default: taught/NAME of the prompts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a teacher answer prompts, and keep what is fit to be learnt from, with the teacher's log-probs of every token.

    A killed command goes on where it was. What is left out (loops, repeats, what the evaluation sets hold) is counted and kept
    apart. The folder's completions.jsonl is read by data.train.kind=chats, or, where prompts are texts, by kind=files.
    """
    spec = parse(TeachText, _values(prompts, overrides or [], teacher=teacher, output=output), source="teach-text")
    from limbeck.teach.text import COMPLETIONS
    from limbeck.teach.text import teach_text as run

    summary = run(spec)
    written = Path(spec.output) / COMPLETIONS
    emit(
        summary, as_json=as_json, lines=[*_lines(summary), "", f"written: {written}", f"train on it: {_key(summary, written)}"]
    )


def _values(prompts: str, overrides: list[str], *, teacher: str | None, output: Path | None) -> dict[str, Any]:
    is_spec = Path(prompts).suffix in {".yaml", ".yml"}
    values: dict[str, Any] = read_yaml(prompts, folder="recipes") if is_spec else {"prompts": prompts}
    values.setdefault("engine", {"kind": "transformers"})
    if teacher is not None:
        values["teacher"] = _teacher(teacher)
    if output is not None:
        values["output"] = str(output)
    values.setdefault("output", str(Path("taught") / Path(prompts).stem))
    return apply_overrides(values, parse_overrides(overrides))


def _teacher(name: str) -> dict[str, str]:
    if name == "smollm2":
        return {"kind": "smollm2"}
    return {"kind": "gguf", "path": name} if name.endswith(".gguf") else {"kind": "huggingface", "model": name}


def _lines(summary: dict[str, Any]) -> list[str]:
    dropped = {reason: count for reason, count in summary["dropped"].items() if count}
    left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
    rows = [
        [
            name,
            str(each["drawn"]),
            str(each["stopped"]),
            str(each["kept"]),
            human(each["tokens"]),
            "–" if each["log_prob_nats_per_token"] is None else f"{each['log_prob_nats_per_token']:.3f}",
            _length(each["length"]),
            _length(each["trace_length"]),
        ]
        for name, each in summary["efforts"].items()
    ]
    return [
        f"kept {summary['kept']} of {summary['drawn']} completions" + (f"; left out: {left_out}" if left_out else ""),
        f"{human(summary['tokens_drawn'])} tokens drawn, {summary['tokens_per_second']:,.0f} a second",
        "",
        *table(["effort", "drawn", "stopped", "kept", "tokens", "nats per token", "length (median, most)", "trace"], rows),
    ]


def _length(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{found['median']:.0f}, {found['most']:.0f}"


def _key(summary: dict[str, Any], written: Path) -> str:
    kind = "chats" if summary["chats"] else "files"
    return f"data.train.kind={kind} data.train.paths=[{written}]"
