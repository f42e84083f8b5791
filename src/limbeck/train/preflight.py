"""What is checked on the first real sequence before a run trains: that ids fit, that rows speak of the tokens they are read
for, that the loss depends on them, and that every term pulls on the logits.

These are mistakes that raise no error and only cost quality: rows off by one, a teacher that is loaded and never read, a term
without a gradient. Every process checks its own first sequence; nothing is changed and no random number drawn.

Gradients are taken with respect to logits: the objective is asked for its loss where the "hidden states" are the unit matrix
and the "head" holds a student's logits as columns, so the head's gradient is that of the logits.

Shapes: T positions of the sequence that hold something, N of them at which gradients are taken, V vocabulary.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.compute import autocast
from limbeck.data.counterpart import Counterpart
from limbeck.data.loader import Batch
from limbeck.data.packing import Piece
from limbeck.data.store_rows import StoreRows
from limbeck.errors import LimbeckError
from limbeck.objectives.across_prepared import Across
from limbeck.objectives.objective import objective_loss
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.signals.rows import mass_on, rows_at, to_device
from limbeck.signals.types import ChunkRows, DenseRows, SignalRows, SparseRows, sparse_target
from limbeck.spec.objective import CrossEntropy, HiddenStates, Objective, needs_teacher, terms
from limbeck.train.setup import Setup
from limbeck.train.sharding import head_gathered

TokenRows = SparseRows | DenseRows
POSITIONS = 128
"""At which gradients are taken: N."""
MOST_WITHOUT_CHUNKS = 64
"""Sequences that are looked through for a chunk."""
_CERTAIN = 5.0
"""Standard errors that a difference must exceed to be one."""
_MOST_OF_UNIFORM = 3.0
"""A student whose cross-entropy is more than this many times that of the uniform distribution is not one to start from."""


class PreflightError(LimbeckError):
    """The first batch shows that the run would not learn what its recipe says."""


@dataclass(frozen=True)
class Preflight:
    """What the first batch showed. Means are over positions."""

    ce_nats: float
    """Of the student before its first step; ln V is that of the uniform distribution."""
    gradients: dict[str, float]
    """By term, with its weight at the start: the norm of a position's gradient at its logits. Of `ce`, at most 1.42."""
    mass_on_text: float | None
    """What the teacher's rows give the text's own tokens; None without a teacher."""
    mass_on_text_of_store: float | None
    """The same over all of the store."""
    padding_share: float
    """Of all positions of the run, those that hold nothing (`packing: whole`)."""
    documents_left_out: int
    """Longer than a sequence (`packing: whole`)."""
    seconds: float

    def line(self) -> str:
        """For people."""
        pulls = ", ".join(f"{name} {size:.3g}" for name, size in self.gradients.items())
        teacher = "" if self.mass_on_text is None else f"; the teacher gives the text's tokens {self.mass_on_text:.2f}"
        whole = "" if self.mass_on_text_of_store is None else f" (all of the store: {self.mass_on_text_of_store:.2f})"
        empty = f"; {self.padding_share:.1%} of positions are padding" if self.padding_share else ""
        return f"cross-entropy {self.ce_nats:.2f} nats; gradient at the logits: {pulls or 'none'}{teacher}{whole}{empty}"


def preflight(setup: Setup) -> Preflight:
    """Check the first sequence of this process; `PreflightError` says what is wrong with it."""
    started = time.perf_counter()
    loader, device = setup.loader, setup.device
    batch = loader.batch([_first_sequence(setup)])
    vocab_size = setup.recipe.student.vocab_size
    assert vocab_size is not None
    key = setup.recipe.student.vocab_size_key
    _check_tokens(batch, vocab_size=vocab_size, key=key)
    held_T = _held(batch).to(device)
    rows = None if batch.rows is None else rows_at(to_device(batch.rows, device), held_T)
    targets_T = batch.targets_BT.flatten().to(device)[held_T]
    mass, mass_of_store = None, None
    if isinstance(rows, ChunkRows):
        _check_chunks(rows)
    elif rows is not None:
        _check_row_ids(rows, vocab_size=vocab_size, key=key)
        mass_of_store = loader.source.signals.mass_on_text if isinstance(loader.source, StoreRows) else None
        mass = _check_alignment(rows, targets_T, mass_of_store=mass_of_store)
    at_N = _places(len(targets_T), rows).to(device)
    logits_NV = _logits(setup, batch, held_T[at_N])
    ce = _check_loss_scale(logits_NV, targets_T[at_N])
    gradients = _check_terms(setup, logits_NV, targets_T[at_N], rows=None if rows is None else rows_at(rows, at_N))
    return Preflight(
        ce_nats=ce,
        gradients=gradients,
        mass_on_text=mass,
        mass_on_text_of_store=mass_of_store,
        padding_share=loader.stream.padding_share,
        documents_left_out=loader.stream.left_out,
        seconds=time.perf_counter() - started,
    )


