"""ULD, GOLD, projected KL and byte KL: formulas by plain loops over chunks, and what they are where tokenizers are equal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from across_problem import END, PIECES, STUDENT, TEACHER, ChunkProblem, chunk_problem, part_of, toy_pair
from reference import bucket_kl, coarse, jensen_shannon
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.objectives.across_prepared import _projection, prepare_across
from limbeck.objectives.objective import objective_loss
from limbeck.signals.types import ChunkRows
from limbeck.spec.across_tokenizers import GOLD, ULD, AcrossTerm, ByteKL, ProjectedKL
from limbeck.spec.objective import CrossEntropy, Mixture, WeightedTerm

EQUAL = {0: 0, 1: 1} | {TEACHER.index(content): index for index, content in enumerate(STUDENT) if content in TEACHER[2:]}
UNMATCHED = [index for index in range(len(STUDENT)) if index not in EQUAL.values()]
LENGTHS = (1, 2, 1, -1, 3, 1, 2, 1)


def largest_first(values: list[float] | Tensor, width: int) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float64) if isinstance(values, list) else values
    values = values.sort(descending=True).values[:width]
    return torch.cat([values, values.new_zeros(width - len(values))])


def uld_by_loops(given: ChunkProblem) -> Tensor:
    """Of all chunks, the tokens before the last multiplied in on both sides."""
    total, q_TS, rows = torch.zeros((), dtype=torch.float64), given.logq_TS.exp(), given.rows
    for first, last in given.chunks():
        before_q = given.label_logq_T()[first:last].sum().exp()
        before_p = rows.before_T[last].exp()
        q, p = before_q * q_TS[last].sort(descending=True).values, before_p * rows.log_probs_TK[last].exp()
        k = len(p)
        total = total + (q[:k] - p).abs().sum() + (q[k:].sum() - before_p * rows.tail_T[last]).abs()
    return total


def gold_by_loops(given: ChunkProblem, beta: float, weight: float) -> Tensor:
    """Equal tokens by the entropy form of the divergence, all else one outcome; the others sorted."""
    total, q_TS, rows = torch.zeros((), dtype=torch.float64), given.logq_TS.exp(), given.rows
    k = rows.ids_TK.shape[1]
    for first, last in given.chunks():
        before_q, before_p = given.label_logq_T()[first:last].sum().exp(), rows.before_T[last].exp()
        q, p = before_q * q_TS[last], before_p * rows.log_probs_TK[last].exp()
        places = [(place, EQUAL[token]) for place, token in enumerate(rows.ids_TK[last].tolist()) if token in EQUAL]
        shared_p, shared_q = p[[place for place, _ in places]], q[[own for _, own in places]]
        pair = [torch.cat([each, 1 - each.sum()[None]]) for each in (shared_p, shared_q)]
        if beta in (0.0, 1.0):
            a, b = pair if beta == 0 else pair[::-1]
            shared = (a * (a / b).log()).sum()
        else:
            shared = jensen_shannon(pair[0], pair[1], beta)
        others_p = largest_first(p[[place for place in range(k) if place not in {each for each, _ in places}]], k)
        others_q = largest_first(q[UNMATCHED], k)
        rest = (others_p - others_q).abs().sum()
        rest = rest + (before_p * rows.tail_T[last] - (before_q - shared_q.sum() - others_q.sum())).abs()
        total = total + weight * shared + (1 - weight) * rest
    return total


def projection_by_hand() -> Tensor:
    """[S, V]."""
    weights_SV = torch.zeros(len(STUDENT), len(TEACHER), dtype=torch.float64)
    for other, own in EQUAL.items():
        weights_SV[own, other] = 1.0
    for own, (head, tail) in PIECES.items():
        weights_SV[own, head] += 10 / 11
        weights_SV[own, tail] += 1 / 11
    return weights_SV


def projected_by_loops(given: ChunkProblem) -> Tensor:
    """Ids that nothing is projected onto ("zz") are in the rest."""
    total, rows = torch.zeros((), dtype=torch.float64), given.rows
    q_TV = given.logq_TS.exp() @ projection_by_hand()
    for first, last in given.chunks():
        real_K = rows.ids_TK[last] != TEACHER.index(b"zz")
        p_K, q_K = rows.log_probs_TK[last].exp()[real_K], q_TV[first : last + 1].mean(0)[rows.ids_TK[last][real_K]]
        p_J, q_J = torch.cat([p_K, 1 - p_K.sum()[None]]), torch.cat([q_K, 1 - q_K.sum()[None]])
        total = total + (p_J * (p_J / q_J).log()).sum()
    return total


def bytes_by_loops(given: ChunkProblem) -> Tensor:
    """The student's distribution where the chunk begins, marginalised to first bytes."""
    total, rows, q_TS = torch.zeros((), dtype=torch.float64), given.rows, given.logq_TS.exp()
    firsts = {byte: [index for index, content in enumerate(STUDENT) if content[:1] == bytes([byte])] for byte in range(256)}
    firsts[256] = [END]
    for first, last in given.chunks():
        places = [place for place, byte in enumerate(rows.ids_TK[last].tolist()) if firsts[byte]]
        p_K = rows.log_probs_TK[last].exp()[places]
        q_K = torch.stack([q_TS[first, firsts[int(rows.ids_TK[last, place])]].sum() for place in places])
        p_J, q_J = torch.cat([p_K, 1 - p_K.sum()[None]]), torch.cat([q_K, 1 - q_K.sum()[None]])
        total = total + (p_J * (p_J / q_J).log()).sum()
    return total


