"""Parameters against models built by transformers and by us, FLOPs against PyTorch's counter and a published table."""

import subprocess
import sys

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import TeacherError
from limbeck.plan.accounting import (
    Parameters,
    student_flops_per_token,
    student_parameters,
    teacher_flops_per_token,
    teacher_parameters,
    training_bytes,
    training_flops_per_token,
)
from limbeck.plan.teachers import catalogue, find
from limbeck.spec.student import Olmo3Student
from limbeck.students.olmo3 import Olmo3

NANO = Olmo3Student(hidden_size=768, num_layers=12, num_heads=6, num_kv_heads=2, head_dim=128, intermediate_size=2048)
NANO_VOCAB = 100_278


def test_the_nano_student_has_the_published_counts():
    expected = Parameters(total=229_555_968, embedding=154_027_008, non_embedding=75_528_960, active=229_555_968)
    assert student_parameters(NANO, vocab_size=NANO_VOCAB) == expected
    with torch.device("meta"):
        built = Olmo3(NANO, vocab_size=NANO_VOCAB)
    assert sum(parameter.numel() for parameter in built.parameters()) == expected.total
    assert training_bytes(NANO, vocab_size=NANO_VOCAB) == 3_672_895_488  # 16 bytes each


def test_a_tied_head_is_counted_once():
    tied = NANO.model_copy(update={"tied_embeddings": True})
    count = student_parameters(tied, vocab_size=NANO_VOCAB)
    assert (count.total, count.embedding, count.non_embedding) == (75_528_960 + 77_013_504, 77_013_504, 75_528_960)
    # The head's product is done all the same.
    flops = student_flops_per_token(tied, vocab_size=NANO_VOCAB, context=512)
    assert flops == student_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=512)


def counted_flops_per_token(student: Olmo3, length: int) -> float:
    tokens_BT = torch.zeros(2, length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        _ = student(tokens_BT) @ student.head_VD.T
    return counter.get_total_flops() / (2 * length)


@pytest.mark.parametrize(("window", "tied"), [(4096, False), (100, True)])
def test_flops_agree_with_pytorchs_counter(window, tied):
    """The counter prices all length**2 products of attention, we price the visible ones."""
    length = 512
    spec = NANO.model_copy(update={"sliding_window": window, "tied_embeddings": tied})
    with torch.device("meta"):
        student = Olmo3(spec, vocab_size=5000)
    channels = spec.num_heads * spec.head_dim
    index = torch.arange(length)
    distance = index[:, None] - index
    invisible_keys = 0.0
    for kind in spec.layer_types:
        limit = window if kind == "sliding_attention" else length
        invisible_keys += length - ((distance >= 0) & (distance < limit)).sum().item() / length
    expected = counted_flops_per_token(student, length) - 4 * channels * invisible_keys
    ours = student_flops_per_token(spec, vocab_size=5000, context=length)
    # Half a key of each layer and the norm weights: under 0.1 %.
    assert ours == pytest.approx(expected, rel=1e-3)


def test_flops_match_a_row_of_the_distillation_scaling_laws_table():
    """arXiv 2502.08606, Table 13, row 103M: 3.411e8 at context 4096 and vocabulary 32768, softmax (2.5 H context) included."""
    spec = Olmo3Student(
        hidden_size=1024,
        num_layers=8,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        intermediate_size=2816,
        tied_embeddings=True,
    )
    softmax = 2.5 * 16 * 4096 * 8
    assert student_flops_per_token(spec, vocab_size=32_768, context=4096) + softmax == pytest.approx(3.411e8, rel=3e-4)


def test_training_costs_three_forward_passes():
    forward = student_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=2048)
    assert training_flops_per_token(NANO, vocab_size=NANO_VOCAB, context=2048) == 3 * forward


DENSE = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "olmo": transformers.OlmoConfig,
    "olmo2": transformers.Olmo2Config,
    "olmo3": transformers.Olmo3Config,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}
