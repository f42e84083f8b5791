"""How many parameters each part of a student has, and which of them a token touches, from the layout alone.

Three numbers say it all: those of tables that are looked up and of the head (`embeddings`), those that every token passes
(`touched`), and those of experts that a token isn't sent to (`untouched`). A table of hashed pairs or of value embeddings is
looked up as the input embedding is, so it is counted with it: outside the embeddings are the parameters that cost a product.

The decoder (`limbeck.students.decoder`) has exactly these parameters; the biases that balance experts are state, none of them.
D hidden size, V vocabulary, H query heads, K key/value heads, h channels of a head, E experts.
"""

from limbeck.spec.layout import AttentionLayout, ExpertsLayout, LayerLayout, Layout, MlpLayout
from limbeck.spec.parts import Activation, GrapeM, Positions


def embeddings(layout: Layout, *, vocab_size: int) -> int:
    """Of everything that is looked up by tokens, and of the head where it isn't tied."""
    matrices = (1 if layout.tied_embeddings else 2) * vocab_size * layout.hidden_size
    pairs = 0 if layout.bigram is None else layout.bigram.buckets * layout.bigram.size
    values = 0 if layout.value_embedding is None else vocab_size * layout.value_embedding
    return matrices + pairs + values


def touched(layout: Layout) -> int:
    """Outside the embeddings: what one token passes."""
    last_and_first = (2 if layout.embedding_norm else 1) * _norm(layout)
    return sum(_layer(layer, layout) for layer in layout.layers) + last_and_first + _added_to_embeddings(layout)


def untouched(layout: Layout) -> int:
    """The experts that one token isn't sent to."""
    mixtures = [layer.mlp for layer in layout.layers if isinstance(layer.mlp, ExpertsLayout)]
    return sum((each.num_experts - each.per_token) * _mlp(each.expert, layout) for each in mixtures)


def _norm(layout: Layout) -> int:
    return layout.hidden_size if layout.norm_weights else 0


def _added_to_embeddings(layout: Layout) -> int:
    """Projections and scales of tables, gates and skips."""
    size, count = layout.hidden_size, 0
    if layout.bigram is not None:
        count += layout.bigram.size * size + 1
    if layout.value_embedding is not None:
        using = next(layer.attention for layer in layout.layers if layer.attention.value_embedding)
        count += layout.value_embedding * using.num_kv_heads * using.head_dim + 1
    count += size if layout.smear else 0
    return count + (len(layout.layers) // 2 * size if layout.skips else 0)


def _layer(layer: LayerLayout, layout: Layout) -> int:
    """Attention, MLP or the experts of a token, a norm for either, and factors of the block's inputs and branches."""
    attention, mlp = layer.attention, layer.mlp
    products = _attention(attention, layout) + (
        _experts_of_a_token(mlp, layout) if isinstance(mlp, ExpertsLayout) else _mlp(mlp, layout)
    )
    return products + 2 * _norm(layout) + (4 * layout.hidden_size if layer.branch_scales else 0)


def _attention(attention: AttentionLayout, layout: Layout) -> int:
    heads, kv_heads, channels = attention.num_heads, attention.num_kv_heads, attention.head_dim
    projections = 2 * (heads + kv_heads) * channels * layout.hidden_size
    norms = {"none": 0, "projection": (heads + kv_heads) * channels, "head": 2 * channels, "gain": heads}[attention.qk_norm]
    extras = (heads if attention.sinks else 0) + (1 if attention.value_embedding else 0)
    return projections + norms + extras + _positions(attention.positions, attention, layout)


def _positions(positions: Positions, attention: AttentionLayout, layout: Layout) -> int:
    """Rates of GRAPE-M, with the step that a token takes, or two vectors that span a plane for each key/value head."""
    if not isinstance(positions, GrapeM):
        return 0
    rates = attention.head_dim // 2
    return {
        "frequencies": rates,
        "contextual": rates + layout.hidden_size + 1,
        "rank2": 2 * attention.num_kv_heads * attention.head_dim,
    }[positions.form]


def _experts_of_a_token(experts: ExpertsLayout, layout: Layout) -> int:
    """The router, the chosen ones and the shared one."""
    router = experts.num_experts * layout.hidden_size
    of_all = 0 if experts.shared_mlp is None else _mlp(experts.shared_mlp, layout)
    return router + experts.per_token * _mlp(experts.expert, layout) + of_all


def _mlp(mlp: MlpLayout, layout: Layout) -> int:
    return _matrices(mlp.activation) * layout.hidden_size * mlp.size


def _matrices(activation: Activation) -> int:
    return 3 if activation == "swiglu" else 2
