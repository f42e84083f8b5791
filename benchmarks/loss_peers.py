"""The loss alone, ours beside the peers': time and peak memory of forward and backward to hidden states and head.

    python benchmarks/loss_peers.py --sizes 2048x576x49152 --dtypes fp32 bf16
    python benchmarks/loss_peers.py --sizes 8192x4096x128256 --dtypes bf16 --device cuda

Sizes are TOKENSxWIDTHxVOCABULARY. dtypes: `bf16` has hidden states and head in bfloat16, the peers' home ground; `autocast` has
them in float32 and products in bfloat16, as Limbeck trains. The teacher is as wide as the student. Temperature is 1.

Each variant runs alone in a process of its own. Its first repetition gives the memory, as in `loss_memory`: what forward and
backward add at their peak to the inputs, gradients of hidden states and head included. Then its value and gradients are held
against a float64 reference on the first positions. Then it takes turns with our own fused cross-entropy: the ratio of times is
the median of the pairs, with quartiles; the row of our cross-entropy itself shows the noise. What would not fit is skipped.

Peers are optional: `pip install trl` (its losses as installed), `pip install liger-kernel` (its Triton kernels need CUDA; its
chunked losses, in PyTorch, do not). DistillKit is no package: its sparse KL (github.com/arcee-ai/DistillKit, a61c2e7,
`lossfuncs/kl.py` and `common.py`) is written out in a few lines, `missing` being its treatment of the mass outside the ids.

Shapes: T positions, K ids of a row, N draws, V vocabulary, D width of student and teacher.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from loss_memory import peak_bytes, topk_rows
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, linear, log_softmax, nll_loss

from limbeck.objectives.chunks import CHUNK_ELEMENTS
from limbeck.objectives.objective import objective_loss
from limbeck.signals.draws import count
from limbeck.signals.types import DenseRows, SampledRows, TopKRows
from limbeck.spec.objective import AnyObjective, CrossEntropy, ForwardKL, JensenShannon, ReverseKL

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}
DRAWS = 50


@dataclass(frozen=True)
class Inputs:
    """One batch."""

    hidden_TD: Tensor
    head_VD: Tensor
    targets_T: Tensor
    topk: TopKRows
    sampled: SampledRows
    dense: DenseRows
    compiled: bool
    """Whether Liger's chunked losses are compiled, which is their default."""

    def student(self) -> Tensor:
        return linear(self.hidden_TD, self.head_VD)

    @torch.no_grad()
    def teacher(self) -> Tensor:
        return linear(self.dense.hidden_TE, self.dense.head_VE)


