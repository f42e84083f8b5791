"""How two tokenizers read the same texts: what share of the chunks is one token on both sides, how digits are grouped, and what
follows for distilling across them.

Statistics are kept by domain: prose and mathematics written for this purpose, code from Python's standard library, and a user's
own texts. Numerals decide which objective is safe: where two tokenizers split them at different places, the numerals of several
digits have no equal token, and a term that compares equal tokens pushes them down through the softmax (X-Token, arXiv
2605.21699: GSM8K 2.6 with GOLD, 15.5 with projected KL).
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import numpy as np

from limbeck.data.alignment import Alignment, align
from limbeck.data.counterpart import Counterpart
from limbeck.data.token_bytes import TokenBytes, token_bytes
from limbeck.data.tokenizers import Tokenizer
from limbeck.data.vocabulary_pair import equal_tokens, roles
from limbeck.errors import DataError

ALIKE = 0.95
"""The share of numerals split at the same places from which two tokenizers are said to agree on digits."""
SHAPES = 8
"""Of the chunks' shapes, the most frequent ones that are kept."""
_DIGITS = re.compile(rb"[0-9]{2,}")


@dataclass(frozen=True)
class DomainStatistics:
    """Of the texts of one domain. Special tokens are not counted."""

    documents: int
    lost: int
    """Documents that one of the two changes, which are not counted below."""
    bytes: int
    student_tokens: int
    teacher_tokens: int
    chunks: int
    one_to_one: float
    """The share of the chunks that is one token on both sides."""
    one_to_one_bytes: float
    """The share of the bytes in those."""
    shapes: tuple[tuple[int, int, float], ...]
    """(student's tokens, teacher's tokens, share of the chunks), the most frequent first."""
    numerals: int
    """Runs of two digits or more."""
    numerals_alike: float | None
    """The share of them that both split at the same places; None where there are none."""


@dataclass(frozen=True)
class Digits:
    """How one tokenizer groups the digits of a numeral, found on numerals of one to nine digits within a sentence."""

    longest: int
    """Digits in its longest group."""
    manner: str
    """`one by one`, `groups of up to 3, from the left` (or right), or `groups of up to 3, as learnt`."""


@dataclass(frozen=True)
class PairStatistics:
    """Two tokenizers, the student's and the teacher's, beside each other."""

    same: bool
    """Both give every text the same ids."""
    student_tokens: int
    """Ids that stand for bytes."""
    teacher_tokens: int
    equal_tokens: int
    """Those of equal bytes."""
    overlap: float
    """Over the smaller of the two vocabularies."""
    student_digits: Digits
    teacher_digits: Digits
    numerals_alike: float
    """The share of numerals of two to nine digits that both split at the same places."""
    roles: tuple[tuple[str, str, str], ...]
    """(role, the student's special token, the teacher's)."""
    domains: Mapping[str, DomainStatistics]

    @property
    def verdict(self) -> str:
        """Which objective the pair calls for."""
        if self.same:
            return "one tokenizer: compare the distributions themselves (forward_kl), nothing here is needed"
        if self.numerals_alike >= ALIKE:
            return "they split numerals alike: gold compares equal tokens safely; alm, which needs none, is the safest"
        return (
            f"they split {1 - self.numerals_alike:.0%} of the numerals differently: projected_kl rather than gold, which would "
            "push down numerals that have no equal token; alm, which needs none, is the safest"
        )


def pair_statistics(
    texts: Mapping[str, Iterable[str]] | None = None, *, student: Tokenizer, teacher: Tokenizer
) -> PairStatistics:
    """The statistics of a pair on texts by domain, by default on those of `sample_texts`.

    `DataError` where one of the tokenizers has no byte-exact form.
    """
    of_student, of_teacher = token_bytes(student), token_bytes(teacher)
    domains = sample_texts() if texts is None else texts
    equal_S = equal_tokens(of_student, of_teacher)
    equal = int(np.count_nonzero((equal_S >= 0) & ~of_student.special_V))
    sizes = [int(np.count_nonzero(of.lengths_V)) for of in (of_student, of_teacher)]
    return PairStatistics(
        same=student.fingerprint == teacher.fingerprint,
        student_tokens=sizes[0],
        teacher_tokens=sizes[1],
        equal_tokens=equal,
        overlap=equal / min(sizes),
        student_digits=digits_of(student),
        teacher_digits=digits_of(teacher),
        numerals_alike=_numerals_alike(student, teacher),
        roles=_roles(of_student, of_teacher),
        domains={name: text_statistics(of_domain, student=student, teacher=teacher) for name, of_domain in domains.items()},
    )


