"""Word problems with a number for an answer: GSM8K, MGSM, GSM-symbolic."""

from typing import Literal

from pydantic import Field, PositiveInt

from limbeck.spec.evals.decoding import Decoding


class Gsm(Decoding):
    """Problems are put after worked examples, or as a chat without any."""

    kind: Literal["gsm"] = "gsm"
    path: str
    """A `.jsonl` file (`question`, and `answer` ending in `#### N` or `answer_number`), or a folder of such `.toml` files."""
    num_problems: PositiveInt | None = None
    """The first so many; None: all."""
    format: Literal["shots", "chat"] = "shots"
    shots: int = Field(8, ge=0)
    """Worked examples before the problem; 'chat' has none."""
    shots_path: str | None = None
    """The problems whose first `shots` are the examples, and are not asked; None: eight of Limbeck's own."""
    max_new_tokens: PositiveInt = 320
    answer_nats: bool = True
    """Also measure how surprised the model is by the right answer after the right reasoning."""