def _first_sequence(setup: Setup) -> Sequence[Piece]:
    """This process's first; where chunks are compared, the first with one, since documents may be lost to one tokenizer."""
    loader, across = setup.loader, setup.texts.across
    if across is None:
        return loader.stream.sequence(loader.rank)
    ours = range(loader.rank, loader.rank + MOST_WITHOUT_CHUNKS * loader.world_size, loader.world_size)
    for sequence in map(loader.stream.sequence, ours):
        if any(_has_a_chunk(across.counterpart, piece) for piece in sequence):
            return sequence
    raise PreflightError(
        f"no chunk lies within any of the first {MOST_WITHOUT_CHUNKS} sequences: student and teacher have hardly a boundary in "
        "common there (`limbeck show STUDENT --beside TEACHER` tells); raise data.sequence_length, or take texts of which both "
        "tokenizers have some"
    )


def _has_a_chunk(documents: Counterpart, piece: Piece) -> bool:
    """Whether a chunk's first and last tokens are targets of one piece: token t + 1 is the target of position t."""
    chunks = documents.alignment(piece.document)
    return bool(((chunks.student_starts_C > piece.start) & (chunks.student_ends_C - 1 <= piece.stop)).any())


def _check_tokens(batch: Batch, *, vocab_size: int, key: str) -> None:
    """The student's ids are in its vocabulary, and its targets are the tokens that follow."""
    largest = max(int(batch.tokens_BT.max()), int(batch.targets_BT.max()))
    if largest >= vocab_size or min(int(batch.tokens_BT.min()), int(batch.targets_BT.min())) < 0:
        raise PreflightError(
            f"the texts hold token {largest}, but {key} is {vocab_size}: use the tokenizer that the student is for"
        )
    follows_BT = batch.tokens_BT[:, 1:] == batch.targets_BT[:, :-1]
    if not bool((follows_BT | _starts_a_piece(batch)[:, 1:]).all()):
        raise PreflightError(
            "targets are not the tokens that follow: the token store is damaged; delete it, and it is made again"
        )


def _starts_a_piece(batch: Batch) -> Tensor:
    """True where another piece of text begins than that of the position before, or there is none."""
    starts_BT = torch.ones_like(batch.tokens_BT, dtype=torch.bool)
    held_T, at = _held(batch), 0
    starts_BT.view(-1)[held_T] = False
    for piece in batch.pieces:
        starts_BT.view(-1)[held_T[at]] = True
        at += piece.stop - piece.start
    return starts_BT


def _held(batch: Batch) -> Tensor:
    """The positions, of all of a batch, that hold something."""
    if not batch.padding or batch.segments_BT is None:
        return torch.arange(batch.tokens_BT.numel())
    return (batch.segments_BT.flatten() >= 0).nonzero().squeeze(1)


def _places(length: int, rows: SignalRows | None) -> Tensor:
    """N of so many positions: as far apart as they can be, but from the first chunk on where chunks have to stay together."""
    if not isinstance(rows, ChunkRows):
        return torch.linspace(0, length - 1, min(POSITIONS, length)).long()
    ends = int(rows.tokens_T.nonzero()[0])
    begins = ends + 1 - int(rows.tokens_T[ends])
    return torch.arange(begins, min(begins + POSITIONS, length))


def _check_chunks(rows: ChunkRows) -> None:
    if not bool(rows.tokens_T.any()):
        raise PreflightError(
            "the teacher's rows hold no chunk where student and teacher have some: they are of another alignment; write the "
            "store again"
        )


def _check_row_ids(rows: TokenRows, *, vocab_size: int, key: str) -> None:
    if isinstance(rows, DenseRows):
        if len(rows.head_VE) != vocab_size:
            raise PreflightError(
                f"the teacher has {len(rows.head_VE)} logits and the student {vocab_size}: they share no vocabulary"
            )
        return
    ids_TK = sparse_target(rows).ids_TK
    if int(ids_TK.max()) >= vocab_size or int(ids_TK.min()) < 0:
        raise PreflightError(
            f"the teacher's rows name token {int(ids_TK.max())}, but {key} is {vocab_size}: they are of another "
            "tokenizer; write the store with this one"
        )


def _check_alignment(rows: TokenRows, targets_T: Tensor, *, mass_of_store: float | None) -> float:
    """The mean mass that rows give to the next token, which must not be less than they give to its neighbours."""
    mass_T = mass_on(rows, targets_T).double()
    mean = float(mass_T.mean())
    for shift, where in ((1, "before"), (-1, "after")):
        beside_T = mass_on(rows, targets_T.roll(shift)).double()
        ahead_T = (beside_T - mass_T)[1:-1]
        if len(ahead_T) > 1 and float(ahead_T.mean()) > _CERTAIN * float(ahead_T.std()) / math.sqrt(len(ahead_T)):
            raise PreflightError(
                f"the teacher's rows fit the token one place {where} the one that they should predict (mass "
                f"{float(beside_T.mean()):.3f} against {mean:.3f}): they are out of step (write the store again), or the "
                "teacher repeats what it reads, as an untrained one does (name another)"
            )
    if mass_of_store is not None:
        # At most: the mass of a row is between 0 and 1.
        error = math.sqrt(mass_of_store * (1 - mass_of_store) / len(mass_T))
        if mean + _CERTAIN * error < mass_of_store / 2:
            raise PreflightError(
                f"the teacher's rows give the first batch's tokens {mean:.3f}, and {mass_of_store:.3f} over all of the store: "
                "they are not of these tokens; write the store again"
            )
    return mean


