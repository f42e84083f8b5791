"""What a student reads while it learns, where that is not the texts alone: continuations of prompts, by itself or its teacher.

Where a prefix comes from and which divergence is minimised on it are switches of their own: the first is here, the second is
the objective. Sources: GKD (Agarwal et al., arXiv 2306.13649), MiniLLM (arXiv 2306.08543), DistiLLM (arXiv 2402.03898), and the
sampled-token form of K. Lu et al., "On-Policy Distillation" (Thinking Machines, 2025).
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class FilePrompts(Spec):
    """A `.jsonl` file whose lines hold `prompt` (a text that is continued) or `messages` (a chat that is answered)."""

    kind: Literal["file"] = "file"
    path: str


class DocumentPrompts(Spec):
    """The beginnings of the training documents."""

    kind: Literal["documents"] = "documents"
    tokens: PositiveInt = 32


Prompts = Annotated[FilePrompts | DocumentPrompts, Field(discriminator="kind")]


class Sources(Spec):
    """The shares of a step's sequences by where they come from; they sum to 1."""

    student: float = Field(1.0, ge=0, le=1)
    """Continuations of prompts by the student as it is."""
    teacher: float = Field(0.0, ge=0, le=1)
    """Continuations of prompts by the teacher."""
    data: float = Field(0.0, ge=0, le=1)
    """Rows of the training texts, as off-policy training reads them."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.student + self.teacher + self.data
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"student, teacher and data sum to {total:g}: the shares of a step must sum to 1")
        return self


def shares(sources: Sources, total: int) -> dict[str, int]:
    """Sequences of a step by source, summing to the total by largest remainder; of equal remainders the first gains."""
    exact = {source: total * getattr(sources, source) for source in Sources.model_fields}
    found = {source: int(amount + 1e-9) for source, amount in exact.items()}
    for source in sorted(exact, key=lambda source: found[source] - exact[source])[: total - sum(found.values())]:
        found[source] += 1
    return found


class Replay(Spec):
    """A part of the student's sequences are drawn from those of earlier steps (DistiLLM's replay buffer)."""

    capacity: PositiveInt = 1000
    """Rollouts that are remembered: the latest."""
    share: float = Field(0.5, gt=0, lt=1)
    """Of the student's sequences of a step, once there are enough to draw from."""

    def of(self, sequences: int) -> int:
        """How many of so many sequences, one of which at least is new."""
        return max(0, min(round(self.share * sequences), sequences - 1))


class TransformersEngine(Spec):
    """transformers' generation, in this process, with the student's weights as they are."""

    kind: Literal["transformers"] = "transformers"
    batch_size: PositiveInt = 32
    """Rollouts that are generated at once."""


class ServerEngine(Spec):
    """A server that completes prompts of token ids as OpenAI's `/v1/completions` does (vLLM, SGLang).

    It serves the weights that the student had when they were last given to it: every `refresh_steps` the student is written as
    a folder and the server is asked to load that. What it samples in between is off-policy by that much, which the objective
    `sampled_reverse_kl` corrects by the ratio of probabilities.
    """

    kind: Literal["server"] = "server"
    url: str
    """Up to and without `/completions`: `http://localhost:8000/v1`."""
    model: str
    """As the server calls it."""
    api_key_variable: str | None = None
    """The environment variable that holds the key, which goes to the host of `url` alone; None: there is no key."""
    refresh_url: str | None = None
    """Where `{"model": name, "path": folder}` is posted so that new weights are loaded; None: the server keeps its own."""
    refresh_steps: PositiveInt = 1
    """Steps after which the weights are given again, at the next writing of rollouts."""
    timeout_seconds: float = Field(600.0, gt=0)


Engine = Annotated[TransformersEngine | ServerEngine, Field(discriminator="kind")]


class OnPolicy(Spec):
    """Every step prompts are continued, the teacher reads what came of it, the objective is minimised on the continuations.

    `batch.sequences` is the number of sequences of a step and `data.sequence_length` the longest, prompt and continuation
    together. The student samples at temperature 1 from its whole distribution: anything else is another policy than the one
    whose divergence is minimised.
    """

    prompts: Prompts = DocumentPrompts()
    sources: Sources = Sources()
    max_new_tokens: PositiveInt = 128
    group_size: PositiveInt = 1
    """Continuations of each prompt."""
    steps_per_rollout: PositiveInt = 1
    """Optimizer steps on the same rollouts; from the second on they are off-policy."""
    mask_truncated: bool = False
    """Rollouts that were cut off at `max_new_tokens` are left out of the loss; they are counted either way. The run stops, with
    an error, where nothing is left in 20 steps in a row."""
    replay: Replay | None = None
    engine: Engine = TransformersEngine()
    stop_share: float | None = Field(None, gt=0, le=1)
    """The run stops, with an error, where more than this share of the rollouts of 20 steps in a row are truncated or loops."""

    def check_sequences(self, sequences: int) -> None:
        """`ValueError` where a share that is asked for comes to no sequence of a step."""
        counts = shares(self.sources, sequences)
        asked = {name: getattr(self.sources, name) for name in counts}
        lost = [f"sources.{name}={share:g}" for name, share in asked.items() if share and not counts[name]]
        if self.replay is not None and not self.replay.of(counts["student"]):
            lost.append(f"replay.share={self.replay.share:g}")
        if lost:
            raise ValueError(
                f"on_policy.{lost[0]} comes to none of batch.sequences={sequences}: raise batch.sequences, or change the share"
            )