def sample_texts() -> dict[str, list[str]]:
    """Prose, code and mathematics, the same for every pair (code changes with the version of Python)."""
    import inspect
    import json.decoder
    import textwrap

    folder = resources.files("limbeck.data") / "samples"
    prose, numbers = ((folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("prose", "numbers"))
    return {"prose": [prose], "code": [inspect.getsource(textwrap), inspect.getsource(json.decoder)], "numbers": [numbers]}


def text_statistics(texts: Iterable[str], *, student: Tokenizer, teacher: Tokenizer) -> DomainStatistics:
    """The statistics of some texts."""
    total = _Counts(token_bytes(student), token_bytes(teacher))
    for text in texts:
        (own,), (other,) = student.encode([text]), teacher.encode([text])
        try:
            total.add(own, other, align(own, other, student=total.student, teacher=total.teacher))
        except DataError:
            total.lost += 1
    return total.statistics()


def counterpart_statistics(found: Counterpart) -> DomainStatistics:
    """The statistics of a token store and its counterpart. Of chats, their bodies."""
    total = _Counts(found.student, found.teacher)
    for index in range(len(found.tokens)):
        if found.lost_N[index]:
            total.lost += 1
        else:
            total.add(found.own.document(index), found.tokens.document(index), found.alignment(index))
    return total.statistics()


class _Counts:
    """What is summed over documents."""

    def __init__(self, student: TokenBytes, teacher: TokenBytes) -> None:
        self.student, self.teacher = student, teacher
        self.documents = self.lost = self.bytes = self.student_tokens = self.teacher_tokens = 0
        self.bytes_one_to_one = self.numerals = self.alike = 0
        self.shapes: Counter[tuple[int, int]] = Counter()

    def add(self, own: np.ndarray, other: np.ndarray, alignment: Alignment) -> None:
        """One document."""
        self.documents += 1
        of_text = ~self.student.special_V[own[alignment.student_starts_C]]
        own_C = (alignment.student_ends_C - alignment.student_starts_C)[of_text]
        other_C = (alignment.teacher_ends_C - alignment.teacher_starts_C)[of_text]
        ends = np.concatenate([[0], self.student.spelled_lengths_V[own].cumsum()])
        bytes_C = (ends[alignment.student_ends_C] - ends[alignment.student_starts_C])[of_text]
        self.shapes.update(zip(own_C.tolist(), other_C.tolist(), strict=True))
        self.bytes += int(bytes_C.sum())
        self.bytes_one_to_one += int(bytes_C[(own_C == 1) & (other_C == 1)].sum())
        self.student_tokens += int(own_C.sum())
        self.teacher_tokens += int(other_C.sum())
        self._add_numerals(own[1:-1], other[1:-1])

    def _add_numerals(self, own: np.ndarray, other: np.ndarray) -> None:
        text = self.student.text_bytes(own.tolist())
        if self.teacher.text_bytes(other.tolist()) != text:
            return  # a chat, of which each has a template of its own
        of_both = _bounds(own, self.student), _bounds(other, self.teacher)
        for numeral in _DIGITS.finditer(text):
            places = set(range(numeral.start(), numeral.end() + 1))
            self.numerals += 1
            self.alike += of_both[0] & places == of_both[1] & places

    def statistics(self) -> DomainStatistics:
        """The shares."""
        chunks = self.shapes.total()
        return DomainStatistics(
            documents=self.documents,
            lost=self.lost,
            bytes=self.bytes,
            student_tokens=self.student_tokens,
            teacher_tokens=self.teacher_tokens,
            chunks=chunks,
            one_to_one=self.shapes[1, 1] / max(chunks, 1),
            one_to_one_bytes=self.bytes_one_to_one / max(self.bytes, 1),
            shapes=tuple((*shape, count / chunks) for shape, count in self.shapes.most_common(SHAPES)),
            numerals=self.numerals,
            numerals_alike=self.alike / self.numerals if self.numerals else None,
        )


def _bounds(tokens: np.ndarray, of: TokenBytes) -> set[int]:
    return {0, *of.spelled_lengths_V[tokens].cumsum().tolist()}


def digits_of(tokenizer: Tokenizer) -> Digits:
    """How a tokenizer groups digits."""
    numerals = _numerals(first=1)
    groups = [_groups(inner, len(numeral)) for numeral, inner in zip(numerals, _splits(tokenizer, numerals), strict=True)]
    longest = max(max(sizes) for sizes in groups)
    if longest == 1:
        return Digits(1, "one by one")
    from_left = all(sizes == _regular(sum(sizes), longest) for sizes in groups)
    from_right = all(sizes == _regular(sum(sizes), longest)[::-1] for sizes in groups)
    manner = "from the left" if from_left else "from the right" if from_right else "as learnt"
    return Digits(longest, f"groups of up to {longest}, {manner}")


def _numerals_alike(student: Tokenizer, teacher: Tokenizer) -> float:
    numerals = _numerals(first=2)
    return float(
        np.mean([own == other for own, other in zip(_splits(student, numerals), _splits(teacher, numerals), strict=True)])
    )


def _numerals(*, first: int) -> list[str]:
    """Twenty of each number of digits from `first` to nine, always the same."""
    draw = random.Random(0)
    return [str(draw.randrange(10 ** (size - 1), 10**size)) for size in range(first, 10) for _ in range(20)]


def _splits(tokenizer: Tokenizer, numerals: Sequence[str]) -> list[frozenset[int]]:
    """The places within each numeral (1: after its first digit) where a token ends, in the middle of a sentence."""
    of, before = token_bytes(tokenizer), "There are "
    found = []
    for numeral, tokens in zip(
        numerals, tokenizer.encode([f"{before}{numeral} of them." for numeral in numerals]), strict=True
    ):
        places = {bound - len(before) for bound in _bounds(tokens[1:-1], of)}
        found.append(frozenset(place for place in places if 0 < place < len(numeral)))
    return found


def _groups(inner: Iterable[int], digits: int) -> list[int]:
    return [last - first for first, last in pairwise([0, *sorted(inner), digits])]


def _regular(digits: int, group: int) -> list[int]:
    return [group] * (digits // group) + [digits % group] * (digits % group > 0)


def _roles(student: TokenBytes, teacher: TokenBytes) -> tuple[tuple[str, str, str], ...]:
    names = ("end", "end of turn", "start") if len(roles(student, teacher)) == 3 else ("end", "start")
    return tuple(
        (name, student.spelled[own].decode(), teacher.spelled[other].decode())
        for name, (own, other) in zip(names, roles(student, teacher), strict=True)
    )
