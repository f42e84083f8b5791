"""From a teacher's logits to the rows of a sparse signal, exactly: heads with the mass outside them, unbiased draws, the top-1.

* `topk`, `topp`: the most probable ids. The tail's mass is summed from the ids outside, not taken as 1 - head.
* `sampled`: draws with replacement (Random Sampling Knowledge Distillation, arXiv 2503.16870), so that counts / draws is an
  unbiased estimate of the teacher's distribution p; fewer of them where the teacher is certain, if the signal says so. Draws
  from a proposal q, another temperature of p, carry the importance weights p / q, and weights x counts / draws is unbiased.
* `hybrid`: the most probable ids exactly, and draws from p conditioned on the others: tail x counts / draws is unbiased there.
* `hard`: the most probable id, the lowest where several are.

Signals taken in one call share all passes over the vocabulary (`signals/panel.py`), yet each gives the rows that it would give
alone. Draws are in `signals/draws.py`. What needs no logits any more is done once for all panels.

Shapes: T positions, V vocabulary, K ids of a row, N draws of a row.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.errors import SpecError, TeacherError
from limbeck.signals.draws import count, draw, uniforms
from limbeck.signals.panel import Panel, log_probs, panels
from limbeck.signals.types import HardRows, HybridRows, SampledRows, SparseRows, TopKRows
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, TokenSignal, TopKSignal, TopPSignal


def select(logits_TV: Tensor, signal: TokenSignal, *, document_id: str, positions_T: Tensor) -> SparseRows:
    """The rows of one signal, on the CPU; see `select_all`."""
    return select_all(logits_TV, (signal,), document_id=document_id, positions_T=positions_T)[0]


def select_all(
    logits_TV: Tensor, signals: Sequence[TokenSignal], *, document_id: str, positions_T: Tensor
) -> tuple[SparseRows, ...]:
    """The rows of several signals from the same logits (any float dtype), on the CPU.

    `positions_T` are the positions in the document, int64: row t speaks of the token after position `positions_T[t]`.
    Raises `TeacherError`, naming document and position, where the logits are not a distribution (NaN, +inf, or all -inf);
    `SpecError` where a signal asks for more ids than there are.
    """
    head_sizes = [_head_size(signal, vocab_size=logits_TV.shape[1]) for signal in signals]
    numbers = [_uniforms(signal, document_id=document_id, positions_T=positions_T) for signal in signals]
    parts: list[list[dict[str, Tensor]]] = [[] for _ in signals]
    max_parts = []
    for rows, panel in panels(logits_TV, widest_head=max(head_sizes, default=0)):
        max_parts.append(panel.max_T)
        for taken, signal, head_size, numbers_TN in zip(parts, signals, head_sizes, numbers, strict=True):
            taken.append(_take(panel, signal, head_size=head_size, uniforms_TN=numbers_TN[rows]))
    require_finite(torch.cat(max_parts), document_id=document_id, positions_T=positions_T)
    joined = [{name: torch.cat([part[name] for part in taken]).cpu() for name in taken[0]} for taken in parts]
    return tuple(_rows(taken, signal) for taken, signal in zip(joined, signals, strict=True))


def _head_size(signal: TokenSignal, *, vocab_size: int) -> int:
    match signal:
        case TopKSignal(k=k) | HybridSignal(k=k):
            if k > vocab_size:
                raise SpecError(f"signal.k={k} exceeds the teacher's vocabulary of {vocab_size}; set k <= {vocab_size}")
            return k
        case TopPSignal(cap=cap):
            return min(cap, vocab_size)
        case _:
            return 0


def _uniforms(signal: TokenSignal, *, document_id: str, positions_T: Tensor) -> Tensor:
    match signal:
        case SampledSignal(draws=draws, seed=seed):
            return uniforms(document_id, positions_T, draws=draws, seed=seed)
        case HybridSignal(draws=draws, seed=seed):
            return uniforms(document_id, positions_T, draws=draws, seed=seed, stream="tail")
        case _:
            return torch.empty(len(positions_T), 0)


def require_finite(max_T: Tensor, *, document_id: str, positions_T: Tensor) -> None:
    """Raises `TeacherError`, naming document and position, where the greatest logit of a row is none."""
    # The greatest logit is NaN if any logit is, so it alone tells whether lse is finite.
    broken_T = ~torch.isfinite(max_T)
    if broken_T.any():
        row = int(broken_T.int().argmax())
        raise TeacherError(
            f"document {document_id}, position {int(positions_T[row])}: the teacher's logits are not a distribution "
            f"(the greatest is {max_T[row].item()}); load the teacher in bfloat16 or float32, or leave the document out"
        )


def _take(panel: Panel, signal: TokenSignal, *, head_size: int, uniforms_TN: Tensor) -> dict[str, Tensor]:
    """What `_rows` needs, as tensors with a row for each of the panel's; equally wide in all panels."""
    if isinstance(signal, HardSignal):
        return {"top1": panel.top1_T}
    softmax = panel.softmax(signal.temperature)
    taken = {"entropy": softmax.entropy_T, "log_sum": softmax.log_sum_T}
    if isinstance(signal, SampledSignal):
        proposal = panel.softmax(signal.temperature * signal.proposal_temperature)
        drawn_TN = draw(proposal, uniforms_TN)
        taken |= {"top1": panel.top1_T} if signal.keep_top1 else {}
        if proposal is not softmax:
            taken |= {"drawn_shifted": panel.shifted(drawn_TN), "proposal_log_sum": proposal.log_sum_T}
        return taken | {"drawn": drawn_TN}
    ids_TK, shifted_TK = panel.head(head_size)
    named_TK = ids_TK
    if isinstance(signal, TopPSignal):
        log_probs_TK = log_probs(shifted_TK, temperature=signal.temperature, log_sum_T=softmax.log_sum_T)
        kept_TK = first_reaching(log_probs_TK.exp(), p=signal.p)
        named_TK, taken["kept"] = torch.where(kept_TK, ids_TK, ids_TK[:, :1]), kept_TK
    with softmax.without(named_TK) as rest:
        taken["tail"] = rest.total_T / softmax.total_T
        if isinstance(signal, HybridSignal):
            taken["drawn"] = draw(rest, uniforms_TN)
    return taken | {"ids": ids_TK, "shifted": shifted_TK}


