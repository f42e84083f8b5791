"""Peak memory and time of the training loss: `objective_loss`, chunk by chunk, against one that materialises the logits.

    python benchmarks/loss_memory.py --tokens 4096 --width 256 --vocabulary 49152

Each variant runs alone in a process of its own. Memory is what forward and backward add at their peak to the inputs: resident
set size on a CPU, allocated bytes on a GPU; it holds the gradients of hidden states and head (float32), which no loss can do
without. Time is the best of the repetitions, of forward and backward; tokens/s follow from it. Compare times with nothing else
running on the machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from limbeck.objectives.objective import objective_loss
from limbeck.signals.types import TopKRows
from limbeck.spec.objective import CrossEntropy, ForwardKL

VARIANTS = ("materialised ce", "chunked ce", "materialised kl", "chunked kl")


def topk_rows(arguments: argparse.Namespace) -> TopKRows:
    # Distinct ids, spread over the vocabulary: a random start and a fixed stride.
    start_T1 = torch.randint(arguments.vocabulary, (arguments.tokens, 1))
    ids_TK = (start_T1 + torch.arange(arguments.k) * (arguments.vocabulary // arguments.k)) % arguments.vocabulary
    log_probs_TK = torch.randn(arguments.tokens, arguments.k + 1).log_softmax(-1)
    entropy_T = torch.full((arguments.tokens,), 2.0)
    rows = TopKRows(ids_TK, log_probs_TK[:, :-1].contiguous(), log_probs_TK[:, -1].exp(), entropy_T)
    return TopKRows(*(tensor.to(arguments.device) for tensor in (rows.ids_TK, rows.log_probs_TK, rows.tail_T, rows.entropy_T)))


def materialised_kl(logits_TV: Tensor, rows: TopKRows) -> Tensor:
    logq_TV = torch.log_softmax(logits_TV.float(), -1)
    logq_TK = logq_TV.gather(1, rows.ids_TK)
    tail_T = torch.log1p(-logq_TK.exp().sum(-1))
    head_T = (rows.log_probs_TK.exp() * (rows.log_probs_TK - logq_TK)).sum(-1)
    return (head_T + rows.tail_T * (rows.tail_T.log() - tail_T)).mean()


def loss_of(variant: str, arguments: argparse.Namespace) -> tuple[Callable[[], Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    hidden_TD = torch.randn(arguments.tokens, arguments.width, device=arguments.device).requires_grad_()
    head_VD = torch.randn(arguments.vocabulary, arguments.width, device=arguments.device).mul_(0.05).requires_grad_()
    targets_T = torch.randint(arguments.vocabulary, (arguments.tokens,)).to(arguments.device)
    rows = topk_rows(arguments)
    texts = {"hidden_TD": hidden_TD, "head_VD": head_VD, "targets_T": targets_T, "chunk_tokens": arguments.chunk_tokens}
    losses = {
        "materialised ce": lambda: cross_entropy(linear(hidden_TD, head_VD).float(), targets_T),
        "chunked ce": lambda: objective_loss(CrossEntropy(), **texts).loss,
        "materialised kl": lambda: materialised_kl(linear(hidden_TD, head_VD), rows),
        "chunked kl": lambda: objective_loss(ForwardKL(), rows=rows, **texts).loss,
    }
    return losses[variant], (hidden_TD, head_VD)


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(variant: str, dtype: str, arguments: argparse.Namespace) -> dict[str, float]:
    loss, parameters = loss_of(variant, arguments)
    before, best = peak_bytes(arguments.device), float("inf")
    for _ in range(arguments.repetitions):
        for parameter in parameters:
            parameter.grad = None
        start = time.perf_counter()
        with torch.autocast(arguments.device, torch.bfloat16, enabled=dtype == "bf16"):
            value = loss()
        value.backward()
        value.item() if arguments.device == "cpu" else torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return {"seconds": best, "bytes": peak_bytes(arguments.device) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--chunk-tokens", type=int)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "DTYPE"), help="measure this one alone and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments)))
        return
    print(f"tokens {arguments.tokens}, width {arguments.width}, vocabulary {arguments.vocabulary}, k {arguments.k}")
    print(f"{'variant':<18}{'dtype':<8}{'ms':>8}{'tokens/s':>12}{'peak MiB':>12}")
    for dtype in ("fp32", "bf16"):
        for variant in VARIANTS:
            command = [sys.executable, *sys.argv, "--one", variant, dtype]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rate = arguments.tokens / found["seconds"]
            print(f"{variant:<18}{dtype:<8}{found['seconds'] * 1e3:>8.0f}{rate:>12.0f}{found['bytes'] / 2**20:>12.0f}")


if __name__ == "__main__":
    main()
