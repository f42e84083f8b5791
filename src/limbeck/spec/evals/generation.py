"""Generation health: does a model repeat itself, does it fall into loops, does it know when to stop."""

from typing import Literal

from pydantic import Field, PositiveInt

from limbeck.spec.evals.decoding import Decoding


class Generation(Decoding):
    """The model goes on from the beginnings of held-out documents, or answers prompts of a file."""

    kind: Literal["generation"] = "generation"
    prompts: str | None = None
    """A `.jsonl` file whose lines hold `prompt` (a text that is continued) or `messages` (a chat that is answered), or a `.txt`
    file with one prompt a line; None: the beginnings of held-out documents."""
    num_prompts: PositiveInt = 64
    """At most."""
    prompt_tokens: PositiveInt = 32
    """Of a held-out document's beginning."""
    end_documents: int = Field(64, ge=0)
    """On so many held-out documents (at most) the probability of stop tokens is measured; 0: on none."""
    end_tokens: PositiveInt = 512
    """Of each of them, the last so many are read."""
    end_chats: str | None = None
    """A `.jsonl` file of complete chats (`messages`, the last the assistant's), on whose ends it is measured, too."""
