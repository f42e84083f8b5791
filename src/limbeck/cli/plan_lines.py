"""The answers of `limbeck plan` as lines for people; `limbeck.plan.answers` has the values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.cli.output import human, table
from limbeck.plan.allocate import SCENARIOS
from limbeck.plan.choose import STORED_SIGNALS, WEIGHTS
from limbeck.plan.design import Design
from limbeck.plan.family import short

_WORDS = {
    "supervised": "without a teacher",
    "best_case": "teacher for nothing",
    "teacher_inference": "+ teacher inference",
    "teacher_pretraining": "+ teacher pretraining",
    "teacher_pretraining_and_inference": "+ both",
}


def budget_lines(values: Mapping[str, Any]) -> list[str]:
    """Training alone and the scenarios, a row each."""
    headers = (
        "",
        "loss, nats",
        "student tokens",
        "teacher",
        "its tokens",
        "its loss",
        "% student/reading/pretraining",
    )
    alone = values["supervised"]
    rows: list[tuple[str, ...]] = [
        (_WORDS["supervised"], f"{alone['loss_nats']:.4f}", short(alone["student_tokens"]), "", "", "", "100/0/0")
    ]
    rows += [_scenario_row(scenario.name, values[scenario.name]) for scenario in SCENARIOS if scenario.name in values]
    return [*_head(values, f"{values['flops']:.3g} FLOPs"), *table(headers, rows), *_tail(values)]


def _scenario_row(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    total = sum(result["flops"].values())
    shares = "/".join(f"{100 * part / total:.0f}" for part in result["flops"].values())
    teacher = (short(result["teacher_params"]), short(result["teacher_tokens"]), f"{result['teacher_loss_nats']:.3f}")
    return (_WORDS[name], f"{result['loss_nats']:.4f}", short(result["student_tokens"]), *teacher, shares)


def tokens_lines(values: Mapping[str, Any]) -> list[str]:
    """The best teacher there could be, beside training alone."""
    best, alone = values["best_teacher"], values["supervised"]
    rows = [
        ("without a teacher", f"{alone['loss_nats']:.4f}", "", "", ""),
        (
            "best teacher",
            f"{best['loss_nats']:.4f}",
            f"{best['teacher_loss_nats']:.3f}",
            short(best["teacher_params"]),
            short(best["teacher_tokens"]),
        ),
    ]
    headers = ("", "loss, nats", "teacher's loss", "its cheapest size", "its tokens")
    return [*_head(values, f"{short(values['tokens'])} tokens"), *table(headers, rows), *_tail(values)]


def loss_lines(values: Mapping[str, Any]) -> list[str]:
    """What a loss costs, a row each."""
    rows = []
    for name, words in _WORDS.items():
        cost = values[name]
        if cost is None:
            rows.append((words, "out of reach", "", "", ""))
            continue
        ratios = [_times(cost.get(f"{what}_over_supervised", 1.0)) for what in ("flops", "tokens")]
        rows.append((words, f"{cost['flops']:.3g}", ratios[0], short(cost["tokens"]), ratios[1]))
    headers = ("", "FLOPs", "of alone", "tokens read", "of alone")
    return [*_head(values, f"{values['loss_nats']:g} nats"), *table(headers, rows), *_tail(values)]


def crossover_lines(values: Mapping[str, Any]) -> list[str]:
    """From which compute on training alone is as good, a row each."""
    rows = []
    for name, crossing in values["supervised_overtakes"].items():
        if isinstance(crossing, str):
            rows.append((_WORDS[name], crossing, "", "", ""))
            continue
        tokens = (short(crossing["supervised_tokens"]), short(crossing["student_tokens"]))
        rows.append((_WORDS[name], f"{crossing['flops']:.3g}", f"{crossing['loss_nats']:.4f}", *tokens))
    headers = ("training alone overtakes", "at FLOPs", "loss, nats", "tokens alone", "tokens distilled")
    return [*_head(values, "any budget"), *table(headers, rows), *_tail(values)]


def teachers_lines(values: Mapping[str, Any]) -> list[str]:
    """Existing teachers for a student, best first: what the student would reach, then what each costs."""
    alone, device, tokens = values["supervised"], values["device"], values["tokens"]
    reached = [("(without a teacher)", "", "", f"{alone['loss_nats']:.4f}", "")]
    costs = []
    for teacher in values["teachers"]:
        how = (
            "measured"
            if teacher["loss_measured"]
            else f"on {short(teacher['tokens'])}{'?' if teacher['tokens_assumed'] else ''}"
        )
        nats = (f"{teacher['loss_nats']:.3f}", how, f"{teacher['student_loss_nats']:.4f}")
        reached.append((teacher["name"], *nats, f"{teacher['alone_at_equal_flops_nats']:.4f}"))
        reading, weights, store = teacher["flops"]["teacher_inference"], teacher["weights_bytes"], teacher["store_bytes"]
        costs.append(
            (
                teacher["name"],
                human(teacher["flops_per_token"]),
                f"{reading:.3g}",
                f"{teacher['hours']['teacher_inference']:.3g}",
                *(human(weights[name], "B") for name in WEIGHTS),
                *(human(store[name], "B") for name in STORED_SIGNALS),
            )
        )
    headers = ("teacher", "its loss", "predicted", "student, nats", "alone for the same FLOPs")
    weights = [f"{name} weights" for name in WEIGHTS]
    priced = ("teacher", "FLOPs/token", "reading, FLOPs", "hours", *weights, *(f"{name} store" for name in STORED_SIGNALS))
    count = f"{device['count']} x " if device["count"] > 1 else ""
    speed = f"{count}{device['name']} at {100 * device['utilisation']:g} % of {device['flops_per_second']:.3g} FLOP/s"
    student = f"training the student: {alone['flops']:.3g} FLOPs, {alone['hours']:.3g} hours. Hours on {speed}"
    head = _head(values, f"{short(tokens)} tokens")
    return [*head, *table(headers, reached), "", *table(priced, costs), student, *_tail(values)]


def catalogue_lines(values: Mapping[str, Any]) -> list[str]:
    """FLOPs per token of every teacher, with Chinchilla's budget for it."""
    headers = (
        "teacher",
        "total",
        "active",
        "FLOPs/token",
        "20 tokens/parameter",
        "their FLOPs",
        "really read",
        "its FLOPs",
        "reading",
    )
    rows = [
        (
            teacher["name"],
            short(teacher["total_params"]),
            short(teacher["active_params"]),
            f"{teacher['flops_per_token']:.4g}",
            short(teacher["chinchilla_tokens"]),
            f"{teacher['chinchilla_flops']:.3g}",
            short(teacher["pretraining_tokens"]) if teacher["pretraining_tokens"] else "not public",
            f"{teacher['pretraining_flops']:.3g}" if teacher["pretraining_flops"] else "",
            f"{teacher['reading_flops']:.3g}",
        )
        for teacher in values["teachers"]
    ]
    note = (
        f"FLOPs per token of a forward pass over {values['context']:,} tokens; training takes three times that. "
        f"Active: what a token touches, embeddings included. Reading: FLOPs to score {short(values['tokens'])} tokens once."
    )
    return [*table(headers, rows), "", note]