SIZES = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 10, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_teachers_have_the_parameters_of_transformers_models(model_type):
    config = DENSE[model_type](**SIZES, intermediate_size=88, head_dim=16, pad_token_id=None)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    count = teacher_parameters(config.to_dict())
    assert (count.total, count.active) == (total, total)
    assert count.embedding == 97 * 64 * (1 if config.tie_word_embeddings else 2)
    assert count.embedding + count.non_embedding == total
    # Files often leave the field out where it has the family's default.
    silent = {key: value for key, value in config.to_dict().items() if key != "tie_word_embeddings"}
    assert teacher_parameters(silent) == count


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_teachers_slide_in_the_layers_that_transformers_says(model_type):
    """A config without `layer_types` is priced as the one that transformers completes it to."""
    config = DENSE[model_type](**SIZES, intermediate_size=88, head_dim=16, sliding_window=8).to_dict()
    types = config.pop("layer_types", None)
    inferred = teacher_flops_per_token(config, context=64)
    if types is not None:
        assert inferred == teacher_flops_per_token({**config, "layer_types": types}, context=64)
    sliding = {"mistral": 10, "olmo3": 8, "gemma2": 5, "gemma3_text": 9}.get(model_type, 0)
    full = teacher_flops_per_token({**config, "sliding_window": None}, context=64)
    # A window of 8 in 64 tokens: 7.5 keys instead of 32, at 4 FLOPs for each of 4 x 16 channels.
    assert full - inferred == sliding * 4 * 64 * (32 - 7.5)


@pytest.mark.parametrize("name", catalogue())
def test_catalogue_counts_agree_with_the_sizes(name):
    """The catalogue's counts come from transformers; counting from the sizes gives the same."""
    entry = catalogue()[name]
    declared = teacher_parameters(entry)
    assert declared.active <= declared.total == entry["total"]
    sizes = {key: value for key, value in entry.items() if key not in ("total", "active")}
    if name == "GLM-4.7-Flash":
        with pytest.raises(TeacherError, match=r"glm4_moe_lite.*'total' and 'active'"):
            teacher_parameters(sizes)
    else:
        biased = {"attention_bias": True} if entry["model_type"] == "gpt_oss" else {}
        assert teacher_parameters({**sizes, **biased}) == declared


def test_teacher_flops_follow_the_formula():
    """Qwen3-30B-A3B at 4096 tokens by hand: 3.353B active of which 0.622B embeddings, a head, 48 layers of 32 heads of 128."""
    entry = find("Qwen/Qwen3-30B-A3B")
    head = 151_936 * 2048
    by_hand = 2 * (3_353_032_704 - 2 * head) + 2 * head + 48 * 2 * 4096 * 32 * 128
    assert teacher_flops_per_token(entry, context=4096) == by_hand
    # gpt-oss: 12 of 24 layers see 128 keys, so most of the attention is in the other 12.
    oss = find("gpt-oss-20b")
    growth = teacher_flops_per_token(oss, context=8192) - teacher_flops_per_token(oss, context=4096)
    assert growth == pytest.approx(12 * 4 * 64 * 64 * 2048, rel=2e-3)
    # Latent attention: keys of 192 + 64 channels and values of 256, in 47 layers of 20 heads.
    glm = find("GLM-4.7-Flash")
    growth = teacher_flops_per_token(glm, context=8192) - teacher_flops_per_token(glm, context=4096)
    assert growth == 47 * 2 * 20 * (256 + 256) * 2048


def test_a_student_costs_what_its_saved_config_costs():
    config = transformers.Olmo3Config(
        vocab_size=NANO_VOCAB,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=2048,
        sliding_window=4096,
    ).to_dict()
    for context in (512, 16_384):
        assert teacher_flops_per_token(config, context=context) == student_flops_per_token(
            NANO, vocab_size=NANO_VOCAB, context=context
        )


def test_find_knows_names_and_hub_ids_in_any_case():
    assert find("allenai/olmo-3-1025-7b") == find("OLMO-3-7B") == catalogue()["Olmo-3-7B"]
    assert find("nobody/nothing") is None


def test_an_incomplete_config_is_named():
    with pytest.raises(TeacherError, match="'hidden_size'"):
        teacher_parameters({"model_type": "llama", "vocab_size": 10})


def test_accounting_does_not_import_torch():
    code = "import sys, limbeck.plan.accounting, limbeck.plan.teachers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
