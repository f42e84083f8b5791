"""Importance by forward passes alone, as Minitron has it (arXiv 2407.14679; NVIDIA Model-Optimizer, `mcore_minitron.py`).

What a hook sees, X of shape [sequences b, positions s, channels c], becomes one score a channel:
sqrt(sum_b (mean_s |X_bsc|)^2), the mean before the square. Hooked are

* what attention and the MLP of each layer read, that is the outputs of the norms before them, or, where norms stand after the
  branches, the residual stream itself: the scores of hidden channels;
* what the last matrix of an MLP reads: neurons; of all experts of a layer together: neurons of experts;
* what attention's output projection reads: per channel, then the L2 norm over the channels of a query head, or of a group.

An expert's score is the mean length, over the tokens that visit it, of what it adds to them, the router's weight included. A
layer's influence is 1 - mean cos(input, output), over positions (ShortGPT, arXiv 2403.03853), of the whole layer, in float32.
Each norm's mean squares are kept for the fix-up (`limbeck.surgery.cut`).

Rows are full, so nothing is padding. Sums are float32 at least. Shapes: B rows, T positions, C channels, N = B T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.compute import autocast, pick_dtype
from limbeck.errors import SpecError
from limbeck.progress import progress
from limbeck.surgery.anatomy import Anatomy, anatomy_of
from limbeck.surgery.expert_outputs import chosen, expert_output
from limbeck.surgery.scores import Scores

BATCH_TOKENS = 2048


@torch.no_grad()
def measure_importance(model: Any, rows: Sequence[Tensor], *, dtype: torch.dtype | None = None) -> Scores:
    """The scores of a causal language model over rows of token ids (int64, each [T]), on the device where the model is.

    `dtype` is that of matrix products; None: of a float32 model what is fastest here, of any other its own. The model is in
    evaluation mode afterwards. `SpecError` where it is not recognised, there are no rows, or scores are not finite.
    """
    if not rows:
        raise SpecError("student.prune.calibration: there are no rows to measure importance on")
    anatomy = anatomy_of(model.eval())
    device = anatomy.head.device
    dtype = dtype or products_dtype(device, held=anatomy.head.dtype)
    recorder = _Recorder(anatomy)
    with recorder.attached(), progress("importance", total=sum(len(row) for row in rows)) as advance:
        for token_BT in _batches(rows):
            recorder.rows = len(token_BT)
            with autocast(dtype, device):
                model.base_model(input_ids=token_BT.to(device), use_cache=False)
            advance(token_BT.numel(), note=f"of {sum(len(row) for row in rows):,} tokens")
    scores = recorder.scores(tokens=sum(len(row) for row in rows))
    _require_finite(scores)
    return scores


def products_dtype(device: torch.device, *, held: torch.dtype = torch.float32) -> torch.dtype:
    """That importance is measured in where nothing else is said, of a model that is held in `held`; float32: its own."""
    return pick_dtype("auto", device) if held == torch.float32 else torch.float32


def _batches(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Neighbours of one length, about `BATCH_TOKENS` at a time."""
    for length, same in groupby(rows, key=len):
        stacked_RT = torch.stack(list(same)).long()
        yield from stacked_RT.split(max(BATCH_TOKENS // length, 1))


class _Recorder:
    """Running sums, one tensor a hook, on the model's device."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.rows = 0
        """Of the batch that is being read."""
        self.sums: dict[str, Tensor] = {}
        self._entered: dict[int, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """To the sum of that name."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the model's forward passes are recorded."""
        handles = [handle for layer in range(self.anatomy.sizes.num_layers) for handle in self._hooks(layer)]
        for name in self.anatomy.norms:
            handles.append(_on_input(self.anatomy.model.get_submodule(name), self._squares(f"mean_squares.{name}")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, layer: int) -> Iterator[Any]:
        anatomy = self.anatomy
        hooked = {
            f"hidden.{2 * layer}": anatomy.attention(layer),
            f"hidden.{2 * layer + 1}": anatomy.mlp(layer),
            f"heads.{layer}": anatomy.o_proj(layer),
            f"neurons.{layer}": anatomy.down_proj(layer),
            f"shared.{layer}": anatomy.shared_down_proj(layer),
        }
        for name, module in hooked.items():
            if module is not None:
                yield _on_input(module, self._means(name))
        block, router = anatomy.layers[layer], anatomy.router(layer)
        yield _on_input(block, lambda x_BTD: self._entered.update({layer: x_BTD}))
        yield block.register_forward_hook(lambda module, inputs, output: self._leave(layer, output))
        if router is not None:
            yield router.register_forward_hook(lambda module, inputs, output: self._route(layer, inputs[0], output))

    def _means(self, name: str) -> Any:
        def add(x_BTC: Tensor) -> None:
            self.add(name, _wide(x_BTC).abs().mean(1).square().sum(0))

        return add

    def _squares(self, name: str) -> Any:
        def add(x_BTC: Tensor) -> None:
            self.add(name, _wide(x_BTC).flatten(0, -2).square().sum(0))

        return add

    def _leave(self, layer: int, output: Any) -> None:
        y_BTD = getattr(output, "x_BTD", None)
        if y_BTD is None:
            y_BTD = output[0] if isinstance(output, tuple) else output
        cosine_BT = F.cosine_similarity(_wide(self._entered.pop(layer)), _wide(y_BTD), dim=-1)
        self.add(f"cosine.{layer}", cosine_BT.double().sum())

    def _route(self, layer: int, x_ND: Tensor, routed: Any) -> None:
        """Every expert's tokens once more: the fused products give no hold on one expert."""
        expert_Nk, gate_Nk = chosen(routed)
        experts, sizes = self.anatomy.experts(layer), self.anatomy.sizes
        assert sizes.num_experts is not None and sizes.expert_size is not None
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        length_E, routed_E = (torch.zeros(sizes.num_experts, dtype=wide, device=x_ND.device) for _ in range(2))
        inner_BF = torch.zeros(self.rows, sizes.expert_size, dtype=wide, device=x_ND.device)
        for expert in range(sizes.num_experts):
            token_M, place_M = torch.where(expert_Nk == expert)
            inner_MF, out_MD = expert_output(experts, expert, x_ND[token_M])
            length_M = _wide(out_MD).norm(dim=-1) * gate_Nk[token_M, place_M].to(wide).abs()
            length_E[expert], routed_E[expert] = length_M.sum(), len(token_M)
            inner_BF.index_add_(0, token_M // (len(x_ND) // self.rows), _wide(inner_MF).abs())
        self.add(f"experts.{layer}", length_E)
        self.add(f"routed.{layer}", routed_E)
        self.add(f"expert_neurons.{layer}", (inner_BF / (expert_Nk.numel() // self.rows)).square().sum(0))

    def scores(self, *, tokens: int) -> Scores:
        """Of all that was read."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        sizes, layers = self.anatomy.sizes, range(self.anatomy.sizes.num_layers)
        nothing = torch.zeros(0)

        def by_layer(name: str) -> tuple[Tensor, ...]:
            return tuple(sums.get(f"{name}.{layer}", nothing) for layer in layers)

        channels_Hh = [squares.unflatten(0, (sizes.num_heads, sizes.head_dim)) for squares in by_layer("heads")]
        routed = by_layer("routed")
        return Scores(
            tokens=tokens,
            hidden_HD=torch.stack([sums[f"hidden.{hook}"].sqrt() for hook in range(2 * len(layers))]),
            neurons=tuple(squares.sqrt() for squares in by_layer("neurons")),
            shared=tuple(squares.sqrt() for squares in by_layer("shared")),
            heads=tuple(squares_Hh.sum(1).sqrt() for squares_Hh in channels_Hh),
            groups=tuple(squares_Hh.sum(1).unflatten(0, (sizes.num_kv_heads, -1)).sum(1).sqrt() for squares_Hh in channels_Hh),
            experts=tuple(length_E / (count_E + 1e-8) for length_E, count_E in zip(by_layer("experts"), routed, strict=True)),
            routed=routed,
            expert_neurons=tuple(squares.sqrt() for squares in by_layer("expert_neurons")),
            influence_L=torch.stack([1 - sums[f"cosine.{layer}"] / tokens for layer in layers]),
            mean_squares={name: sums[f"mean_squares.{name}"] / tokens for name in self.anatomy.norms},
        )


def _require_finite(scores: Scores) -> None:
    """What is no number would be sorted before the best."""
    for name in (each.name for each in fields(scores) if each.name not in ("tokens", "mean_squares")):
        found = getattr(scores, name)
        for x in [found] if isinstance(found, Tensor) else found:
            if not x.isfinite().all():
                raise SpecError(
                    f"student.prune.calibration: the model's activations are no finite numbers (scores of {name}): check its "
                    "weights, or name other texts"
                )


def _on_input(module: nn.Module, see: Any) -> Any:
    """Let `see` have what the module reads, however it is handed over."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(inputs[0] if inputs else named["hidden_states"])

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
