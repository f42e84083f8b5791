"""Random models small enough to be read in milliseconds, some with layers that do nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 300


def llama(*, layers: int = 4, idle: Sequence[int] = (), seed: int = 0, **changes: Any) -> Any:
    """A Llama of 32 channels whose layers at `idle` add nothing to what they read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval().requires_grad_(False)
    for place in idle:
        model.model.layers[place].self_attn.o_proj.weight.zero_()
        model.model.layers[place].mlp.down_proj.weight.zero_()
    return model


def random_rows(count: int = 6, *, length: int = 24, seed: int = 1) -> list[Tensor]:
    """Rows of token ids [T]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for _ in range(count)]


@torch.no_grad()
def written_rows(model: Any, count: int = 6, *, length: int = 24) -> list[Tensor]:
    """Rows [T] drawn from the model itself: no other model expects them better."""
    generator = torch.Generator().manual_seed(2)
    token_BT = torch.randint(VOCABULARY, (count, 1), generator=generator)
    for _ in range(length - 1):
        probs_BV = model(input_ids=token_BT, use_cache=False).logits[:, -1].softmax(-1)
        token_BT = torch.cat([token_BT, torch.multinomial(probs_BV, 1, generator=generator)], 1)
    return list(token_BT)
