"""The spec of an OLMo-3 that Limbeck did not save, from its configuration."""

from pathlib import Path
from typing import Any

from transformers import Olmo3Config

from limbeck.errors import LimbeckError
from limbeck.spec.base import parse
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import Yarn


def olmo3_spec(config: Olmo3Config, folder: Path) -> Olmo3Student:
    """The student that a configuration describes.

    Where several values of `full_attention_every` give its layers (there are fewer layers than that), the spec holds the
    default, else the smallest; where none does, the layers one by one. `LimbeckError` where no student has such positions.
    """
    sliding, full = (config.rope_parameters[kind] for kind in ("sliding_attention", "full_attention"))
    if sliding["rope_type"] != "default" or sliding["rope_theta"] != full["rope_theta"]:
        raise LimbeckError(
            f"{folder} uses rotary positions {config.rope_parameters}: a student needs one theta, plain in its sliding layers"
        )
    values = {
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "tied_embeddings": config.tie_word_embeddings,
        "rope_theta": full["rope_theta"],
        "yarn": _yarn(full, folder),
        "rms_norm_eps": config.rms_norm_eps,
        "sliding_window": config.sliding_window,
        "init_std": config.initializer_range,
    }
    spec = parse(Olmo3Student, values, source=f"{folder}/config.json")
    for every in (spec.full_attention_every, *range(1, spec.num_layers + 2)):
        candidate = spec.model_copy(update={"full_attention_every": every})
        if candidate.kinds == tuple(config.layer_types):
            return candidate
    return parse(Olmo3Student, {**values, "layer_types": tuple(config.layer_types)}, source=f"{folder}/config.json")


def _yarn(rope: dict[str, Any], folder: Path) -> Yarn | None:
    if rope["rope_type"] == "default":
        return None
    yarn = None
    if rope["rope_type"] == "yarn":
        values = {
            "factor": rope.get("factor"),
            "original_length": rope.get("original_max_position_embeddings"),
            "beta_fast": rope.get("beta_fast") or 32.0,
            "beta_slow": rope.get("beta_slow") or 1.0,
        }
        yarn = parse(Yarn, values, source=f"{folder}/config.json")
    if yarn is None or rope.get("attention_factor") not in (None, yarn.attention_factor):
        raise LimbeckError(f"{folder} uses rotary positions {rope}: a student knows plain ones, and YaRN with its own factor")
    return yarn
