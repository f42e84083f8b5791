"""What a teacher is asked to write, and which of its completions are kept as training data.

Sequence-level distillation: Kim & Rush, arXiv 1606.07947. At temperature 1 from the whole distribution (the default) the
completions are unbiased draws from the teacher; what sharpens it trades that for fewer odd ones.
"""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec
from limbeck.spec.on_policy import Engine, ServerEngine, TransformersEngine
from limbeck.spec.teacher import Teacher


class Effort(Spec):
    """One way of being asked: how much the teacher thinks. Its name is told to the chat template as `reasoning_effort`."""

    max_new_tokens: PositiveInt | None = None
    """Trace and answer together; None: the `max_new_tokens` of all."""
    system: str | None = None
    """For teachers whose template knows no efforts: added to the system message, or put first as one."""
    template: dict[str, Any] = Field(default_factory=dict)
    """What else the template is told: `enable_thinking: false`."""


class Duplicates(Spec):
    """Of completions that are alike the first is kept; those of different efforts are never alike."""

    similarity: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of the sets of word n-grams from which on two completions are near duplicates."""
    words: PositiveInt = 5
    """n. Shorter completions are compared whole, together with what was asked."""


class Decontamination(Spec):
    """Completions (or prompts) that share `words` words in a row with a text of the evaluation sets are left out."""

    files: tuple[str, ...] = ()
    """`.jsonl`, `.json`, `.toml`, `.txt` or `.md`, or folders of such: every text in them counts, whatever its field."""
    recipe: str | None = None
    """Also its held-out texts."""
    study: str | None = None
    """Also its held-out texts, and the files that its evaluations read."""
    words: PositiveInt = 13
    """As for GPT-3 (Brown et al., arXiv 2005.14165, appendix C). Shorter texts, down to 8 words, must be contained whole."""


class TeachText(Spec):
    """Completions of prompts by a teacher."""

    teacher: Teacher
    prompts: str
    """A `.jsonl` file with `messages` (the assistant's last turn is replaced) or `prompt` (a text to go on with) a line."""
    output: str
    """The folder to write."""
    samples: PositiveInt = 1
    """Completions of each prompt at each effort."""
    efforts: dict[str, Effort] = Field(default_factory=dict)
    """By their names (low, medium, high); none: the template is told nothing."""
    keep_system: bool = False
    """An effort's system text stays in the chats: for students whose own template knows no efforts either."""
    max_new_tokens: PositiveInt = 512
    temperature: float = Field(1.0, ge=0)
    """0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0)
    engine: Engine = TransformersEngine()
    truncated: Literal["drop", "keep"] = "drop"
    """Completions that were cut off at their limit: in a chat, a template would put an end after them that the teacher did not
    write."""
    duplicates: Duplicates | None = Duplicates()
    """None: all are kept."""
    decontaminate: Decontamination = Decontamination()
    device: str = "auto"

    @model_validator(mode="after")
    def _draws_where_it_says_how(self) -> Self:
        if self.temperature == 0 and (self.top_p < 1 or self.samples > 1):
            what = "top_p" if self.top_p < 1 else "samples"
            raise ValueError(f"{what}={getattr(self, what)} means nothing at temperature=0, which is greedy: set a temperature")
        if isinstance(self.engine, ServerEngine) and self.engine.refresh_url is not None:
            raise ValueError("engine.refresh_url would do nothing: a teacher does not change; remove it")
        return self

    def limit(self, effort: str | None) -> int:
        """Tokens that a completion of that effort may have."""
        own = self.efforts[effort].max_new_tokens if effort is not None else None
        return own or self.max_new_tokens
