"""`limbeck show TOKENIZER --beside OTHER`: how two tokenizers read the same texts, and what follows from it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli.eval_target import model_of
from limbeck.cli.output import emit
from limbeck.cli.output import table as aligned
from limbeck.progress import progress
from limbeck.spec.data import FileTexts
from limbeck.spec.pretrained_student import HuggingFaceStudent

if TYPE_CHECKING:  # numpy and transformers are imported when a pair is shown, not when the command line starts
    from limbeck.data.pair_statistics import DomainStatistics, PairStatistics
    from limbeck.data.tokenizers import Tokenizer

YOURS = "yours"
"""The domain of the texts that are named."""


def show_pair(student: str, teacher: str, *, texts: list[str] | None, as_json: bool) -> None:
    """Statistics of a pair of tokenizers, by domain; the user's own `texts` are one more."""
    from limbeck.data.pair_statistics import pair_statistics, sample_texts
    from limbeck.data.texts import read_documents

    domains = sample_texts()
    own, other = _tokenizer(student), _tokenizer(teacher)
    if texts:
        domains[YOURS] = [found.text for found in read_documents(FileTexts(paths=tuple(texts)))]
    with progress("aligning two tokenizers", total=1) as advance:
        found = pair_statistics(domains, student=own, teacher=other)
        advance(1)
    emit(
        {"student": student, "teacher": teacher, **asdict(found), "verdict": found.verdict},
        as_json=as_json,
        lines=pair_lines(found, student=Path(student).name, teacher=Path(teacher).name),
    )


def pair_lines(found: "PairStatistics", *, student: str, teacher: str) -> list[str]:
    """For people. The first tokenizer is read as the student's, the second as its teacher's."""
    vocabulary = (
        f"vocabulary: {found.student_tokens:,} tokens of {student}, {found.teacher_tokens:,} of {teacher}; "
        f"{found.equal_tokens:,} equal ({found.overlap:.1%} of the smaller)"
    )
    digits = (
        f"digits: {student} {found.student_digits.manner}; {teacher} {found.teacher_digits.manner}; "
        f"{found.numerals_alike:.0%} of numerals split alike"
    )
    special = "; ".join(f"{role}: {own} is {other}" for role, own, other in found.roles)
    header = ["domain", "bytes", f"bytes/token: {student}", teacher, "chunks", "1:1", "bytes in 1:1", "numerals alike"]
    rows = [_row(name, domain) for name, domain in found.domains.items()]
    shapes = [f"{name}: {_shapes(domain)}" for name, domain in found.domains.items()]
    lost = [
        f"{domain.lost} of {domain.lost + domain.documents} documents ({name}) are changed by one of the two: no chunks"
        for name, domain in found.domains.items()
        if domain.lost
    ]
    shown = aligned(header, rows)
    return [
        vocabulary,
        digits,
        f"special tokens: {special}",
        "",
        *shown,
        "",
        "tokens of a chunk:",
        *shapes,
        *lost,
        "",
        found.verdict,
    ]


def _row(name: str, of: "DomainStatistics") -> list[str]:
    return [
        name,
        f"{of.bytes:,}",
        f"{of.bytes / max(of.student_tokens, 1):.2f}",
        f"{of.bytes / max(of.teacher_tokens, 1):.2f}",
        f"{of.chunks:,}",
        f"{of.one_to_one:.1%}",
        f"{of.one_to_one_bytes:.1%}",
        "none" if of.numerals_alike is None else f"{of.numerals_alike:.0%} of {of.numerals}",
    ]


def _shapes(of: "DomainStatistics") -> str:
    return ", ".join(f"{own}:{other} {share:.1%}" for own, other, share in of.shapes)


def _tokenizer(name: str) -> "Tokenizer":
    from limbeck.data.tokenizers import load_tokenizer
    from limbeck.students.pretrained import source_of

    source = source_of(HuggingFaceStudent(model=model_of(name)))
    return load_tokenizer(source.model, **source.arguments)
