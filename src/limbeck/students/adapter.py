"""LoRA and DoRA of a pretrained student, as peft has them: put beside its weights, taken out, merged.

With an adapter the model's own parameters are frozen; `also` names modules of which a trained copy stands beside the frozen
one. Embedding and head cannot be adapted where they are one matrix, for then merging would change both; the head cannot be
adapted by low rank at all, because losses read its matrix, but it may be trained in full.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.errors import LimbeckError, SpecError, first_line
from limbeck.spec.adapter import Adapter, DoRA


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter apart from its model: peft's configuration and its tensors by peft's names."""

    config: Any
    weights: dict[str, Tensor]

    def save(self, folder: Path) -> None:
        """A folder that `peft.PeftModel.from_pretrained(base model, folder)` opens."""
        self.config.save_pretrained(folder)
        save_file(self.weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def adapted(model: Any, adapter: Adapter, *, base: str, seed: int) -> Any:
    """The model with its parameters frozen and the adapter of that seed beside them, as a `peft.PeftModel`.

    `base` names the model in the adapter's configuration. torch's own generator is left alone. Raises `SpecError` where the
    model has no such modules, or cannot learn through them.
    """
    peft = _peft()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        modules_to_save=list(adapter.also) or None,
        use_dora=isinstance(adapter, DoRA),
    )
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    _check_names(model, adapter.also)
    _check_embeddings(model, adapter, tied=tied)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of peft 0.21 with transformers 5.23, about a name that is not ours.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.manual_seed(seed)
        try:
            found = peft.get_peft_model(model, config)
        except ValueError as error:
            raise SpecError(f"student.adapter does not fit the model: {first_line(error)}") from error
    found.peft_config["default"].base_model_name_or_path = base
    return found


def taken_out(model: Any) -> tuple[Any, TrainedAdapter]:
    """The model with the adapter merged into its weights, and the adapter; the `peft.PeftModel` is used up."""
    weights = _peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    config = model.peft_config["default"]
    config.inference_mode = True
    return model.merge_and_unload(), TrainedAdapter(config, kept)


def low_rank_layers(model: nn.Module) -> list[nn.Module]:
    """peft's layers, which drop out what they read while they are in training mode."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_adapted(model: Any) -> bool:
    """Whether an adapter stands beside the model's weights."""
    return hasattr(model, "peft_config")


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise LimbeckError("student.adapter needs the package peft: pip install 'limbeck[lora]'") from error
    return peft


def _check_names(model: Any, also: tuple[str, ...]) -> None:
    """Where a name is of no module, peft says nothing."""
    names = [name for name, _ in model.named_modules()]
    for each in also:
        if not any(name.endswith(each) for name in names):
            raise SpecError(f"student.adapter.also: the model has no module {each!r}")


def _check_embeddings(model: Any, adapter: Adapter, *, tied: bool) -> None:
    """Refuse to adapt the head by low rank, and anything of one matrix that is embedding and head."""
    targets = () if isinstance(adapter.targets, str) else adapter.targets
    head, embedding = (_name(model, module) for module in (model.get_output_embeddings(), model.get_input_embeddings()))

    def reached(name: str) -> list[str]:
        """As peft matches them."""
        by_rank = [each for each in targets if f".{name}".endswith(f".{each}")]
        return by_rank + [each for each in adapter.also if name.endswith(each)]

    if tied and (found := reached(head) + reached(embedding)):
        raise SpecError(f"student.adapter: {found[0]} cannot be adapted, since the model's embedding and head are one matrix")
    if any(each in targets for each in reached(head)):
        raise SpecError("student.adapter.targets: losses read the head's own matrix: train it with student.adapter.also")


def _name(model: Any, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
