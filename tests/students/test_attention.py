"""The sum of attention against itself written out, by both backends; and the layer around it."""

import math

import pytest
import torch
from plain_attention import attend_reference, flex_uncompiled
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from limbeck.spec.layout import AttentionLayout
from limbeck.spec.parts import Rope
from limbeck.students.attend import attend, visible
from limbeck.students.attention import Attention, AttentionInput
from limbeck.students.positions import plane_turn

ROWS, LENGTH, CHANNELS = 2, 9, 4
CPU = torch.device("cpu")
SEGMENTS_BT = torch.tensor([[3, 3, 3, 1, 1, 1, 1, 8, 8], [0] * 9])
HEADS = [(4, 4), (4, 2), (6, 1)]


def queries_keys_values(heads: int, kv_heads: int, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """And sinks. Values of the size that makes attention sharp."""
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)
    shapes = ((ROWS, heads, LENGTH, CHANNELS), *[(ROWS, kv_heads, LENGTH, CHANNELS)] * 2, (heads,))
    return tuple((1.5 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes)


def by(backend, *, q, k, v, sink_H=None, window=None, segments_BT=None) -> Tensor:
    sees = visible(
        length=q.shape[2],
        past=0,
        window=window,
        segments_BT=segments_BT,
        sinks=sink_H is not None,
        device=q.device,
        backend=backend,
    )
    assert isinstance(sees, BlockMask) == (backend == "flex")
    return attend(q, k, v, sees=sees, sink_H=sink_H)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_both_backends_are_attention_written_out(heads, sinks, window, documents):
    q, k, v, sink_H = queries_keys_values(*heads)
    inputs = (q, k, v, sink_H) if sinks else (q, k, v)
    given = {"window": window, "segments_BT": SEGMENTS_BT if documents else None, "sink_H": sink_H if sinks else None}
    exact, found = attend_reference(q, k, v, **given), by("sdpa", q=q, k=k, v=v, **given)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    towards = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    gradients = torch.autograd.grad((found * towards).sum(), inputs)
    for mine, theirs in zip(gradients, torch.autograd.grad((exact * towards).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
    with flex_uncompiled():
        detached = {"q": q.detach(), "k": k.detach(), "v": v.detach(), **given}
        if sinks:
            detached["sink_H"] = sink_H.detach()
        torch.testing.assert_close(by("flex", **detached), exact, rtol=0, atol=1e-5)  # its log-sum-exp is float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_flex_trains_as_sdpa_does(heads, sinks, window, documents):
    generator = torch.Generator("cuda").manual_seed(0)
    length, channels = 300, 64
    shapes = ((2, heads[0], length, channels), *[(2, heads[1], length, channels)] * 2, (heads[0],))
    q, k, v, sink_H = (torch.randn(shape, device="cuda", generator=generator).requires_grad_() for shape in shapes)
    inputs = (q, k, v, sink_H) if sinks else (q, k, v)
    segments_BT = (torch.arange(length, device="cuda") // torch.tensor([[90], [130]], device="cuda")) if documents else None
    given = {"window": window, "segments_BT": segments_BT, "sink_H": sink_H if sinks else None}
    towards = torch.randn(q.shape, device="cuda", generator=generator)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    exact = by("sdpa", q=wide[0], k=wide[1], v=wide[2], **{**given, "sink_H": wide[3] if sinks else None})
    exact_gradients = torch.autograd.grad((exact * towards).sum(), wide)
    found = by("flex", q=q, k=k, v=v, **given)
    # The kernel multiplies float32 by TF32, ten bits of significand.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-3)
    for mine, theirs in zip(torch.autograd.grad((found * towards).sum(), inputs), exact_gradients, strict=True):
        assert (mine - theirs).norm() < 5e-3 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_flex_on_cuda_where_a_mask_is_needed():
    device = torch.device("cuda")
    common = {"length": 256, "past": 0, "sinks": False, "device": device}
    assert visible(window=None, segments_BT=None, **common) is None
    assert isinstance(visible(window=100, segments_BT=None, **common), BlockMask)
    segments_BT = torch.zeros(1, 256, dtype=torch.int64, device=device)
    assert isinstance(visible(window=None, segments_BT=segments_BT, **common), BlockMask)


def test_no_mask_is_built_where_plain_attention_says_the_same():
    common = {"segments_BT": None, "device": CPU}
    for sinks in (False, True):
        assert visible(length=9, past=0, window=None, sinks=sinks, **common) is None
        assert visible(length=9, past=0, window=9, sinks=sinks, **common) is None
        assert visible(length=1, past=8, window=9, sinks=sinks, **common) is None
        assert visible(length=9, past=0, window=8, sinks=sinks, **common) is not None
        assert visible(length=1, past=9, window=9, sinks=sinks, **common) is not None
        assert visible(length=2, past=7, window=None, sinks=sinks, **common) is not None


LONG = 700
CUTS = {
    "one document": [LONG],
    "at the ends of blocks": [128, 256, 128, 188],
    "within blocks": [1, 126, 2, 300, 271],
    "many": [10] * 70,
}


@pytest.mark.parametrize("length", [LONG, 640, 129, 128, 1])
@pytest.mark.parametrize("window", [None, 1, 2, 127, 128, 129, 130, 383, 384, 500])
def test_blocks_are_those_that_torch_finds_pair_by_pair(length, window):
    """`create_block_mask` looks at all T x T pairs: the same blocks, told apart alike, in the same order."""
    documents = [torch.arange(len(cuts)).repeat_interleave(torch.tensor(cuts)) for cuts in CUTS.values()]
    segments_BT = (7 - torch.stack(documents))[:, :length]
    reach = length if window is None else window

    def sees(b, h, query, key):
        return (key <= query) & (query - key < reach) & (segments_BT[b, query] == segments_BT[b, key])

    common = {"length": length, "past": 0, "window": window, "sinks": False, "device": CPU, "backend": "flex"}
    for given, rows in ((segments_BT, len(CUTS)), (None, 1)):
        found = visible(segments_BT=given, **common)
        exact = create_block_mask(sees, B=rows, H=None, Q_LEN=length, KV_LEN=length, device="cpu")
        assert found.shape == exact.shape and found.seq_lengths == exact.seq_lengths
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
            assert torch.equal(getattr(found, name), getattr(exact, name)), name
            assert getattr(found, name).dtype == getattr(exact, name).dtype == torch.int32


@pytest.mark.parametrize("new", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("sinks", [False, True])
def test_new_queries_see_cached_keys(sinks, window, new):
    q, k, v, sink_H = queries_keys_values(4, 2)
    given = sink_H if sinks else None
    sees = visible(length=new, past=LENGTH - new, window=window, segments_BT=None, sinks=sinks, device=CPU)
    exact = attend_reference(q, k, v, window=window, sink_H=given)[:, :, -new:]
    torch.testing.assert_close(attend(q[:, :, -new:], k, v, sees=sees, sink_H=given), exact, rtol=0, atol=1e-12)


def test_blocks_of_a_window_grow_with_the_length_alone():
    """And are worked out once. A window of 100 lies in two blocks of 128 keys, the whole triangle in half of them."""
    common = {"past": 0, "segments_BT": None, "sinks": False, "device": CPU, "backend": "flex"}
    narrow, whole = (visible(length=1024, window=window, **common) for window in (100, None))
    assert narrow.kv_num_blocks.sum() + narrow.full_kv_num_blocks.sum() == 1 + 7 * 2
    assert whole.kv_num_blocks.sum() + whole.full_kv_num_blocks.sum() == 8 * 9 // 2
    assert visible(length=1024, window=100, **common) is narrow
    assert visible(length=1024, window=101, **common) is not narrow


def layer(qk_norm: str, **changes) -> Attention:
    layout = AttentionLayout(num_heads=4, num_kv_heads=2, head_dim=6, positions=Rope(theta=100.0), qk_norm=qk_norm, **changes)
    attention = Attention(layout, hidden_size=10, eps=1e-3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 - 0.7)
    return attention


def turned(x_BHTh: Tensor) -> Tensor:
    """RoPE at theta = 100 over six channels, by complex numbers."""
    rate_p = torch.tensor([100.0 ** (-i / 3) for i in range(3)], dtype=torch.float64)
    angle_Tp = torch.arange(x_BHTh.shape[2], dtype=torch.float64)[:, None] * rate_p
    z = torch.complex(x_BHTh[..., :3], x_BHTh[..., 3:]) * torch.polar(torch.ones_like(angle_Tp), angle_Tp)
    return torch.cat([z.real, z.imag], -1)


def turn(length: int):
    rate_p = torch.tensor([1.0, 100.0 ** (-1 / 3), 100.0 ** (-2 / 3)], dtype=torch.float64)
    return plane_turn(torch.arange(length)[None], rate_p)


@pytest.mark.parametrize("qk_norm", ["none", "projection", "head", "gain"])
def test_a_layer_is_its_formula(qk_norm):
    attention = layer(qk_norm)
    x_BTD = torch.randn(2, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def normed(x: Tensor, norm) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1.0 if norm.weight is None else norm.weight)

    q, k, v = (x_BTD @ each.weight.T for each in (attention.q_proj, attention.k_proj, attention.v_proj))
    if qk_norm == "projection":
        q, k = normed(q, attention.q_norm), normed(k, attention.k_norm)
    q, k, v = (each.view(2, 7, -1, 6).transpose(1, 2) for each in (q, k, v))
    if qk_norm in ("head", "gain"):
        q, k = normed(q, attention.q_norm), normed(k, attention.k_norm)
    if qk_norm == "gain":
        q = q * attention.q_gain_H.view(1, 4, 1, 1)
    y = attend_reference(turned(q), turned(k), v).transpose(1, 2).reshape(2, 7, 24)
    torch.testing.assert_close(
        attention(x_BTD, AttentionInput(turn(7), None)), y @ attention.o_proj.weight.T, rtol=0, atol=1e-12
    )
    weighted = {"projection": (24, 12), "head": (6, 6), "none": (), "gain": ()}[qk_norm]
    norms = [name for name, _ in attention.named_parameters() if "norm" in name]
    assert len(norms) == len(weighted)
    if qk_norm == "projection" or qk_norm == "head":
        assert (len(attention.q_norm.weight), len(attention.k_norm.weight)) == weighted


def test_weightless_norms_bound_the_logits():
    """|q k| h**-0.5 <= gain sqrt(h): at equal queries and keys of a long input it is reached."""
    attention = layer("gain")
    with torch.no_grad():
        attention.k_proj.weight.copy_(attention.q_proj.weight[:12])
    x_BTD = 1e4 * torch.randn(1, 1, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k = attention._queries_and_keys(x_BTD, turn(1))
    logit_H = (q[:, :2] * k).sum(-1).flatten() / math.sqrt(6)
    torch.testing.assert_close(logit_H, attention.q_gain_H[:2] * math.sqrt(6), rtol=1e-6, atol=0)


def test_value_embeddings_are_added_to_values():
    attention = layer("head", value_embedding=True)
    x_BTD = torch.randn(1, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value_BTC = torch.randn(1, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    changed = attention(x_BTD, AttentionInput(turn(5), None, value_BTC))
    plain = attention(x_BTD, AttentionInput(turn(5), None, torch.zeros_like(value_BTC)))
    # Attention is linear in its values, and at position 0 it is the value.
    added_0 = (attention.value_scale * value_BTC[:, 0]).view(1, 2, 6).repeat_interleave(2, 1).flatten(1)
    torch.testing.assert_close((changed - plain)[:, 0], added_0 @ attention.o_proj.weight.T, rtol=0, atol=1e-12)
