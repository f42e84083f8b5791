"""CPU seconds of a mixture's step: one grouped product a matrix against a loop over experts, and against a dense MLP.

A step is forward and backward of one MLP layer on the same tokens. The arms are the mixture as students have it; the same with
each expert's product made in a loop; and a dense MLP with as many channels as a token meets in the mixture, which costs the
same FLOPs but for the router. Arms take turns, one step each, so that a machine whose speed drifts slows them alike; ratios are
medians over the turns. Seconds are of the processor, over all threads, so that other processes don't count: use one thread.

    OMP_NUM_THREADS=1 python benchmarks/experts.py --experts 64 --per-token 8 --hidden 512 --size 256 --tokens 4096
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.spec.layout import ExpertsLayout, MlpLayout
from limbeck.students import experts as module
from limbeck.students.experts import Experts
from limbeck.students.mlp import Mlp


def looped_product(x_NI: Tensor, weight_EIO: Tensor, end_E: Tensor) -> Tensor:
    """The plain twin of `grouped_product`."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_NI.dtype
    ends = [0, *end_E.tolist()]
    return torch.cat([x_NI[a:b].to(dtype) @ weight.to(dtype) for a, b, weight in zip(ends, ends[1:], weight_EIO, strict=False)])


def step(layer: nn.Module, x_BTD: Tensor, *, dtype: torch.dtype, product: Callable[..., Tensor]) -> float:
    """CPU seconds of one forward and backward."""
    module.grouped_product = product
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = layer(x_BTD)
    y_BTD = output if isinstance(output, Tensor) else output.x_BTD
    y_BTD.float().square().mean().backward()
    return time.process_time() - started


def main() -> None:
    """Print the median CPU seconds of each arm and their ratios to the grouped one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--per-token", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--size", type=int, default=256, help="channels of an expert")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each arm, after one that is not")
    arguments = parser.parse_args()
    layout = ExpertsLayout(arguments.experts, arguments.per_token, MlpLayout("relu2", arguments.size), balance_weight=1e-4)
    mixture = Experts(layout, hidden_size=arguments.hidden)
    dense = Mlp(MlpLayout("relu2", arguments.per_token * arguments.size), hidden_size=arguments.hidden)
    for parameter in (*mixture.parameters(), *dense.parameters()):
        nn.init.normal_(parameter, std=0.02)
    grouped = module.grouped_product
    arms: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
        "grouped": (mixture, grouped),
        "loop": (mixture, looped_product),
        "dense": (dense, grouped),
    }
    x_BTD = torch.randn(2, arguments.tokens // 2, arguments.hidden, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(arguments.steps + 1):
            for arm, (layer, product) in arms.items():
                taken = step(layer, x_BTD, dtype=dtype, product=product)
                if turn:
                    seconds[arm].append(taken)
        for arm, taken_each in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(taken_each, seconds["grouped"], strict=True))
            print(f"{dtype!s:<15} {arm:<8} {statistics.median(taken_each):7.3f} s {ratio:6.2f} x grouped")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
