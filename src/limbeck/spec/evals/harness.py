"""Downstream tasks through EleutherAI's lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness)."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class Harness(Spec):
    """Tasks by the harness's names, from a folder of task files, or made of local multiple-choice files."""

    kind: Literal["harness"] = "harness"
    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags, as `lm_eval ls tasks` shows them."""
    files: tuple[str, ...] = ()
    """BIG-bench `task.json`, or JSONL of {question, choices, label}: each becomes a task, named by its file or folder."""
    include_path: str | None = None
    """A folder of task YAML of one's own. Its `!function` entries run Python from that folder."""
    num_fewshot: int | None = Field(None, ge=0)
    """None: as each task says."""
    limit: PositiveInt | None = None
    """Of each task the first so many documents; None: all."""
    batch_size: PositiveInt = 8
    chat: bool = False
    """Questions go through the tokenizer's chat template."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.tasks and not self.files:
            raise ValueError("harness has neither tasks nor files: name at least one")
        return self