def byte_problem(seed: int) -> ChunkProblem:
    """Rows of next bytes, of some that no token of the student begins with ("z") too."""
    given = chunk_problem(LENGTHS, seed=seed, k=5, outcomes=7)
    bytes_ = torch.tensor([*b"ab \nxz", 256])
    given.rows.ids_TK.copy_(torch.where(given.rows.log_probs_TK > -torch.inf, bytes_[given.rows.ids_TK], 0))
    return given


CASES: dict[str, tuple[AcrossTerm, str, Callable[[int], ChunkProblem], Callable[[ChunkProblem], Tensor]]] = {
    "uld": (ULD(), "last", lambda seed: chunk_problem(LENGTHS, seed=seed), uld_by_loops),
    "gold": (
        GOLD(),
        "last",
        lambda seed: chunk_problem(LENGTHS, seed=seed, k=6),
        lambda given: gold_by_loops(given, 0.5, 8 / 11),
    ),
    "gold forward": (
        GOLD(beta=0.0, matched_weight=0.3),
        "last",
        lambda seed: chunk_problem(LENGTHS, seed=seed),
        lambda given: gold_by_loops(given, 0.0, 0.3),
    ),
    "gold reverse": (
        GOLD(beta=1.0, matched_weight=1.0),
        "last",
        lambda seed: chunk_problem(LENGTHS, seed=seed),
        lambda given: gold_by_loops(given, 1.0, 1.0),
    ),
    "gold skewed": (
        GOLD(beta=0.1),
        "last",
        lambda seed: chunk_problem(LENGTHS, seed=seed, k=11),
        lambda given: gold_by_loops(given, 0.1, 8 / 11),
    ),
    "projected": (ProjectedKL(), "mean", lambda seed: chunk_problem(LENGTHS, seed=seed, k=6), projected_by_loops),
    "bytes": (ByteKL(), "bytes", byte_problem, bytes_by_loops),
}


@pytest.mark.parametrize("chunk_tokens", [1, 4, None])
@pytest.mark.parametrize("name", CASES)
def test_is_the_formula(name: str, chunk_tokens: int | None) -> None:
    term, distribution, make, by_loops = CASES[name]
    for seed in range(3):
        given = make(seed)
        expected = by_loops(given) / len(given.targets_T)
        found = given.loss(term, distribution=distribution, chunk_tokens=chunk_tokens)
        leaves = given.hidden_TD, given.head_SD
        # A map's weights are float32: 10/11 is known to 3e-8.
        exactness = 1e-7 if name == "projected" else 1e-10
        torch.testing.assert_close(found.loss, expected, rtol=0, atol=exactness)
        torch.testing.assert_close(
            torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected, leaves), rtol=0, atol=exactness
        )
        tokens = sum(last - first + 1 for first, last in given.chunks())
        assert found.per_term[f"{term.kind}_share"].item() == pytest.approx(tokens / len(given.targets_T))


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_add_up(name: str) -> None:
    term, distribution, make, _ = CASES[name]
    given, total = make(0), sum(map(abs, LENGTHS))
    objective = Mixture(terms=(WeightedTerm(weight=0.5, term=CrossEntropy()), WeightedTerm(weight=2.0, term=term)))
    whole = given.loss(objective, distribution=distribution)
    parts = [
        part_of(given, part).loss(objective, distribution=distribution, normaliser=total)
        for part in (slice(0, 5), slice(5, total))
    ]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_padding_says_nothing(name: str) -> None:
    """Id 0 of log-prob -inf, as a store fills short rows."""
    term, distribution, make, _ = CASES[name]
    given = make(0)
    ids_TK, log_probs_TK = pad(given.rows.ids_TK, (0, 3)), pad(given.rows.log_probs_TK, (0, 3), value=-torch.inf)
    rows = ChunkRows(**(vars(given.rows) | {"ids_TK": ids_TK, "log_probs_TK": log_probs_TK}))
    longer = given.loss(term, distribution=distribution, rows=rows).loss
    if term.kind in ("uld", "gold"):  # they compare as many of the student's as the row has
        assert longer.isfinite()
    else:
        torch.testing.assert_close(longer, given.loss(term, distribution=distribution).loss, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("student", "teacher"), [(1.0, 1.0), (1e4, 1.0), (1.0, 1e4), (1e4, 1e4)])