def cache_lines(values: Mapping[str, Any]) -> list[str]:
    """Storing a signal beside running the teacher every time."""
    rows = [
        ("live", f"{values['live_flops']:.3g}", f"{values['live_seconds'] / 3600:.3g}", ""),
        (
            f"cached, {values['signal']}",
            f"{values['cached_flops']:.3g}",
            f"{values['cached_seconds'] / 3600:.3g}",
            human(values["store_bytes"], "B"),
        ),
    ]
    return [*table(("", "FLOPs", "hours", "store"), rows), "", values["verdict"]]


def design_lines(design: Design, path: Path) -> list[str]:
    """A design's arms and totals, and where its file is."""
    price = design.price
    rows = [
        (arm.arm, arm.teacher or "text", short(arm.params), short(arm.tokens or 0), f"{arm.student_flops:.3g}")
        for arm in design.arms
    ]
    return [
        *table(("arm", "learns from", "parameters", "tokens", "training FLOPs"), rows),
        "",
        f"{len(design.arms)} arms ({', '.join(design.protocols)}): {price.training_flops:.3g} FLOPs of training + "
        f"{price.scoring_flops:.3g} of {len(price.stores)} scorings = {design.total_flops:.3g}; {human(price.hours or 0)} "
        f"hours at {price.flops_per_second:.3g} FLOP/s; stores {human(price.store_bytes or 0, 'B')}",
        f"study: {path} (limbeck study run {path})",
    ]


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3g}x"


def _head(values: Mapping[str, Any], budget: str) -> Sequence[str]:
    student = values["student"]
    size = f"{short(student['params'])} parameters outside the embeddings, {human(student['flops_per_token'])}FLOPs per token"
    return (f"student {student['name']}: {size}; {budget}; law: {values['law']}", "")


def _tail(values: Mapping[str, Any]) -> list[str]:
    return ["", values["verdict"], *(f"warning: {warning}" for warning in values["warnings"])]
