"""The loss of terms across tokenizers, each beside cross-entropy alone: time and peak memory of forward and backward.

    python benchmarks/across_tokenizers.py --sizes 2048x576x49152 --dtypes bf16
    python benchmarks/across_tokenizers.py --sizes 8192x2048x200064 --dtypes bf16 --device cuda

Sizes are TOKENSxWIDTHxVOCABULARY; the teacher has as many tokens, of which 3 in 5 are equal and the others split in two. Three
chunks in four are one token, the others two. Each variant runs alone in a process of its own: the first repetition gives the
memory that forward and backward add at their peak (gradients of hidden states and head included), then it takes turns with
cross-entropy, and the ratio of times is the median of the pairs, with quartiles. Hidden states and head are float32; `bf16` has
products in bfloat16, as Limbeck trains.

Shapes: T positions, K ids of a row, V vocabulary, D width.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from loss_memory import peak_bytes
from torch import Tensor

from limbeck.data.token_bytes import TokenBytes
from limbeck.data.vocabulary_pair import VocabularyPair
from limbeck.objectives.across_prepared import prepare_across
from limbeck.objectives.objective import objective_loss
from limbeck.signals.types import ChunkRows
from limbeck.spec.across_tokenizers import ALM, GOLD, ULD, ByteKL, ProjectedKL
from limbeck.spec.objective import AnyObjective, CrossEntropy, Mixture, WeightedTerm

TERMS = {
    "alm": (ALM(), "none"),
    "alm, no boundary": (ALM(boundary=None), "none"),
    "uld": (ULD(), "last"),
    "gold": (GOLD(), "last"),
    "projected_kl": (ProjectedKL(), "mean"),
    "byte_kl": (ByteKL(), "bytes"),
}
CONTROL = "ce"


def vocabularies(size: int) -> tuple[VocabularyPair, tuple[np.ndarray, np.ndarray]]:
    """Words of random bytes, half of them after a space, and the pieces of those that the teacher lacks."""
    draw = np.random.default_rng(0)
    content = [b"", *(bytes([32] * int(space) + [byte]) for space, byte in draw.integers([0, 33], [2, 256], (size - 1, 2)))]
    special_V = np.array([not each for each in content])
    tokens = TokenBytes(tuple(content), tuple(content), 0, 0, None, special_V, np.zeros(size, dtype=bool))
    ids = np.arange(size)
    equal_V = np.where(ids % 5 < 3, ids, -1)
    lengths_V = np.where(equal_V < 0, 2, 1)
    return VocabularyPair(tokens, tokens, equal_V), (np.cumsum([0, *lengths_V]), draw.integers(1, size, lengths_V.sum()))


def chunk_rows(tokens: int, *, k: int, outcomes: int) -> ChunkRows:
    tokens_T = torch.where(torch.arange(tokens) % 5 == 4, 2, torch.where(torch.arange(tokens) % 5 == 3, 0, 1))
    here_T = tokens_T > 0
    start_T1 = torch.randint(outcomes, (tokens, 1))
    log_probs_TK = torch.randn(tokens, k + 1).log_softmax(-1)
    return ChunkRows(
        tokens_T=tokens_T,
        teacher_tokens_T=tokens_T.clone(),
        log_prob_T=-2.0 * tokens_T,
        before_T=-2.0 * (tokens_T - 1).clamp(min=0),
        boundary_T=torch.where(torch.rand(tokens) < 0.7, -0.5, -4.0),
        ids_TK=torch.where(here_T[:, None], (start_T1 + torch.arange(k) * (outcomes // k)) % outcomes, 0),
        log_probs_TK=log_probs_TK[:, :-1].where(here_T[:, None], -torch.inf),
        tail_T=log_probs_TK[:, -1].exp().where(here_T, 0.0),
    )


def step_of(variant: str, size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> Callable[[str], float]:
    """A function that takes one step of the variant or of the control, and returns its seconds."""
    torch.manual_seed(0)
    tokens, width, vocabulary = size
    device = arguments.device
    hidden_TD = torch.randn(tokens, width, device=device).requires_grad_()
    head_VD = torch.randn(vocabulary, width, device=device).mul_(2 * width**-0.5).requires_grad_()
    targets_T = torch.randint(1, vocabulary, (tokens,)).to(device)
    objectives: dict[str, AnyObjective] = {CONTROL: CrossEntropy()}
    given: dict[str, object] = {}
    if variant != CONTROL:
        term, distribution = TERMS[variant]
        beside = WeightedTerm(weight=1.0, term=CrossEntropy())
        objectives[variant] = Mixture(terms=(beside, WeightedTerm(weight=1.0, term=term)))
        pair, pieces = vocabularies(vocabulary)
        given["across"] = prepare_across(term, pair, distribution=distribution, pieces=pieces, device=device)
        k = 1 if distribution == "none" else arguments.k
        rows = chunk_rows(tokens, k=k, outcomes=257 if distribution == "bytes" else vocabulary)
        given["rows"] = ChunkRows(**{name: tensor.to(device) for name, tensor in vars(rows).items()})

    def step(which: str) -> float:
        hidden_TD.grad = head_VD.grad = None
        options = {} if which == CONTROL else given
        start = _now(device)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss: Tensor = objective_loss(
                objectives[which],
                hidden_TD=hidden_TD,
                head_VD=head_VD,
                targets_T=targets_T,
                **options,  # type: ignore[arg-type]
            ).loss
        loss.backward()
        return _now(device) - start

    return step


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(variant: str, size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> dict[str, float]:
    step = step_of(variant, size, dtype, arguments)
    before = peak_bytes(arguments.device)
    step(variant)
    memory = peak_bytes(arguments.device) - before
    step(CONTROL)
    pairs = [(step(variant), step(CONTROL)) for _ in range(arguments.repetitions)]
    low, middle, high = statistics.quantiles([ours / control for ours, control in pairs], n=4)
    return {"seconds": statistics.median(ours for ours, _ in pairs), "ratio": middle, "low": low, "high": high, "bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2048x576x49152"])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["bf16"])
    parser.add_argument("--variants", nargs="+", choices=[CONTROL, *TERMS], default=[CONTROL, *TERMS])
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "SIZE", "DTYPE"), help="measure this one alone and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        variant, size, dtype = arguments.one
        tokens, width, vocabulary = map(int, size.split("x"))
        print(json.dumps(measure(variant, (tokens, width, vocabulary), dtype, arguments)))
        return
    print(f"{'size':<18}{'dtype':<7}{'variant':<18}{'ms':>7}{'ratio to ce':>13}{'quartiles':>14}{'peak MiB':>10}")
    for size in arguments.sizes:
        for dtype in arguments.dtypes:
            for variant in arguments.variants:
                command = [sys.executable, *sys.argv, "--one", variant, size, dtype]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                quartiles = f"{found['low']:.2f}-{found['high']:.2f}"
                print(
                    f"{size:<18}{dtype:<7}{variant:<18}{found['seconds'] * 1e3:>7.0f}{found['ratio']:>13.2f}{quartiles:>14}"
                    f"{found['bytes'] / 2**20:>10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
