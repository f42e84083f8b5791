"""Students that no class of transformers computes, as a class of transformers all the same: `LimbeckForCausalLM`.

`import limbeck.students.registered` registers it, once in a process; from then on `AutoModelForCausalLM.from_pretrained` and
`AutoConfig` open such folders as any other. No code lies in the folders, and none is run from them. The student's spec is in
config.json, parameters are named as in the student's own state dict but for `model.` being `model.body.`.

Generation remembers keys and values, and whatever else the student needs of the tokens before (`StudentCache`). Rows of a
batch that are padded are read without a cache. Positions that depend on the sequence's length change with every token past
`ntk_length`: there the whole sequence is read anew, which is exact and slow.

Shapes: B rows, T positions, S tokens so far, D hidden size, V vocabulary.
"""

from dataclasses import fields, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import Cache as TransformersCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from limbeck.spec.base import Spec, parse
from limbeck.spec.layout import Layout
from limbeck.spec.student import LaidOutStudent
from limbeck.students.cache import Cache, KeysValues
from limbeck.students.decoder import Body, Decoder
from limbeck.students.initialise import initialise


class _Saved(Spec):
    student: Annotated[LaidOutStudent, Field(discriminator="kind")]


def student_from(values: dict[str, Any], *, source: str) -> LaidOutStudent:
    """The spec in a configuration; `SpecError` where it is none."""
    return parse(_Saved, {"student": values}, source=source).student


class LimbeckConfig(PreTrainedConfig):
    """The student's spec, and what transformers asks of any model. Sizes follow from the spec."""

    model_type = "limbeck"
    keys_to_ignore_at_inference = ("past_key_values",)

    student: dict[str, Any] | None = None
    vocab_size: int = 0
    max_position_embeddings: int = 2048
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.student is not None:
            self.tie_word_embeddings = self.layout.tied_embeddings
        super().__post_init__(**kwargs)

    @property
    def layout(self) -> Layout:
        """Of the student."""
        return student_from(self.student or {}, source="config.json").layout

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.layout.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return len(self.layout.layers)

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a layer."""
        return self.layout.layers[0].attention.num_heads


class StudentCache(TransformersCache):
    """A student's cache with transformers' manners."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(layers=[])
        self.cache = cache
        self.tokens_BS: Tensor | None = None

    def read(self, token_BT: Tensor) -> Tensor:
        """Remember tokens, and return all."""
        self.tokens_BS = token_BT if self.tokens_BS is None else torch.cat([self.tokens_BS, token_BT], 1)
        return self.tokens_BS

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """S."""
        return 0 if self.tokens_BS is None else self.tokens_BS.shape[1]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row i becomes what row `beam_idx[i]` was."""
        self._each_row(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._each_row(lambda x: x[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._each_row(lambda x: x.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: what smearing and contextual positions remember cannot be taken back."""
        raise ValueError("a student's cache cannot forget its last tokens: generate without an assistant model")

    def _each_row(self, change: Any) -> None:
        def changed(part: Any) -> Any:
            found = {each.name: getattr(part, each.name) for each in fields(part)}
            return replace(part, **{name: change(value) for name, value in found.items() if isinstance(value, Tensor)})

        self.cache = replace(changed(self.cache), layers=[changed(layer) for layer in self.cache.layers])
        if self.tokens_BS is not None:
            self.tokens_BS = change(self.tokens_BS)


class LimbeckPreTrainedModel(PreTrainedModel):
    """What both classes have in common."""

    config_class = LimbeckConfig
    base_model_prefix = "model"
    _no_split_modules = ("Block",)
    _keep_in_fp32_modules_strict = ("router.bias", "shared_share", "positions")
    """GRAPE's 16 ln(rate) among them: at 16 ln(1/10000) = -147 the last bit of bfloat16 is 6 % of the rate."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the constructor initialises what isn't loaded."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class LimbeckModel(LimbeckPreTrainedModel):
    """Everything but the head."""

    def __init__(self, config: LimbeckConfig, body: Body | None = None) -> None:
        super().__init__(config)
        self.body = _decoder(config).model if body is None else body
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.body.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace it."""
        self.body.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StudentCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm. `attention_mask` is BT (BS with a cache), 0 for padding; only without a cache."""
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("a Limbeck student reads input_ids: its embeddings depend on which tokens they are of")
        cache = past_key_values
        if cache is None and use_cache:
            cache = StudentCache(Cache([KeysValues() for _ in self.body.layers]))
        padded = attention_mask is not None and not bool(attention_mask.all())
        if padded and cache is not None:
            raise ValueError(
                "rows of several lengths cannot share a student's cache: pass use_cache=False, or one row at a time"
            )
        segments_BT = attention_mask.long() if padded and attention_mask is not None else None
        if cache is None:
            return BaseModelOutputWithPast(self.body(input_ids, position_ids, segments_BT, None).hidden_BTD)
        tokens_BS = cache.read(input_ids)
        exact = self.body.layout.exact_length
        if exact is not None and tokens_BS.shape[1] > exact:
            hidden_BTD = self.body(tokens_BS, None, None, None).hidden_BTD[:, -input_ids.shape[1] :]
        else:
            hidden_BTD = self.body(input_ids, position_ids, None, cache.cache).hidden_BTD
        return BaseModelOutputWithPast(hidden_BTD, past_key_values=cache)


class LimbeckForCausalLM(LimbeckPreTrainedModel, GenerationMixin):
    """A student with its head. `labels` give the plain cross-entropy; nothing balances experts here."""

    _tied_weights_keys = {"lm_head.weight": "model.body.embed_tokens.weight"}  # noqa: RUF012 - transformers reads a dict

    def __init__(self, config: LimbeckConfig) -> None:
        super().__init__(config)
        decoder = _decoder(config)
        self.model = LimbeckModel(config, decoder.model)
        self.softcap = decoder.softcap
        self.lm_head = decoder.lm_head or nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StudentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits under the softcap, [B, T, V], or of the last `logits_to_keep` positions."""
        read = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(read.last_hidden_state[:, kept])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=read.past_key_values)


def around(decoder: Decoder, spec: LaidOutStudent) -> LimbeckForCausalLM:
    """The very modules of a student, any family's, as a model of transformers that can generate; nothing is copied."""
    with torch.device("meta"):
        model = LimbeckForCausalLM(LimbeckConfig(student=spec.model_dump(mode="json"), vocab_size=len(decoder.head_VD)))
    model.model.body = decoder.model
    model.lm_head.weight = decoder.head_VD
    return model


def _decoder(config: LimbeckConfig) -> Decoder:
    """Initialised with a seed of torch's own generator; where weights are to be loaded, empty on the meta device."""
    decoder = Decoder(config.layout, vocab_size=config.vocab_size)
    if not decoder.head_VD.is_meta:
        initialise(decoder, seed=int(torch.randint(2**31, ())))
    return decoder


AutoConfig.register("limbeck", LimbeckConfig)
AutoModel.register(LimbeckConfig, LimbeckModel)
AutoModelForCausalLM.register(LimbeckConfig, LimbeckForCausalLM)