@torch.no_grad()
def _logits(setup: Setup, batch: Batch, at_N: Tensor) -> Tensor:
    """The student's, float32."""
    with head_gathered(setup.student), autocast(setup.dtype, setup.device):
        return setup.student.logits(setup.read(batch).hidden_BTD.flatten(0, 1)[at_N]).float()


def _check_loss_scale(logits_NV: Tensor, targets_N: Tensor) -> float:
    ce = float(torch.nn.functional.cross_entropy(logits_NV, targets_N))
    uniform = math.log(logits_NV.shape[1])
    if not ce <= _MOST_OF_UNIFORM * uniform:
        raise PreflightError(
            f"before its first step the student's cross-entropy is {ce:.3g} nats, where the uniform distribution has "
            f"{uniform:.3g}: its weights are damaged, or scaled wrongly"
        )
    return ce


def _check_terms(setup: Setup, logits_NV: Tensor, targets_N: Tensor, *, rows: SignalRows | None) -> dict[str, float]:
    """The size of every term's gradient; at least one of those that read a teacher must have another under other rows."""
    sizes: dict[str, float] = {}
    listens = []
    for place, weighted in enumerate(terms(setup.recipe.objective)):
        term = weighted.term
        if isinstance(term, HiddenStates):
            continue  # pulls on hidden states
        grad_NV = _gradient(term, logits_NV, targets_N, rows=rows, temperature=setup.temperature, across=setup.across)
        size = float(grad_NV.norm(dim=1).mean())
        if not math.isfinite(size):
            raise PreflightError(
                f"the gradient of objective {term.kind} is {size} on the first batch: check the teacher's rows (`limbeck cache "
                "verify`) and the term's settings"
            )
        name = term.kind if term.kind not in sizes else f"{term.kind}_{place + 1}"
        sizes[name] = size * weight_at(weighted.weight, Moment())
        if rows is not None and not isinstance(term, CrossEntropy):
            rolled, temperature = _rolled(rows), setup.temperature
            other_NV = _gradient(term, logits_NV, targets_N, rows=rolled, temperature=temperature, across=setup.across)
            listens.append(not torch.equal(grad_NV, other_NV))
    if rows is not None and listens and not any(listens) and not _all_alike(rows):
        raise PreflightError(
            "the objective's gradient stays the same whatever the teacher's rows say: the run would not learn from its teacher"
        )
    return sizes


def _gradient(
    objective: Objective,
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    rows: SignalRows | None,
    temperature: float,
    across: Across | None,
) -> Tensor:
    """Of the sum over positions, with respect to logits."""
    head_VN = logits_NV.T.contiguous().requires_grad_()
    output = objective_loss(
        objective,
        hidden_TD=torch.eye(len(logits_NV), device=logits_NV.device),
        head_VD=head_VN,
        targets_T=targets_N,
        rows=rows if needs_teacher(objective) else None,
        temperature=temperature,
        across=across,
        normaliser=1,
        sampled_log_probs_T=logits_NV.log_softmax(-1).gather(1, targets_N[:, None]).squeeze(1),  # as if it had drawn them
    )
    (grad_VN,) = torch.autograd.grad(output.loss, head_VN)
    return grad_VN.T


def _rolled(rows: SignalRows) -> SignalRows:
    """Every position with the row of another, or every chunk with what the teacher says of another."""
    if isinstance(rows, ChunkRows):
        ends_C = rows.tokens_T.nonzero().flatten()
        from_T = torch.arange(len(rows.tokens_T), device=ends_C.device)
        from_T[ends_C] = ends_C.roll(len(ends_C) // 2)
        return replace(rows_at(rows, from_T), tokens_T=rows.tokens_T)
    length = len(rows.hidden_TE) if isinstance(rows, DenseRows) else len(sparse_target(rows).ids_TK)
    return rows_at(rows, torch.arange(length).roll(length // 2))


def _all_alike(rows: SignalRows) -> bool:
    """Whether all positions have the same row, as a teacher's that says nothing."""
    if isinstance(rows, DenseRows):
        return bool((rows.hidden_TE == rows.hidden_TE[:1]).all())
    if isinstance(rows, ChunkRows):
        return bool((rows.tokens_T > 0).sum() < 2)
    target = sparse_target(rows)
    return bool((target.ids_TK == target.ids_TK[:1]).all() and (target.probs_TK == target.probs_TK[:1]).all())