def first_reaching(probs_TK: Tensor, *, p: float) -> Tensor:
    """Which of the descending probabilities (float64) are the fewest whose sum is at least `p`; the first always is one."""
    before_TK = probs_TK.cumsum(-1) - probs_TK
    # Nineteen ids of twenty equal ones reach 0.95, though the float32 weights say 0.9499999.
    return before_TK < p * (1 - 1e-6)


def _rows(taken: Mapping[str, Tensor], signal: TokenSignal) -> SparseRows:
    match signal:
        case TopKSignal():
            return _head_rows(taken, temperature=signal.temperature)
        case TopPSignal():
            kept_TK = taken["kept"]
            width = int(kept_TK.sum(-1).max()) if len(kept_TK) else 0
            return _head_rows({**taken, "ids": taken["ids"][:, :width]}, temperature=signal.temperature)
        case SampledSignal():
            return _sampled_rows(taken, signal)
        case HybridSignal():
            head = _head_rows(taken, temperature=signal.temperature)
            # A tail without mass, of a certain teacher or where k ids are all there is, is not drawn from.
            counted = count(taken["drawn"], draws_T=(taken["tail"] > 0) * signal.draws)
            drawn_TM, counts_TM = counted.ids_TK, counted.counts_TK
            return HybridRows(head.ids_TK, head.log_probs_TK, head.tail_T, drawn_TM, counts_TM, head.entropy_T)
        case HardSignal():
            return HardRows(taken["top1"])


def _head_rows(taken: Mapping[str, Tensor], *, temperature: float) -> TopKRows:
    """An id without probability, or that is not kept, is padding."""
    ids_TK = taken["ids"]
    width = ids_TK.shape[1]
    log_probs_TK = log_probs(taken["shifted"][:, :width], temperature=temperature, log_sum_T=taken["log_sum"]).float()
    if "kept" in taken:
        log_probs_TK.masked_fill_(~taken["kept"][:, :width], -torch.inf)
    ids_TK = ids_TK.masked_fill(log_probs_TK == -torch.inf, 0)
    return TopKRows(ids_TK, log_probs_TK, taken["tail"].float(), taken["entropy"])


def _sampled_rows(taken: Mapping[str, Tensor], signal: SampledSignal) -> SampledRows:
    counted = count(taken["drawn"], draws_T=draws_by_entropy(signal, taken["entropy"]))
    weights_TK = None
    if "drawn_shifted" in taken:
        shifted_TK, proposed = (
            taken["drawn_shifted"].gather(1, counted.first_TK),
            signal.temperature * signal.proposal_temperature,
        )
        log_p_TK = log_probs(shifted_TK, temperature=signal.temperature, log_sum_T=taken["log_sum"])
        log_q_TK = log_probs(shifted_TK, temperature=proposed, log_sum_T=taken["proposal_log_sum"])
        weights_TK = (log_p_TK - log_q_TK).exp().float().masked_fill_(counted.counts_TK == 0, 0.0)
    return SampledRows(counted.ids_TK, counted.counts_TK, taken["entropy"], weights_TK, taken.get("top1"))


def draws_by_entropy(signal: SampledSignal, entropy_T: Tensor) -> Tensor:
    """How many draws a row of this entropy gets, int64: `draws`, or from `min_draws` in proportion to the entropy."""
    if signal.min_draws is None:
        return torch.full(entropy_T.shape, signal.draws)
    share_T = (entropy_T.double() / signal.full_entropy_nats).clamp(0.0, 1.0)
    return signal.min_draws + ((signal.draws - signal.min_draws) * share_T).round().long()