def test_logits_of_any_size_are_finite_in_float32(name: str, student: float, teacher: float) -> None:
    term, distribution, make, _ = CASES[name]
    given = make(0)
    rows = {key: value.float() if value.is_floating_point() else value for key, value in vars(given.rows).items()}
    rows["before_T"], rows["log_prob_T"] = rows["before_T"] * teacher, rows["log_prob_T"] * teacher
    if teacher > 1:  # sure of one id
        here_T = rows["tokens_T"] > 0
        rows["log_probs_TK"][here_T] = torch.tensor([0.0, *[-1e4] * (rows["ids_TK"].shape[1] - 1)])
        rows["tail_T"].zero_()
    leaves = given.hidden_TD.detach().float().requires_grad_(), (student * given.head_SD.detach()).float().requires_grad_()
    found = given.loss(term, distribution=distribution, rows=ChunkRows(**rows), hidden_TD=leaves[0], head_VD=leaves[1])
    assert found.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.loss, leaves))


def equal_problem(k: int) -> tuple[ChunkProblem, Tensor]:
    """Both models read the teacher's tokens, one a chunk, and the teacher's distribution over all of them."""
    given = chunk_problem((1,) * 9, k=k)
    draw = torch.Generator().manual_seed(7)
    p_TV = torch.softmax(torch.randn(9, len(TEACHER), generator=draw, dtype=torch.float64), -1)
    top = p_TV.topk(k)
    rows = ChunkRows(**(vars(given.rows) | {"ids_TK": top.indices, "log_probs_TK": top.values.log()}))
    rows = ChunkRows(**(vars(rows) | {"tail_T": 1 - top.values.sum(-1)}))
    head_VD = given.head_SD[: len(TEACHER)].detach().requires_grad_()
    targets_T = given.targets_T.clamp(max=len(TEACHER) - 1)
    pair = toy_pair(TEACHER, TEACHER)
    return ChunkProblem(given.hidden_TD, head_VD, targets_T, rows, pair), p_TV


def equal_loss(given: ChunkProblem, term: AcrossTerm, distribution: str) -> Tensor:
    """With every token its own piece."""
    offsets = torch.arange(len(TEACHER) + 1).numpy()
    across = prepare_across(term, given.pair, distribution=distribution, pieces=(offsets, offsets[:-1]))
    texts = {"hidden_TD": given.hidden_TD, "head_VD": given.head_SD, "targets_T": given.targets_T, "rows": given.rows}
    return objective_loss(term, across=across, **texts).loss


def test_projected_kl_of_equal_tokenizers_is_the_kl_with_a_tail() -> None:
    given, p_TV = equal_problem(k=4)
    expected = bucket_kl(p_TV, given.logq_TS, given.rows.ids_TK).mean()
    torch.testing.assert_close(equal_loss(given, ProjectedKL(), "mean"), expected, rtol=0, atol=1e-10)


def test_gold_of_equal_tokenizers_is_the_divergence_with_a_tail() -> None:
    given, p_TV = equal_problem(k=4)
    pair = coarse(p_TV, given.rows.ids_TK), coarse(given.logq_TS.exp(), given.rows.ids_TK)
    torch.testing.assert_close(equal_loss(given, GOLD(), "last"), jensen_shannon(*pair, 0.5).mean(), rtol=0, atol=1e-10)


def test_uld_is_blind_to_which_token_is_which() -> None:
    """Its known weakness: a student with the teacher's probabilities on other tokens has no loss."""
    given, p_TV = equal_problem(k=5)
    order = torch.randperm(len(TEACHER), generator=torch.Generator().manual_seed(1))
    hidden_TV, head_VV = p_TV.log()[:, order].requires_grad_(), torch.eye(len(TEACHER), dtype=torch.float64)
    student = ChunkProblem(hidden_TV, head_VV, given.targets_T, given.rows, given.pair)
    assert equal_loss(student, ULD(), "last").item() == pytest.approx(0, abs=1e-12)
    assert equal_loss(student, ProjectedKL(), "mean").item() > 0.1


