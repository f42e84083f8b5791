"""A model under evaluation, opened once for all that is measured of it."""

from dataclasses import dataclass
from typing import Any

from limbeck.compute import pick_device
from limbeck.data.chat_template import with_chat_template
from limbeck.data.prepare import prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import LimbeckError, SpecError
from limbeck.spec.base import parse
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
    loss_on: tuple[str, ...] | None = None
    """Of held-out chats, what is measured."""

    @property
    def longest(self) -> int | None:
        """The most positions that it says it was made for."""
        return getattr(self.reader.model.config, "max_position_embeddings", None)

    def window(self, asked: int | None) -> int:
        """Tokens to read at once, where an evaluation does not say."""
        usual = asked or self.sequence_length or DEFAULT_WINDOW
        return usual if asked else min(usual, self.longest or usual)

    def reading(self, window: int | None, overlap: int, *, kind: str) -> Context:
        """How an evaluation reads documents; `SpecError` where the model cannot read so far, or windows would not advance."""
        if window is not None and self.longest is not None and window > self.longest:
            raise SpecError(f"{kind}.window={window} is more than {self.name} can read: set it to {self.longest} or less")
        return parse(Context, {"window": self.window(window), "overlap": overlap}, source=kind)

    def tokens(self, texts: Texts) -> TokenStore:
        """The texts in the model's own tokens; `LimbeckError` where it has no embedding for one of them."""
        store = prepare_texts(texts, self.tokenizer, title="held-out", loss_on=self.loss_on)
        self._require_id(int(store.tokens.max()))
        return store

    def require_own_tokenizer(self) -> None:
        """`LimbeckError` where the tokenizer knows ordinary tokens that the model doesn't: then it is that of another model.

        Added tokens may lie beyond, as Gemma 3's for images do in the model that reads text alone.
        """
        backend = self.tokenizer.backend
        ordinary = (each for each in backend.get_vocab().values() if each not in backend.added_tokens_decoder)
        self._require_id(max(self.tokenizer.start_id, self.tokenizer.end_id, *ordinary))

    def _require_id(self, highest: int) -> None:
        if highest >= self.reader.vocab_size:
            raise LimbeckError(
                f"the tokenizer in {self.tokenizer.folder} does not fit {self.name}: it gives ids up to {highest}, and the "
                f"model knows {self.reader.vocab_size}: save the tokenizer that it was trained with beside it"
            )

    @property
    def described(self) -> dict[str, Any]:
        """The model and what it is held against. Files of texts go by their names (their contents: `evals/dependence.py`)."""
        known = self.reader.weights != "unknown"
        return {
            "weights": self.reader.weights if known else self.name,
            "dtype": str(self.reader.dtype).removeprefix("torch."),
            "tokenizer": self.tokenizer.fingerprint,
            "heldout": self.heldout.model_dump(mode="json") if self.heldout is not None else None,
            "teacher": self.teacher.model_dump(mode="json") if self.teacher is not None else None,
            "sequence_length": self.sequence_length,
        }

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
    loss_on: tuple[str, ...] | None = None,
    chat_template: str | None = None,
) -> EvalModel:
    """Load a model and its tokenizer from a folder or by its hub id; `chat_template` as in a recipe's data."""
    tokenizer = with_chat_template(load_tokenizer(folder), chat_template)
    where = pick_device(device)
    reader = load_teacher(HuggingFaceTeacher(model=folder, dtype=dtype, context=Context(window=1, overlap=0)), device=where)
    return EvalModel(name, reader, tokenizer, heldout, teacher, sequence_length, loss_on)
