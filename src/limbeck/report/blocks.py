"""What a report is made of, before it becomes HTML or Markdown: headings, sentences, tables, figures, samples.

Every text in a block is plain: the writers escape it, once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more; `soft` for notes."""

    text: str
    soft: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer in words, in a frame whose colour is the outcome."""

    outcome: str
    headline: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Bullets:
    """Sentences as a list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Headers, rows of as many cells, by row number a mark ('control', 'muted'), and which columns hold words, not numbers.

    `records` are the same numbers unrounded, a mapping a row, for files that programs read; without them files hold the cells.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})
    marks: Mapping[int, str] = field(default_factory=dict)
    name: str = "table"
    """Of its files, without suffix."""
    title: str = ""
    records: tuple[Mapping[str, Scalar], ...] = ()
    style: str = "numbers"
    """'numbers', or 'facts' for a column of labels and one of words."""
    shown: Literal["open", "folded", "file"] = "open"
    """On the page, on it under its title as a summary, or in a file alone."""


@dataclass(frozen=True)
class Drawn:
    """A figure: its file name without suffix, what it shows in a sentence, and its bytes."""

    name: str
    caption: str
    png: bytes
    svg: bytes
    wide: bool = False
    """Across the page, not beside another."""


@dataclass(frozen=True)
class Source:
    """Text as it is in a file, folded away under a summary unless it is `open`."""

    summary: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt; characters [start, stop) of the completion repeat."""

    title: str
    prompt: str
    completion: str
    loop: tuple[int, int] | None
    note: str = ""


Block = Heading | Paragraph | Answer | Bullets | Table | Drawn | Source | Sample
Blocks = Sequence[Block]
