"""Finding and gathering things in long prompts: the tasks of RULER (Hsieh et al. 2024, arXiv:2404.06654)."""

from typing import Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec
from limbeck.spec.data import Texts

RulerTask = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa",
]
SYNTHETIC: tuple[RulerTask, ...] = get_args(RulerTask)[:-1]
"""All but question answering, which needs data."""


class LongContext(Spec):
    """Prompts made with the model's own tokenizer; answers generated, and scored by their likelihood."""

    kind: Literal["long_context"] = "long_context"
    tasks: tuple[RulerTask, ...] = Field(SYNTHETIC, min_length=1)
    lengths: tuple[PositiveInt, ...] | None = Field(None, min_length=1)
    """Tokens of prompt and answer together; None: those of 1,024, 2,048 and 4,096 that the model reads."""
    samples: PositiveInt = 20
    """Of each task at each length. RULER has 500."""
    seed: int = Field(0, ge=0)
    essays: Texts | None = None
    """Prose to hide needles in, and whose words are counted; None: the held-out texts."""
    qa_file: str | None = None
    """Questions for the task `qa`, in SQuAD's JSON."""
    chat: bool = False
    """Prompts go through the tokenizer's chat template; otherwise they are text to be continued, as for base models."""
    generate: bool = True
    """Score what the model generates, as RULER does."""
    likelihood: bool = True
    """Also how much likelier the answer is with the needle than without: small models tell apart here who generate nothing."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.generate and not self.likelihood:
            raise ValueError("generate and likelihood are both false: set one to true")
        if "qa" in self.tasks and self.qa_file is None:
            raise ValueError("tasks=qa needs questions: set qa_file to a file in SQuAD's JSON, or leave qa out")
        for name in ("tasks", "lengths"):
            asked = getattr(self, name) or ()
            if len(set(asked)) < len(asked):
                raise ValueError(f"{name} names something twice: remove it")
        return self
