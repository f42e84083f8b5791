"""A model that exists, as `student.kind=huggingface` asks for it: its own configuration says what it is."""

from typing import Literal

from pydantic import PositiveInt

from limbeck.spec.adapter import Adapter
from limbeck.spec.prune import Pruning
from limbeck.spec.student_family import StudentFamily


class HuggingFaceStudent(StudentFamily):
    """A causal language model that exists, pruned or whole, whose training goes on: all of it, or an adapter beside it.

    Its own dropout is off, and so are its auxiliary losses.
    """

    kind: Literal["huggingface"] = "huggingface"
    model: str
    """A folder, a hub id (`allenai/Olmo-3-1025-7B`), or `smollm2`: what the teacher of that kind is. Safetensors alone."""
    revision: str | None = None
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Off unless asked for by name."""
    prune: Pruning | None = None
    """What is taken out of it first; None: nothing."""
    adapter: Adapter | None = None
    """None: every parameter is trained."""
    vocab_size: PositiveInt | None = None
    """The model's; no other will do."""