def inputs_of(size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> Inputs:
    torch.manual_seed(0)
    tokens, width, vocabulary = size
    options: dict[str, Any] = {"device": arguments.device, "dtype": DTYPES[dtype]}
    # In place, for memory; logits get a standard deviation of 2.
    hidden_TD, teacher_TD = (torch.randn(tokens, width, **options) for _ in range(2))
    head_VD, teacher_VD = (torch.randn(vocabulary, width, **options).mul_(2 * width**-0.5) for _ in range(2))
    wanted = argparse.Namespace(tokens=tokens, vocabulary=vocabulary, k=arguments.k, device=arguments.device)
    return Inputs(
        hidden_TD.requires_grad_(),
        head_VD.requires_grad_(),
        torch.randint(vocabulary, (tokens,)).to(arguments.device),
        topk_rows(wanted),
        sampled_rows(tokens, vocabulary, arguments.device),
        DenseRows(teacher_TD, teacher_VD, temperature=1.0),
        compiled=arguments.compile,
    )


def sampled_rows(tokens: int, vocabulary: int, device: str) -> SampledRows:
    """Draws from 1 / rank^1.2, which repeat as often as a language model's do: about 20 distinct ids of 50 draws."""
    zipf_V = torch.arange(1, vocabulary + 1).pow(-1.2)[torch.randperm(vocabulary)]
    drawn_TN = torch.multinomial(zipf_V, tokens * DRAWS, replacement=True).view(tokens, DRAWS)
    counted = count(drawn_TN, draws_T=torch.full((tokens,), DRAWS))
    entropy_T = torch.full((tokens,), 2.0, device=device)
    return SampledRows(counted.ids_TK.to(device), counted.counts_TK.to(device), entropy_T)


def plain(quantity: str, logits_TV: Tensor, teacher_TV: Tensor | None, inputs: Inputs) -> Tensor:
    """The loss by its definition, in the dtype of the logits: the reference in float64, PyTorch's eager one in float32."""
    logq_TV = log_softmax(logits_TV, -1)
    if quantity == "ce":
        return nll_loss(logq_TV, inputs.targets_T)
    if quantity == "kl topk":
        logp_TK, tail_T = inputs.topk.log_probs_TK.to(logq_TV.dtype), inputs.topk.tail_T.to(logq_TV.dtype)
        logq_TK = logq_TV.gather(1, inputs.topk.ids_TK)
        rest_T = torch.log1p(-logq_TK.exp().sum(-1))
        return ((logp_TK.exp() * (logp_TK - logq_TK)).sum(-1) + tail_T * (tail_T.log() - rest_T)).mean()
    if quantity == "kl sampled":
        probs_TK = inputs.sampled.counts_TK.to(logq_TV.dtype) / DRAWS
        return (-(probs_TK * logq_TV.gather(1, inputs.sampled.ids_TK)).sum(-1) - inputs.sampled.entropy_T).mean()
    assert teacher_TV is not None
    logp_TV = log_softmax(teacher_TV, -1)
    if quantity == "kl dense":
        return kl_div(logq_TV, logp_TV, reduction="batchmean", log_target=True)
    if quantity == "reverse kl dense":
        return kl_div(logp_TV, logq_TV, reduction="batchmean", log_target=True)
    logm_TV = torch.logaddexp(logp_TV, logq_TV) - torch.tensor(2.0, dtype=logq_TV.dtype).log()
    halves = [kl_div(logm_TV, each_TV, reduction="batchmean", log_target=True) for each_TV in (logp_TV, logq_TV)]
    return (halves[0] + halves[1]) / 2


def reference(quantity: str, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of hidden states and head in float64."""
    hidden_TD, head_VD = (leaf.detach().double().requires_grad_() for leaf in (inputs.hidden_TD, inputs.head_VD))
    teacher_TV = inputs.dense.hidden_TE.double() @ inputs.dense.head_VE.double().T if "dense" in quantity else None
    loss = plain(quantity, hidden_TD @ head_VD.T, teacher_TV, inputs)
    loss.backward()
    assert hidden_TD.grad is not None and head_VD.grad is not None
    return loss.detach(), hidden_TD.grad, head_VD.grad


def ours(objective: AnyObjective, rows: str | None, inputs: Inputs) -> Tensor:
    return objective_loss(
        objective,
        hidden_TD=inputs.hidden_TD,
        head_VD=inputs.head_VD,
        targets_T=inputs.targets_T,
        rows=None if rows is None else getattr(inputs, rows),
    ).loss


def eager(quantity: str, inputs: Inputs) -> Tensor:
    if quantity == "ce":
        return cross_entropy(inputs.student().float(), inputs.targets_T)
    teacher_TV = inputs.teacher().float() if "dense" in quantity else None
    return plain(quantity, inputs.student().float(), teacher_TV, inputs)


def torch_linear_cross_entropy(inputs: Inputs) -> Tensor:
    """PyTorch's own chunked one, with its default options."""
    options = torch.nn.LinearCrossEntropyOptions()
    return torch.nn.functional.linear_cross_entropy(inputs.hidden_TD, inputs.head_VD, inputs.targets_T, options=options)


def distillkit(missing: str, inputs: Inputs) -> Tensor:
    """DistillKit's `sparse_kl_div` on whole logits. 'zero' scales the teacher's ids up to mass 1: another loss, and biased."""
    logits_TV = inputs.student()
    lse_T1 = torch.logsumexp(logits_TV.float(), -1, keepdim=True).to(logits_TV.dtype)
    logq_TK = logits_TV.gather(1, inputs.topk.ids_TK) - lse_T1
    logp_TK = inputs.topk.log_probs_TK
    if missing == "zero":
        logp_TK = logp_TK - torch.logsumexp(logp_TK, -1, keepdim=True)
    logp_TK = logp_TK.to(logits_TV.dtype)
    loss_T = (logp_TK.exp() * (logp_TK - logq_TK)).sum(-1)
    if missing == "symmetric_uniform":
        masses = logp_TK.exp().float().sum(-1), logq_TK.float().exp().sum(-1)
        rest_p, rest_q = (torch.log1p(-mass_T.clamp(1e-8, 1 - 1e-8)) for mass_T in masses)
        loss_T = loss_T + rest_p.exp() * (rest_p - rest_q)
    return loss_T.sum().to(logits_TV.dtype) / len(loss_T)


def trl_gkd(beta: float, inputs: Inputs) -> Tensor:
    """`GKDTrainer.generalized_jsd_loss` on whole logits, in their dtype."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(inputs.student(), inputs.teacher(), beta=beta)


def trl_chunked(beta: float, inputs: Inputs) -> Tensor:
    """`DistillationTrainer`'s loss: tiles of at most 4096 positions x 32768 ids; it returns the student's entropy as well."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask_1T = torch.ones_like(inputs.targets_T)[None]
    heads = inputs.head_VD, inputs.dense.head_VE
    return _chunked_divergence_loss(inputs.hidden_TD[None], inputs.dense.hidden_TE[None], *heads, mask_1T, beta)[0]


def trl_server(inputs: Inputs) -> Tensor:
    """`ServerDistillationTrainer`'s forward KL on a served teacher's top-k with its tail bucket, on whole log-probs."""
    from trl.experimental.server_distillation.server_distillation_trainer import ServerDistillationTrainer as Trainer

    trainer = SimpleNamespace(loss_add_tail=True, _reduce_divergence_loss=Trainer._reduce_divergence_loss)
    served = {"topk_logprobs": inputs.topk.log_probs_TK[None], "topk_token_ids": inputs.topk.ids_TK[None]}
    logq_1TV = log_softmax(inputs.student(), -1)[None]
    return Trainer._compute_server_forward_kl_loss(trainer, served, logq_1TV, inputs.targets_T[None])


def liger_chunked(beta: float, inputs: Inputs) -> Tensor:
    """`LigerFusedLinearJSDLoss` in PyTorch, 1024 positions at a time, its half share of cross-entropy turned off."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=inputs.compiled)
    teacher = inputs.dense.hidden_TE, inputs.dense.head_VE
    return loss(inputs.hidden_TD, inputs.head_VD, *teacher, inputs.targets_T)


def liger_cross_entropy(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(inputs.head_VD, inputs.hidden_TD, inputs.targets_T)


def liger_jsd(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearJSD

    teacher = inputs.dense.hidden_TE, inputs.dense.head_VE
    return LigerFusedLinearJSD(jsd_beta=0.5)(inputs.hidden_TD, inputs.head_VD, *teacher, None)


def liger_kl(quantity: str, inputs: Inputs) -> Tensor:
    """`LigerFusedLinearKLDivLoss` wants probabilities of the whole vocabulary: sparse rows are scattered into zeros first."""
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    if quantity == "kl dense":
        target_TV = inputs.teacher().softmax(-1)
    else:
        shape = len(inputs.hidden_TD), len(inputs.head_VD)
        target_TV = torch.zeros(shape, dtype=inputs.hidden_TD.dtype, device=inputs.hidden_TD.device)
        target_TV.scatter_(1, inputs.topk.ids_TK, inputs.topk.log_probs_TK.exp().to(target_TV.dtype))
    return LigerFusedLinearKLDivLoss()(inputs.hidden_TD, inputs.head_VD, target_TV)


@dataclass(frozen=True)
class Variant:
    """A way to compute a loss."""

    quantity: str
    loss: Callable[[Inputs], Tensor]
    copies: float = 0.0
    """Float32 arrays as large as the logits, or as the largest tile, that it holds at its peak; 0 where they are small."""
    tile: tuple[int, int] = (sys.maxsize, sys.maxsize)
    package: str | None = None
    kernel: bool = False
    """Whether it is made of Triton kernels."""


OWN = "limbeck ce"
TILE = (4096, 32768)
VARIANTS = {
    OWN: Variant("ce", partial(ours, CrossEntropy(), None)),
    "torch eager ce": Variant("ce", partial(eager, "ce"), 3),
    "torch linear_cross_entropy": Variant("ce", torch_linear_cross_entropy),
    "liger fused ce": Variant("ce", liger_cross_entropy, package="liger_kernel", kernel=True),
    "limbeck topk": Variant("kl topk", partial(ours, ForwardKL(), "topk")),
    "torch eager topk": Variant("kl topk", partial(eager, "kl topk"), 3),
    "trl server topk": Variant("kl topk", trl_server, 3, package="trl"),
    "distillkit missing=symmetric_uniform": Variant("kl topk", partial(distillkit, "symmetric_uniform"), 5),
    "distillkit missing=zero": Variant("kl topk", partial(distillkit, "zero"), 5),
    "liger fused kl, scattered": Variant("kl topk", partial(liger_kl, "kl topk"), 1, package="liger_kernel", kernel=True),
    "limbeck sampled": Variant("kl sampled", partial(ours, ForwardKL(), "sampled")),
    "torch eager sampled": Variant("kl sampled", partial(eager, "kl sampled"), 3),
    "limbeck dense": Variant("kl dense", partial(ours, ForwardKL(), "dense")),
    "torch eager dense": Variant("kl dense", partial(eager, "kl dense"), 7),
    "trl gkd beta=0": Variant("kl dense", partial(trl_gkd, 0), 7, package="trl"),
    "trl chunked beta=0": Variant("kl dense", partial(trl_chunked, 0.0), 12, TILE, "trl"),
    "liger chunked beta=0": Variant("kl dense", partial(liger_chunked, 0), 7, (2048, sys.maxsize), "liger_kernel"),
    "liger fused kl, dense": Variant("kl dense", partial(liger_kl, "kl dense"), 3, package="liger_kernel", kernel=True),
    "limbeck jsd": Variant("jsd dense", partial(ours, JensenShannon(scale="plain"), "dense")),
    "torch eager jsd": Variant("jsd dense", partial(eager, "jsd dense"), 9),
    "trl gkd beta=0.5": Variant("jsd dense", partial(trl_gkd, 0.5), 15, package="trl"),
    "trl chunked beta=0.5": Variant("jsd dense", partial(trl_chunked, 0.5), 12, TILE, "trl"),
    "liger chunked beta=0.5": Variant("jsd dense", partial(liger_chunked, 0.5), 17, (2048, sys.maxsize), "liger_kernel"),
    "liger fused jsd": Variant("jsd dense", liger_jsd, package="liger_kernel", kernel=True),
    "limbeck reverse": Variant("reverse kl dense", partial(ours, ReverseKL(), "dense")),
    "torch eager reverse": Variant("reverse kl dense", partial(eager, "reverse kl dense"), 7),
    "trl gkd beta=1": Variant("reverse kl dense", partial(trl_gkd, 1), 7, package="trl"),
    "trl chunked beta=1": Variant("reverse kl dense", partial(trl_chunked, 1.0), 12, TILE, "trl"),
    "liger chunked beta=1": Variant("reverse kl dense", partial(liger_chunked, 1), 8, (2048, sys.maxsize), "liger_kernel"),
}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step(loss: Callable[[Inputs], Tensor], inputs: Inputs, dtype: str) -> tuple[float, Tensor]:
    """Seconds of forward and backward, and the loss."""
    device = inputs.hidden_TD.device.type
    inputs.hidden_TD.grad = inputs.head_VD.grad = None
    synchronise(device)
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "autocast"):
        value = loss(inputs)
    value.backward()
    synchronise(device)
    return time.perf_counter() - start, value.detach()


def deviations(variant: Variant, size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Of the loss and of its gradients (the larger of the two, by their norms), relative to the float64 reference."""
    inputs = inputs_of((min(size[0], arguments.check_tokens), *size[1:]), dtype, arguments)
    _, found = step(variant.loss, inputs, dtype)
    right, *right_gradients = reference(variant.quantity, inputs)
    off = 0.0
    for leaf, its in zip((inputs.hidden_TD, inputs.head_VD), right_gradients, strict=True):
        assert leaf.grad is not None
        off = max(off, float((leaf.grad.double() - its).norm() / its.norm()))
    return {"value_off": abs(float(found.double() / right) - 1), "gradient_off": off}


def measure(name: str, size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    variant = VARIANTS[name]
    # What importing and starting takes is not the loss's memory.
    step(variant.loss, inputs_of((8, size[1], 4 * arguments.k), dtype, arguments), dtype)
    torch.compiler.reset()
    inputs = inputs_of(size, dtype, arguments)
    before = peak_bytes(arguments.device)
    step(variant.loss, inputs, dtype)
    found = {"bytes": peak_bytes(arguments.device) - before, **deviations(variant, size, dtype, arguments)}
    torch.compiler.reset()
    pairs = []
    for turn in range(arguments.repetitions + 1):  # the first is a warm-up
        order = (VARIANTS[OWN].loss, variant.loss) if turn % 2 else (variant.loss, VARIANTS[OWN].loss)
        seconds = [step(loss, inputs, dtype)[0] for loss in order]
        pairs.append(seconds[::-1] if turn % 2 else seconds)
    ratios = [mine / own for mine, own in pairs[1:]]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    return {**found, "seconds": statistics.median(mine for mine, _ in pairs[1:]), "quartiles": quartiles}


def obstacle(variant: Variant, size: tuple[int, int, int], arguments: argparse.Namespace) -> str | None:
    """Why a variant cannot be run here."""
    if variant.package is not None and importlib.util.find_spec(variant.package) is None:
        return f"{variant.package} is not installed"
    if variant.kernel and arguments.device != "cuda":
        return "Triton kernels need CUDA"
    tokens, width, vocabulary = size
    logits = 4 * min(tokens, variant.tile[0]) * min(vocabulary, variant.tile[1])
    # Besides: student, teacher, and up to three arrays for the head's gradient.
    needed = variant.copies * logits + 4 * 2 * (tokens + vocabulary) * width + 4 * 3 * vocabulary * width
    if needed > 0.85 * (free := free_bytes(arguments.device)):
        return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return None


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def allowed_bytes(size: tuple[int, int, int], dtype: str) -> int:
    """One chunk of float32 logits, and the gradients in their own dtype."""
    tokens, width, vocabulary = size
    chunk = min(tokens, 1 << (CHUNK_ELEMENTS // vocabulary).bit_length() - 1)
    return 4 * chunk * vocabulary + (tokens + vocabulary) * width * DTYPES[dtype].itemsize


def goals(name: str, found: dict[str, Any], allowed: int) -> str:
    """Of ours: at most 1.02 of our cross-entropy's time where a signal is sparse; at most `allowed_bytes` everywhere."""
    if not name.startswith("limbeck"):
        return ""
    sparse = VARIANTS[name].quantity in ("kl topk", "kl sampled")
    timely = f"time {'held' if found['quartiles'][1] <= 1.02 else 'missed'}, " if sparse else ""
    return f"{timely}memory {found['bytes'] / allowed:.2f} of {allowed / 2**20:.0f} MiB"


def table(size: tuple[int, int, int], dtype: str, arguments: argparse.Namespace) -> None:
    print(f"\n**{size[0]} tokens, width {size[1]}, vocabulary {size[2]}, {dtype}, k={arguments.k}, {DRAWS} draws**\n")
    print("| loss | variant | ms | time / our CE | quartiles | peak MiB | peak / our CE | value off | gradient off | goals |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    own_bytes = float("nan")
    for name in arguments.variants:
        variant = VARIANTS[name]
        if (reason := obstacle(variant, size, arguments)) is not None:
            print(f"| {variant.quantity} | {name} | {reason} | | | | | | | |", flush=True)
            continue
        command = [sys.executable, *sys.argv, "--one", name, "x".join(map(str, size)), dtype]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"| {variant.quantity} | {name} | failed ({done.returncode}): {last} | | | | | | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        own_bytes = found["bytes"] if name == OWN else own_bytes
        low, middle, high = found["quartiles"]
        print(
            f"| {variant.quantity} | {name} | {found['seconds'] * 1e3:.0f} | {middle:.3f} | {low:.3f}-{high:.3f} "
            f"| {found['bytes'] / 2**20:.0f} | {found['bytes'] / own_bytes:.2f} | {found['value_off']:.1e} "
            f"| {found['gradient_off']:.1e} | {goals(name, found, allowed_bytes(size, dtype))} |",
            flush=True,
        )


def size_of(text: str) -> tuple[int, int, int]:
    tokens, width, vocabulary = map(int, text.split("x"))
    return tokens, width, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[(2048, 576, 49152)], metavar="TxDxV")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--check-tokens", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    compiling = "compile Liger's chunked losses, as is their default; on a CPU that takes a C++ compiler"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help=compiling)
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "SIZE", "DTYPE"), help="measure this one alone and print JSON")
    arguments = parser.parse_args()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if arguments.one:
        name, size, dtype = arguments.one
        print(json.dumps(measure(name, size_of(size), dtype, arguments)))
        return
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    for size in arguments.sizes:
        for dtype in arguments.dtypes:
            table(size, dtype, arguments)


if __name__ == "__main__":
    main()
