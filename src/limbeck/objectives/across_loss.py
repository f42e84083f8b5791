"""From a batch to the loss across tokenizers.

loss = sum over parts and units of text of factor * divergence / normaliser, where the normaliser counts target tokens, as
everywhere: micro-batches add up to their batch, and where every chunk is one token this is the mean over chunks. A chunk of
several tokens is one summand beside the several of a cross-entropy; a slope in its log-prob is one in each of theirs.

Logits are formed in blocks that cut no unit (`across_layout`) and through the head's own chunks, so nothing is computed twice.

Shapes: T positions of the batch, N that count, R rows of all blocks, B of one block, n its own, K ids of a row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.objectives.across_layout import Block, Positions, Units, blocks_of, rows_of
from limbeck.objectives.across_parts import AcrossPart, Seen, Texts, across_parts
from limbeck.objectives.across_prepared import Across
from limbeck.objectives.chunks import tokens_of_chunk
from limbeck.objectives.divergences import cross_entropy, z_loss
from limbeck.objectives.head import HeadStatistics, LossSums, head_loss
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.signals.types import ChunkRows
from limbeck.spec.objective import CrossEntropy, Objective, terms


def pieces_of(segments_BT: Tensor | None, *, shape: torch.Size, device: torch.device) -> Tensor:
    """int64 [B * T]: a number for the piece of text of each position of a batch: pieces end where rows or segments do."""
    rows_BT = torch.arange(shape[0], device=device)[:, None].expand(shape)
    if segments_BT is None:
        return rows_BT.flatten()
    return (rows_BT * (shape[1] + 1) + segments_BT.to(device)).flatten()


@dataclass(frozen=True, eq=False)
class _Batch:
    """What every block needs."""

    texts: Texts
    parts: list[AcrossPart]
    text_weight: float
    """Of cross-entropy."""
    z_loss_weight: float


def across_loss(
    objective: Objective,
    hidden_TD: Tensor,
    *,
    head_VD: Tensor,
    targets_T: Tensor,
    rows: ChunkRows,
    across: Across,
    mask_T: Tensor | None,
    pieces_T: Tensor | None,
    moment: Moment,
    softcap: float | None,
    chunk_tokens: int | None,
) -> LossSums:
    """The sum over the positions that count; arguments as of `limbeck.objectives.objective.objective_loss`."""
    texts = _texts(targets_T, rows=rows, mask_T=mask_T, pieces_T=pieces_T)
    parts = across_parts(objective, texts, across=across, moment=moment)
    weights = [weight_at(each.weight, moment) for each in terms(objective) if isinstance(each.term, CrossEntropy)]
    batch = _Batch(texts, parts, sum(weights), objective.z_loss_weight)
    blocks = blocks_of(
        [part.units for part in parts],
        total=len(texts.targets_N),
        tokens=chunk_tokens or tokens_of_chunk(max(len(head_VD), *(part.entries for part in parts))),
        with_next=any(part.looks_ahead for part in parts),
    )
    place_R = rows_of(blocks, device=targets_T.device)
    by_start = {block.rows.start: block for block in blocks}
    ids = [texts.targets_N[:, None], *(part.ids_NK for part in parts if part.ids_NK is not None)]
    return head_loss(
        hidden_TD[texts.positions.places_N[place_R]],
        head_VD=head_VD,
        ids_TK=torch.cat(ids, 1)[place_R],
        per_token=lambda statistics, rows: _block_loss(batch, statistics[0], by_start[rows.start]),
        softcap=softcap,
        readers=tuple(part.reader(place_R) for part in parts if part.reader is not None),
        slices=tuple(block.rows for block in blocks),
    )


def _texts(targets_T: Tensor, *, rows: ChunkRows, mask_T: Tensor | None, pieces_T: Tensor | None) -> Texts:
    mask_T = torch.ones_like(targets_T, dtype=torch.bool) if mask_T is None else mask_T
    pieces_T = torch.zeros_like(targets_T) if pieces_T is None else pieces_T
    places_N = mask_T.nonzero().squeeze(1)
    return Texts(Positions(places_N, pieces_T[places_N]), targets_T[places_N], _rows_at(rows, places_N))


def _rows_at(rows: ChunkRows, positions: Tensor | slice) -> ChunkRows:
    return replace(rows, **{name: tensor[positions] for name, tensor in vars(rows).items()})


def _units_at(units: Units, own: slice) -> Units:
    found = replace(units, **{name: tensor[own] for name, tensor in vars(units).items()})
    return replace(found, last_N=found.last_N - own.start)


def _block_loss(batch: _Batch, statistics: HeadStatistics, block: Block) -> LossSums:
    """The parts on the units of a block, and cross-entropy on its own positions."""
    own, size = block.own, block.own.stop - block.own.start
    ce_n = cross_entropy(statistics.lse_T, statistics.gathered_TK[:, 0])[:size]
    loss = batch.text_weight * ce_n.sum()
    report = {"ce": ce_n.detach().sum()}
    log_probs_nK = (statistics.gathered_TK - statistics.lse_T[:, None])[:size, 1:]
    read = iter(statistics.read)
    rows, targets_n = _rows_at(batch.texts.rows, own), batch.texts.targets_N[own]
    for part in batch.parts:
        width = 0 if part.ids_NK is None else part.ids_NK.shape[1]
        gathered_nK, log_probs_nK = log_probs_nK[:, :width], log_probs_nK[:, width:]
        seen = Seen(
            units=_units_at(part.units, own),
            rows=rows,
            targets_n=targets_n,
            log_prob_n=-ce_n,
            gathered_nK=gathered_nK,
            read_B=None if part.reader is None else next(read),
        )
        total = seen.scored(part.loss(seen)).sum()
        loss = loss + part.factor * total
        report[part.name] = total.detach()
        report[f"{part.name}_share"] = seen.units.tokens_N.where(seen.units.scored_N, 0).sum().to(total.dtype)
    if batch.z_loss_weight > 0:
        z_n = z_loss(statistics.lse_T)[:size]
        loss = loss + batch.z_loss_weight * z_n.sum()
        report["z_loss"] = z_n.detach().sum()
    return LossSums(loss, report)
