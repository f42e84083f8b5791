"""A model under evaluation, opened once for all that is measured of it."""

from dataclasses import dataclass

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import SpecError
from limbeck.spec.data import Texts
from limbeck.spec.teacher import Context, DType, HuggingFaceTeacher
from limbeck.spec.teacher import Teacher as TeacherSpec
from limbeck.teachers.huggingface import Teacher, load_teacher

DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class EvalModel:
    """The model under evaluation and what it is held against."""

    name: str
    """As people named it: a run, a folder or a hub id."""
    reader: Teacher
    """Loaded; `.model` is the transformers model, for generation, and `.device` where it computes."""
    tokenizer: Tokenizer
    """Its own; `.backend` is the transformers tokenizer."""
    heldout: Texts | None
    """The recipe's held-out texts, or those that were named; None where neither is known."""
    teacher: TeacherSpec | None
    """The recipe's, or the one that was named."""
    sequence_length: int | None = None
    """What the student was trained on."""

    @property
    def longest(self) -> int | None:
        """The most positions that it says it was made for."""
        return getattr(self.reader.model.config, "max_position_embeddings", None)

    def window(self, asked: int | None) -> int:
        """Tokens to read at once, where an evaluation does not say."""
        usual = asked or self.sequence_length or DEFAULT_WINDOW
        return usual if asked else min(usual, self.longest or usual)

    def require_heldout(self, kind: str) -> Texts:
        """The held-out texts; `SpecError` where there are none."""
        if self.heldout is None:
            raise SpecError(f"{kind} reads held-out texts and {self.name} names none: add --recipe or --texts")
        return self.heldout


def open_model(
    name: str,
    folder: str,
    *,
    heldout: Texts | None,
    teacher: TeacherSpec | None,
    sequence_length: int | None = None,
    dtype: DType = "auto",
    device: str = "auto",
) -> EvalModel:
    """Load a model and its tokenizer from a folder or by its hub id."""
    tokenizer = load_tokenizer(folder)
    where = pick_device(device)
    reader = load_teacher(HuggingFaceTeacher(model=folder, dtype=dtype, context=Context(window=1, overlap=0)), device=where)
    return EvalModel(name, reader, tokenizer, heldout, teacher, sequence_length)
