"""Which law a user means by a name or a formula, and what it needs besides points."""

import re
from collections.abc import Mapping

from limbeck.errors import DataError, SpecError
from limbeck.plan.fit.custom import custom_form
from limbeck.plan.fit.fitting import fit_law
from limbeck.plan.fit.forms import CHINCHILLA, SUPERVISED, DistillationForm, Form
from limbeck.plan.fit.points import Points
from limbeck.plan.law_files import COEFFICIENTS
from limbeck.plan.laws import Supervised
from limbeck.spec.base import nearest

LAWS = tuple(COEFFICIENTS)
_WORD = re.compile(r"[\w-]+")


def check_law(law: str) -> None:
    """`SpecError` with the nearest name for a word that is no law."""
    if law not in LAWS and _WORD.fullmatch(law):
        raise SpecError(f"--law {law} is not a law{nearest(law, list(LAWS))}, nor a formula such as 'E + A / N**alpha'")


def form_named(law: str, *, starts: Mapping[str, float], frozen: Supervised | None) -> Form:
    """The form of a law's name or formula. `frozen` is what a distillation law holds inside; `starts` are a formula's."""
    if starts and law in LAWS:
        raise SpecError(f"--start is for a formula's coefficients; {law} finds its own starts")
    match law:
        case "chinchilla":
            return CHINCHILLA
        case "supervised":
            return SUPERVISED
        case "distillation":
            assert frozen is not None, "whoever asks for a distillation law brings the law of training alone"
            return DistillationForm(frozen)
    return custom_form(law, starts)


def parse_starts(text: str) -> dict[str, float]:
    """`E=1.8,alpha=0.3` as a mapping; `SpecError` where it isn't one."""
    starts = {}
    for part in text.split(","):
        name, _, value = (side.strip() for side in part.partition("="))
        try:
            starts[name] = float(value)
        except ValueError:
            raise SpecError(f"--start {part!r} is not name=number") from None
        if not abs(starts[name]) < float("inf"):
            raise SpecError(f"--start {part!r} is not finite")
    return starts


def supervised_of_runs(alone: Points | None) -> Supervised:
    """The law of training alone (eq. 1) that the runs without a teacher give; `DataError` where they are too few."""
    remedy = "add runs without a teacher, or give a law with --supervised LAW.json"
    if alone is None:
        raise DataError(f"the distillation law needs the law of training alone, and no run trains without a teacher: {remedy}")
    if len(alone) < len(SUPERVISED.coefficients):
        needed = len(SUPERVISED.coefficients)
        raise DataError(f"{len(alone)} runs without a teacher can't determine the {needed} coefficients of eq. 1: {remedy}")
    law = fit_law(SUPERVISED, alone, resamples=0).law
    return SUPERVISED.law({name: float(getattr(law, name)) for name in SUPERVISED.coefficients})
