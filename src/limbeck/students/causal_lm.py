"""Hugging Face causal language models as teachers and students both meet them: loading, the body, the head.

The body (`base_model`) ends after the final norm. The head is a matrix, after which a few architectures scale the logits
(Cohere, Granite, Falcon-H1) or cap them (Gemma 2). Shapes: B rows, T positions, V vocabulary, E width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.errors import LimbeckError, first_line

PROBE_TOKENS = 8
PROBE_SCALE = 64.0
PLAIN_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class Head:
    """How logits are made: softcap * tanh(scale * hidden @ weight.T / softcap), or without a softcap what stands inside."""

    weight_VE: Tensor
    scale: float
    softcap: float | None

    @property
    def is_plain(self) -> bool:
        """Whether logits are the product and nothing more."""
        return self.scale == 1 and self.softcap is None

    def logits(self, hidden: Tensor, *, enlarged: float = 1.0) -> Tensor:
        """Float32, of hidden states whose product with the matrix is `enlarged`."""
        logits = torch.nn.functional.linear(hidden, self.weight_VE).float() * (enlarged * self.scale)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@contextmanager
def transformers_quiet(what: str, *, error: type[LimbeckError]) -> Iterator[None]:
    """Without transformers' progress bar; what it raises becomes an `error` of one line that begins with `what`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as found:
        reason = first_line(found) or type(found).__name__
        raise error(f"{what}: {reason}") from found
    finally:
        logging.enable_progress_bar()


@torch.no_grad()
def head_of(model: Any) -> Head | None:
    """The head by what the configuration states, if a probe shows that the logits are made so; None where they are not.

    The head's output is enlarged for the probe, because a soft cap is all but linear for small logits.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in PLAIN_DTYPES or getattr(head, "bias", None) is not None:
        return None
    probe_BT = torch.arange(1, PROBE_TOKENS + 1, device=weight.device)[None]
    found = {enlarged: _probe(model, head, probe_BT, enlarged=enlarged) for enlarged in (1.0, PROBE_SCALE)}
    hidden = model.base_model(input_ids=probe_BT, use_cache=False).last_hidden_state
    rounding = 1e-4 if weight.dtype == torch.float32 else 1e-2
    for scale, softcap in _stated(model.config.get_text_config()):
        candidate = Head(weight.detach(), scale, softcap)
        expected = {enlarged: candidate.logits(hidden, enlarged=enlarged) for enlarged in found}
        if all(_close(found[enlarged], expected[enlarged], rounding=rounding) for enlarged in found):
            return candidate
    return None


def _probe(model: Any, head: Any, probe_BT: Tensor, *, enlarged: float) -> Tensor:
    """The model's logits where the product with the head's matrix is so much larger."""
    hook = head.register_forward_hook(lambda module, inputs, output: output * enlarged)
    try:
        logits: Tensor = model(input_ids=probe_BT, use_cache=False).logits.float()
    finally:
        hook.remove()
    return logits


def _close(found: Tensor, expected: Tensor, *, rounding: float) -> bool:
    # A damaged model is NaN both ways; it is reported with document and position when it reads.
    tolerance = rounding * float(expected.nan_to_num().abs().max())
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def _stated(config: Any) -> list[tuple[float, float | None]]:
    """Scales and softcaps that the configuration may mean, the plain head first."""
    divisor = getattr(config, "logits_scaling", None)  # Granite
    scales = [
        getattr(config, "logit_scale", None),  # Cohere
        getattr(config, "lm_head_multiplier", None),  # Falcon-H1
        1 / divisor if divisor else None,
    ]
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma
    known = dict.fromkeys([1.0, *(float(scale) for scale in scales if scale)])
    return list(product(known, dict.fromkeys([None, softcap])))
