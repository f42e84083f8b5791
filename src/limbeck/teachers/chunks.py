"""From a teacher's logits over its own tokens to rows of chunks at a student's positions.

The teacher reads a document in its own tokens, through windows of them. Of every position the log-prob of the token that
follows and the mass of next tokens that begin anew (white space, or the end) are kept, two numbers; of the positions that
`signal.distribution` speaks of, the most probable ids. A few hundred rows of logits are held at a time: a chunk whose mean of
log-probs is wanted and that goes on in the next rows leaves one row of sums.

Legend: N teacher's positions of a document (one fewer than its tokens), R rows of a block of them, C chunks, V the teacher's
vocabulary, W places that have ids, K ids, T positions of a piece.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.data.alignment import Alignment
from limbeck.data.first_bytes import NONE, OUTCOMES, begins_anew, first_bytes
from limbeck.data.packing import Piece
from limbeck.data.token_bytes import TokenBytes
from limbeck.signals.panel import Panel, panels
from limbeck.signals.select import require_finite, select
from limbeck.signals.types import ChunkRows, TopKRows
from limbeck.spec.signal import ChunksSignal, TopKSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.score import Reader, passages, score_logits

_ROWS_AT_ONCE = 64
"""Of log-probs over the whole vocabulary."""


@dataclass(frozen=True)
class ChunkText:
    """A document in the teacher's tokens, and its chunks."""

    id: str
    tokens: np.ndarray
    chunks: Alignment

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.tokens) - 1


class Vocabulary:
    """What the teacher's ids begin with, on its device; of ids beyond the tokenizer's nothing is known."""

    def __init__(self, tokens: TokenBytes, *, vocab_size: int, device: torch.device) -> None:
        beyond = vocab_size - len(tokens.content)
        anew_V = np.pad(begins_anew(tokens), (0, max(beyond, 0)))[:vocab_size]
        first_V = np.pad(first_bytes(tokens), (0, max(beyond, 0)), constant_values=NONE)[:vocab_size]
        self.anew_V = torch.from_numpy(anew_V).to(device, torch.float32)
        self.first_V = torch.from_numpy(first_V).to(device)


class ChunkReading:
    """What has to be read for the rows of some pieces, and what was. `pieces` name documents by their place in `texts`."""

    def __init__(
        self, texts: Sequence[ChunkText], pieces: Sequence[Piece], *, signals: Sequence[ChunksSignal], context: Context
    ) -> None:
        self._pieces, self._signals = pieces, signals
        self._spans = [_chunks_within(texts[piece.document].chunks, piece) for piece in pieces]
        self._read = [_Document(text, signals) for text in texts]
        for piece, span in zip(pieces, self._spans, strict=True):
            self._read[piece.document].want(piece, span)
        for document in self._read:
            document.prepare()
        every = passages([len(text.tokens) for text in texts], context=context)
        self.work = [each for each in every if self._read[each.document].wants(each.window.first, each.window.stop)]
        """The windows that hold something that is wanted."""

    @torch.no_grad()
    def read(
        self, teacher: Reader, vocabulary: Vocabulary, *, advance: Callable[[float], None] = lambda rows: None
    ) -> list[tuple[ChunkRows, ...]]:
        """The rows of each piece for each signal, on the CPU. `advance` is told of the teacher's rows.

        Raises `TeacherError` where logits are not a distribution, `SpecError` where a signal asks for more ids than there are.
        """
        tokens = [document.text.tokens for document in self._read]
        for passage, first, logits_RV in score_logits(teacher, tokens, self.work) if self.work else ():
            self._read[passage.document].take(first, logits_RV, vocabulary)
            advance(len(logits_RV))
        spans = zip(self._pieces, self._spans, strict=True)
        return [
            tuple(self._read[piece.document].rows(piece, span, number) for number in range(len(self._signals)))
            for piece, span in spans
        ]


def _chunks_within(chunks: Alignment, piece: Piece) -> slice:
    """The chunks of a document all of whose tokens follow positions of a piece."""
    first = int(np.searchsorted(chunks.student_starts_C, piece.start + 1, side="left"))
    return slice(first, max(first, int(np.searchsorted(chunks.student_ends_C, piece.stop + 1, side="right"))))