def test_uld_by_index_needs_no_chunks() -> None:
    given = chunk_problem((-1, 1, -1, 2, 1), k=4)
    with_ids_T = torch.tensor([True, True, True, False, True, False])
    p_TV = torch.softmax(torch.randn(6, len(TEACHER), generator=torch.Generator().manual_seed(2), dtype=torch.float64), -1)
    top = p_TV.topk(4)
    log_probs_TK = torch.where(with_ids_T[:, None], top.values.log(), -torch.inf)
    tail_T = torch.where(with_ids_T, 1 - top.values.sum(-1), 0.0)
    rows = ChunkRows(**(vars(given.rows) | {"ids_TK": top.indices, "log_probs_TK": log_probs_TK, "tail_T": tail_T}))
    q_TS = given.logq_TS.exp().sort(-1, descending=True).values
    each_T = (q_TS[:, :4] - top.values).abs().sum(-1) + (q_TS[:, 4:].sum(-1) - tail_T).abs()
    found = given.loss(ULD(), distribution="index", rows=rows)
    torch.testing.assert_close(found.loss, each_T[with_ids_T].sum() / 6, rtol=0, atol=1e-12)
    assert found.per_term["uld_share"].item() == pytest.approx(4 / 6)


def test_a_models_ids_beyond_both_tokenizers_are_unmatched() -> None:
    """A head of more rows than the tokenizer has ids, and a teacher's id that its tokenizer does not know."""
    given = chunk_problem(LENGTHS, k=4)
    for objective, distribution in ((GOLD(), "last"), (ProjectedKL(), "mean"), (ULD(), "last")):
        plain = given.loss(objective, distribution=distribution).loss
        rows = ChunkRows(**(vars(given.rows) | {"ids_TK": given.rows.ids_TK.clone()}))
        rows.ids_TK[0, 3] = len(TEACHER) + 40
        assert given.loss(objective, distribution=distribution, rows=rows).loss.isfinite()
        longer_SD = torch.cat([given.head_SD, -1e3 * torch.ones(3, 5, dtype=torch.float64)])
        hidden_TD = given.hidden_TD.abs()
        fewer = given.loss(objective, distribution=distribution, hidden_TD=hidden_TD).loss
        more = given.loss(objective, distribution=distribution, hidden_TD=hidden_TD, head_VD=longer_SD).loss
        torch.testing.assert_close(more, fewer, rtol=0, atol=1e-9)
        assert plain.isfinite()


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        sizes = [each.numel() for each in (made if isinstance(made, tuple) else (made,)) if isinstance(each, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def test_a_projection_is_a_product_with_a_matrix_at_the_named_outcomes_alone() -> None:
    draw = np.random.default_rng(0)
    tokens, outcomes, rows = 30, 5_000, 7
    outcome_Z, token_Z = draw.integers(0, 40, 90), draw.integers(0, tokens, 90)
    outcome_Z[:2], token_Z[:2] = 3, 5  # a piece that comes twice in a token
    weight_Z = draw.random(90)
    projection = _projection(outcome_Z, token_Z, weight_Z, shape=(outcomes, tokens), device="cpu")
    dense_OS = torch.zeros(outcomes, tokens, dtype=torch.float64)
    dense_OS.index_put_((torch.from_numpy(outcome_Z), torch.from_numpy(token_Z)), torch.from_numpy(weight_Z), accumulate=True)
    ids_BK = torch.from_numpy(draw.integers(0, 60, (rows, 9)))
    probs_BV = torch.from_numpy(draw.random((rows, tokens + 2))).requires_grad_()
    slope_BK = torch.from_numpy(draw.random((rows, 9)))
    with Largest() as largest:
        found_BK = projection.at(probs_BV, ids_BK)
        (gradient_BV,) = torch.autograd.grad(found_BK, probs_BV, slope_BK)
    expected_BK = (probs_BV[:, :tokens] @ dense_OS.T).gather(1, ids_BK)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_BV, torch.autograd.grad(expected_BK, probs_BV, slope_BK)[0], rtol=1e-6, atol=1e-6)
    assert projection.at(probs_BV, ids_BK[:, :0]).shape == (rows, 0)
    assert largest.elements <= rows * 90
    assert torch.equal(projection.reaches(ids_BK), dense_OS.any(1)[ids_BK])
    assert not bool(projection.reaches(torch.tensor([outcomes, outcomes + 9])).any())