class _Heads:
    """The ids of some places: a teacher's positions, or chunks. Filled as they are read."""

    def __init__(self, wanted: np.ndarray, *, k: int) -> None:
        self._slot = np.where(wanted, wanted.cumsum() - 1, -1)
        number = int(wanted.sum())
        self._ids_WK = torch.zeros(number, k, dtype=torch.int64)
        self._log_probs_WK = torch.full((number, k), -torch.inf)
        self._tail_W = torch.zeros(number)

    def of(self, first: int, stop: int) -> np.ndarray:
        """Those of places [first, stop) that are wanted, counted from `first`."""
        return np.flatnonzero(self._slot[first:stop] >= 0)

    def put(self, places: np.ndarray, rows: TopKRows) -> None:
        slots = torch.from_numpy(self._slot[places])
        width = rows.ids_TK.shape[1]
        self._ids_WK[slots, :width], self._log_probs_WK[slots, :width] = rows.ids_TK, rows.log_probs_TK
        self._tail_W[slots] = rows.tail_T

    def at(self, places: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        slots = torch.from_numpy(self._slot[places])
        return self._ids_WK[slots], self._log_probs_WK[slots], self._tail_W[slots]


class _Document:
    """One document: what is wanted of it, and what was read."""

    def __init__(self, text: ChunkText, signals: Sequence[ChunksSignal]) -> None:
        self.text, self.signals = text, signals
        self._wanted_N = np.zeros(text.num_rows, dtype=bool)
        self._wanted_C = np.zeros(len(text.chunks), dtype=bool)
        self._indexed_N = np.zeros(text.num_rows, dtype=bool)
        # One place more than positions: after the end nothing follows, which is certain.
        self._label_N = np.zeros(text.num_rows + 1)
        self._boundary_N = np.zeros(text.num_rows + 1)
        self._open: dict[tuple[int, int], tuple[Tensor, int]] = {}

    def want(self, piece: Piece, span: slice) -> None:
        """Mark what the rows of a piece are made of."""
        chunks = self.text.chunks
        self._wanted_C[span] = True
        for start, end in zip(chunks.teacher_starts_C[span][:1], chunks.teacher_ends_C[span][-1:], strict=True):
            self._wanted_N[start - 1 : end] = True
        if len(chunks) and any(signal.distribution == "index" for signal in self.signals):
            self._indexed_N[piece.start : piece.stop] = True

    def prepare(self) -> None:
        """Make room, once all is marked."""
        chunks = self.text.chunks
        self._chunk_N = np.full(self.text.num_rows, -1)
        lengths_C = np.where(self._wanted_C, chunks.teacher_ends_C - chunks.teacher_starts_C, 0)
        self._chunk_N[_ranges(chunks.teacher_starts_C - 1, lengths_C)] = np.repeat(np.arange(len(chunks)), lengths_C)
        self._heads = [_Heads(self._places(signal), k=_width(signal)) for signal in self.signals]

    def _places(self, signal: ChunksSignal) -> np.ndarray:
        """bool: where the signal wants ids."""
        chunks, wanted = self.text.chunks, np.zeros(self.text.num_rows, dtype=bool)
        match signal.distribution:
            case "none":
                return wanted
            case "last":
                wanted[chunks.teacher_ends_C[self._wanted_C] - 2] = True
            case "bytes":
                wanted[chunks.teacher_starts_C[self._wanted_C] - 1] = True
            case "index":
                return self._indexed_N
            case "mean":
                return self._wanted_C
        return wanted

    def wants(self, first: int, stop: int) -> bool:
        """Whether any of the teacher's positions [first, stop) is needed."""
        return bool(self._wanted_N[first:stop].any() or self._indexed_N[first:stop].any())

    def take(self, first: int, logits_RV: Tensor, vocabulary: Vocabulary) -> None:
        """Keep what is wanted of the rows from position `first` on."""
        stop = first + len(logits_RV)
        following_R1 = torch.from_numpy(self.text.tokens[first + 1 : stop + 1].astype(np.int64)).to(logits_RV.device)[:, None]
        labels, boundaries, bytes_, greatest = [], [], [], []
        for rows, panel in panels(logits_RV):
            softmax = panel.softmax(1.0)
            greatest.append(panel.max_T)
            labels.append(panel.shifted(following_R1[rows])[:, 0].double() - softmax.log_sum_T)
            boundaries.append((_weights(panel, logits_RV.shape[1]) @ vocabulary.anew_V).double() / softmax.total_T)
            if any(signal.distribution == "bytes" for signal in self.signals):
                bytes_.append(_byte_masses(panel, vocabulary.first_V))
        require_finite(torch.cat(greatest), document_id=self.text.id, positions_T=torch.arange(first, stop))
        self._label_N[first:stop] = torch.cat(labels).cpu().numpy()
        self._boundary_N[first:stop] = torch.cat(boundaries).log().cpu().numpy()
        for number, (signal, heads) in enumerate(zip(self.signals, self._heads, strict=True)):
            if signal.distribution == "mean":
                self._take_means(number, first, logits_RV)
                continue
            places = heads.of(first, stop)
            if signal.distribution == "bytes" and len(places):
                heads.put(first + places, _byte_rows(torch.cat(bytes_)[places], k=signal.k))
                continue
            for start in range(0, len(places), _ROWS_AT_ONCE):
                some = places[start : start + _ROWS_AT_ONCE]
                heads.put(first + some, self._most_probable(logits_RV[some], first + some, k=signal.k))

    def _take_means(self, number: int, first: int, logits_RV: Tensor) -> None:
        """Sums over the positions of each chunk; those that are complete become ids."""
        heads, k = self._heads[number], self.signals[number].k
        chunks = self.text.chunks
        for start in range(0, len(logits_RV), _ROWS_AT_ONCE):
            chunk_R = self._chunk_N[first + start : first + min(start + _ROWS_AT_ONCE, len(logits_RV))]
            here = np.flatnonzero(chunk_R >= 0)
            found, which, counts = np.unique(chunk_R[here], return_inverse=True, return_counts=True)
            if not len(found):
                continue
            log_probs_RV = logits_RV[start + here].float().log_softmax(-1)
            sums_CV = torch.zeros(len(found), log_probs_RV.shape[1], device=log_probs_RV.device)
            sums_CV.index_add_(0, torch.from_numpy(which).to(sums_CV.device), log_probs_RV)
            needed_C = chunks.teacher_ends_C[found] - chunks.teacher_starts_C[found]
            for place in np.flatnonzero(counts < needed_C).tolist():  # at most the first and the last
                before_V, seen = self._open.pop((number, int(found[place])), (torch.zeros_like(sums_CV[place]), 0))
                sums_CV[place] += before_V
                counts[place] += seen
                if counts[place] < needed_C[place]:
                    self._open[number, int(found[place])] = (sums_CV[place].clone(), int(counts[place]))
            whole = np.flatnonzero(counts == needed_C)
            if len(whole):
                means_CV = sums_CV[whole] / torch.from_numpy(counts[whole]).to(sums_CV.device)[:, None]
                heads.put(found[whole], self._most_probable(means_CV, chunks.teacher_starts_C[found[whole]] - 1, k=k))

    def _most_probable(self, logits_RV: Tensor, positions: np.ndarray, *, k: int) -> TopKRows:
        rows = select(logits_RV, TopKSignal(k=k), document_id=self.text.id, positions_T=torch.from_numpy(positions))
        assert isinstance(rows, TopKRows)
        return rows

    def rows(self, piece: Piece, span: slice, number: int) -> ChunkRows:
        """The rows of a piece for one of the signals."""
        chunks, length = self.text.chunks, piece.stop - piece.start
        starts_C, ends_C = chunks.teacher_starts_C[span], chunks.teacher_ends_C[span]
        at_C = torch.from_numpy(chunks.student_ends_C[span] - 2 - piece.start)

        def placed(values_C: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.zeros(length, dtype=dtype).index_copy_(0, at_C, torch.from_numpy(values_C).to(dtype))

        ids_TK, log_probs_TK, tail_T = self._ids(piece, span, at_C, number)
        return ChunkRows(
            placed(chunks.student_ends_C[span] - chunks.student_starts_C[span], torch.int64),
            placed(ends_C - starts_C, torch.int64),
            placed(_sums(self._label_N, starts_C - 1, ends_C - 1), torch.float32),
            placed(_sums(self._label_N, starts_C - 1, ends_C - 2), torch.float32),
            placed(self._boundary_N[ends_C - 1], torch.float32),
            ids_TK,
            log_probs_TK,
            tail_T,
        )

    def _ids(self, piece: Piece, span: slice, at_C: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        signal, heads, length = self.signals[number], self._heads[number], piece.stop - piece.start
        k = _width(signal)
        empty = (torch.zeros(length, k, dtype=torch.int64), torch.full((length, k), -torch.inf), torch.zeros(length))
        places = np.arange(0)
        match signal.distribution:
            case "none":
                return empty
            case "last":
                places = self.text.chunks.teacher_ends_C[span] - 2
            case "bytes":
                places = self.text.chunks.teacher_starts_C[span] - 1
            case "mean":
                places = np.arange(len(self.text.chunks))[span]
            case "index":
                places = piece.start + np.flatnonzero(self._indexed_N[piece.start : piece.stop])
                at_C = torch.from_numpy(places - piece.start)
        found = heads.at(places)
        return (
            empty[0].index_copy_(0, at_C, found[0]),
            empty[1].index_copy_(0, at_C, found[1]),
            empty[2].index_copy_(0, at_C, found[2]),
        )


def _width(signal: ChunksSignal) -> int:
    """K."""
    match signal.distribution:
        case "none":
            return 0
        case "bytes":
            return min(signal.k, OUTCOMES)
        case _:
            return signal.k


def _ranges(starts_C: np.ndarray, lengths_C: np.ndarray) -> np.ndarray:
    """start, start + 1, … of each, one after another."""
    within = np.arange(lengths_C.sum()) - np.repeat(lengths_C.cumsum() - lengths_C, lengths_C)
    return np.repeat(starts_C, lengths_C) + within


def _sums(values_N: np.ndarray, starts_C: np.ndarray, stops_C: np.ndarray) -> np.ndarray:
    """The sum of each [start, stop), which may be empty; -inf where a value is."""
    lengths_C = stops_C - starts_C
    sums_C = np.zeros(len(starts_C))
    filled = np.flatnonzero(lengths_C > 0)
    if len(filled):
        lengths = lengths_C[filled]
        sums_C[filled] = np.add.reduceat(values_N[_ranges(starts_C[filled], lengths)], lengths.cumsum() - lengths)
    return sums_C


def _weights(panel: Panel, vocab_size: int) -> Tensor:
    return panel.softmax(1.0).weights_TBW.flatten(1)[:, :vocab_size]


def _byte_masses(panel: Panel, first_V: Tensor) -> Tensor:
    """The probability of each first byte, of the end, and of tokens without text; float64 [T, 258]."""
    weights_TV = _weights(panel, len(first_V))
    masses_T = torch.zeros(len(weights_TV), NONE + 1, dtype=torch.float64, device=weights_TV.device)
    masses_T.scatter_add_(1, first_V.expand(len(weights_TV), -1), weights_TV.double())
    return masses_T / masses_T.sum(-1, keepdim=True)


def _byte_rows(masses_TO: Tensor, *, k: int) -> TopKRows:
    """The k most probable of the bytes and the end; tokens without text are in the tail."""
    probs_TK, ids_TK = masses_TO[:, :OUTCOMES].topk(min(k, OUTCOMES))
    tail_T = masses_TO.scatter(1, ids_TK, 0.0).sum(-1)
    log_probs_TK = probs_TK.log().float()
    ids_TK = ids_TK.masked_fill(log_probs_TK == -torch.inf, 0)
    nothing_T = torch.zeros_like(tail_T)
    return TopKRows(ids_TK.cpu(), log_probs_TK.cpu(), tail_T.float().cpu(), nothing_T.float().cpu())
