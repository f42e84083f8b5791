"""Teachers: parameters against models built by transformers, FLOPs against PyTorch's counter."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import TeacherError
from limbeck.plan.accounting import teacher_flops_per_token, teacher_parameters
from limbeck.plan.config_sizes import DEFAULTS
from limbeck.plan.teachers import catalogue, find, resolve

CONFIGS = {
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
    "mixtral": transformers.MixtralConfig,
    "olmoe": transformers.OlmoeConfig,
    "qwen2_moe": transformers.Qwen2MoeConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "glm4_moe": transformers.Glm4MoeConfig,
    "gpt_oss": transformers.GptOssConfig,
    "deepseek_v2": transformers.DeepseekV2Config,
    "deepseek_v3": transformers.DeepseekV3Config,
    "glm4_moe_lite": transformers.Glm4MoeLiteConfig,
}
EXPERTS = {"moe_intermediate_size": 40, "num_experts_per_tok": 2}
GROUPS = {"n_routed_experts": 6, "n_group": 2, "topk_group": 1}
LATENT = {
    **EXPERTS,
    **GROUPS,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
# 10 layers of 4 query and 2 key heads; none of a head's channels is 64 / 4.
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
}
OWN = {
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "num_experts": 6, "shared_expert_intermediate_size": 56},
    "qwen3_moe": {**EXPERTS, "num_experts": 6},
    "glm4_moe": {**EXPERTS, **GROUPS},
    "gpt_oss": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "deepseek_v2": {**LATENT, "num_key_value_heads": 4},
    "deepseek_v3": {**LATENT, "num_key_value_heads": 4},
    "glm4_moe_lite": {**LATENT, "num_key_value_heads": 4},
}
VARIANTS = {
    "llama": [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}, {"num_key_value_heads": None}],
    "mistral": [{"head_dim": None}],
    "mixtral": [{"head_dim": 24}],
    "olmo2": [{"attention_bias": True}],
    "olmoe": [{"attention_bias": True}],
    "qwen2": [{"tie_word_embeddings": True}],
    "qwen3": [{"attention_bias": True}],
    "gemma2": [{"attention_bias": True}],
    "qwen2_moe": [{"qkv_bias": False}, {"mlp_only_layers": [1, 4], "decoder_sparse_step": 2}],
    "qwen3_moe": [{"attention_bias": True}, {"mlp_only_layers": [3], "decoder_sparse_step": 2}, {"tie_word_embeddings": True}],
    "glm4_moe": [{"use_qk_norm": True, "attention_bias": True}, {"first_k_dense_replace": 3, "n_shared_experts": 2}],
    "gpt_oss": [{"attention_bias": False}],
    "deepseek_v2": [{"q_lora_rank": None, "attention_bias": True, "mlp_bias": True}, {"first_k_dense_replace": 1}],
    "deepseek_v3": [{"q_lora_rank": None}, {"attention_bias": True, "first_k_dense_replace": 0, "n_shared_experts": 3}],
    "glm4_moe_lite": [{"attention_bias": True}, {"mlp_layer_types": ["dense", "sparse"] * 5}],
}
ALL_VARIANTS = [(model_type, extra) for model_type in CONFIGS for extra in ({}, *VARIANTS.get(model_type, []))]
HEAD_DIM_OF_ITS_OWN = set(CONFIGS) - {"olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"}


def small_config(model_type: str, **extra):
    head_dim = {"head_dim": 24} if model_type in HEAD_DIM_OF_ITS_OWN else {}
    return CONFIGS[model_type](**{**SIZES, **head_dim, "pad_token_id": None, **OWN.get(model_type, {}), **extra})


def built(config) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def counted_parameters(model: torch.nn.Module, config) -> tuple[int, int]:
    """All, and those that a token touches: of a tensor that holds all experts of a layer, top-k of n."""
    total, active = 0, 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        touched = config.num_experts_per_tok / parameter.shape[0] if ".experts." in name else 1
        active += parameter.numel() * touched
    return total, round(active)


@pytest.mark.parametrize(("model_type", "extra"), ALL_VARIANTS)
def test_teachers_have_the_parameters_of_transformers_models(model_type, extra):
    config = small_config(model_type, **extra)
    total, active = counted_parameters(built(config), config)
    count = teacher_parameters(config.to_dict())
    assert (count.total, count.active) == (total, active)
    assert (active < total) == (model_type in OWN)
    assert count.embedding == 97 * 64 * (1 if config.tie_word_embeddings else 2)
    assert count.embedding + count.non_embedding == total
    assert count.active_non_embedding == active - count.embedding


ASKED_FOR = {"num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank", "qk_nope_head_dim"}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_field_left_out_means_transformers_default(model_type):
    """Files leave fields out: what then is counted is the model that transformers builds. Most are left out of `given`."""
    given = {"model_type": model_type, **SIZES, **OWN.get(model_type, {})}
    for absent in (None, "num_key_value_heads", "q_lora_rank"):
        sparse = {key: value for key, value in given.items() if key != absent}
        completed = CONFIGS[model_type](**sparse)
        count = teacher_parameters(sparse)
        assert (count.total, count.active) == counted_parameters(built(completed), completed), absent
        flops = teacher_flops_per_token(sparse, context=8192)
        assert flops == teacher_flops_per_token(completed.to_dict(), context=8192), absent


@pytest.mark.parametrize("model_type", OWN)
def test_a_size_that_every_file_holds_is_asked_for(model_type):
    given = {"model_type": model_type, **SIZES, **OWN[model_type]}
    for absent in sorted(ASKED_FOR & set(given)):
        with pytest.raises(TeacherError, match=r"config lacks '(num_experts|kv_lora_rank|qk_nope_head_dim)'"):
            teacher_parameters({key: value for key, value in given.items() if key != absent})


def test_the_defaults_are_those_of_transformers():
    for model_type, defaults in DEFAULTS.items():
        theirs = CONFIGS[model_type]()
        assert {key: getattr(theirs, key) for key in defaults} == defaults


@pytest.mark.parametrize("model_type", [key for key in CONFIGS if key not in OWN])
def test_dense_teachers_slide_in_the_layers_that_transformers_says(model_type):
    """A config without `layer_types` is priced as the one that transformers completes it to."""
    config = CONFIGS[model_type](**SIZES, head_dim=16, sliding_window=8).to_dict()
    types = config.pop("layer_types", None)
    inferred = teacher_flops_per_token(config, context=64)
    if types is not None:
        assert inferred == teacher_flops_per_token({**config, "layer_types": types}, context=64)
    sliding = {"mistral": 10, "olmo3": 8, "gemma2": 5, "gemma3_text": 9}.get(model_type, 0)
    full = teacher_flops_per_token({**config, "sliding_window": None}, context=64)
    # A window of 8 in 64 tokens: 7.5 keys instead of 32, at 4 FLOPs for each of 4 x 16 channels.
    assert full - inferred == sliding * 4 * 64 * (32 - 7.5)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "qwen2_moe"])
def test_qwens_slide_only_where_they_are_told_to(model_type):
    told = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 7}
    config = small_config(model_type, **told)
    types = config.layer_types
    raw = {"model_type": model_type, **SIZES, **OWN.get(model_type, {}), **told}
    full = teacher_flops_per_token({**raw, "use_sliding_window": False}, context=64)
    head_dim = 128 if model_type == "qwen3" else 16
    assert full - teacher_flops_per_token(raw, context=64) == types.count("sliding_attention") * 4 * 4 * head_dim * (32 - 7.5)
    assert 0 < types.count("sliding_attention") < 10


# Wide enough that norm weights and biases, which we count as products, are few: under half a percent.
WIDE = {
    "vocab_size": 300,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 320,
}
WIDE_LATENT = {"q_lora_rank": 72, "kv_lora_rank": 48, "qk_nope_head_dim": 40, "qk_rope_head_dim": 16, "v_head_dim": 24}
SLIDING = {"mistral", "olmo3", "gemma2", "gemma3_text", "gpt_oss", "mixtral", "qwen2", "qwen3"}
FLOPS_VARIANTS = {
    "qwen2": {"use_sliding_window": True, "max_window_layers": 3},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 3},
    "deepseek_v2": {"first_k_dense_replace": 1},
    "qwen3_moe": {"mlp_only_layers": [1]},
}


def visible_keys(config, *, length: int) -> list[float]:
    """Mean keys that a position sees in each layer, counted in the mask."""
    index = torch.arange(length)
    distance = index[:, None] - index
    window = getattr(config, "sliding_window", None)
    default = "sliding_attention" if window and config.model_type in ("mistral", "mixtral") else "full_attention"
    types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    limits = [window if kind == "sliding_attention" else length for kind in types]
    return [((distance >= 0) & (distance < limit)).sum().item() / length for limit in limits]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_flops_of_every_type_agree_with_pytorchs_counter(model_type):
    """The counter prices all length**2 products of plain attention, and only the experts that tokens are sent to."""
    length = 256
    latent = model_type in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
    sizes = {**WIDE, **({**WIDE_LATENT, "num_key_value_heads": 6} if latent else {"head_dim": 40})}
    if model_type == "olmoe":
        sizes.pop("head_dim")
    own = {
        **OWN.get(model_type, {}),
        **({"moe_intermediate_size": 96} if "moe_intermediate_size" in OWN.get(model_type, {}) else {}),
    }
    sliding = {"sliding_window": 60} if model_type in SLIDING else {}
    config = CONFIGS[model_type](**{**own, **sizes, **sliding, **FLOPS_VARIANTS.get(model_type, {}), "pad_token_id": None})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    tokens_BT = torch.randint(300, (1, length))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(tokens_BT, use_cache=False)
    channels = (40 + 16 + 24) if latent else 2 * getattr(config, "head_dim", 32)
    invisible = sum(length - keys for keys in visible_keys(config, length=length))
    expected = counter.get_total_flops() / length - 2 * config.num_attention_heads * channels * invisible
    ours = teacher_flops_per_token(config.to_dict(), context=length)
    assert ours == pytest.approx(expected, rel=1e-2)


# Counted by instantiating each public configuration without weights, with transformers 5.23.
COUNTED = {
    "Olmo-3-7B": (7_298_011_136, 7_298_011_136),
    "Olmo-3-32B": (32_233_522_176, 32_233_522_176),
    "Qwen3-8B": (8_190_735_360, 8_190_735_360),
    "Qwen3-32B": (32_762_123_264, 32_762_123_264),
    "Qwen3-30B-A3B": (30_532_122_624, 3_353_032_704),
    "GLM-4.7-Flash": (29_943_390_976, 3_896_763_136),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704),
    "SmolLM2-135M-Instruct": (134_515_008, 134_515_008),
}


@pytest.mark.parametrize("name", catalogue())
def test_catalogue_counts_follow_from_the_sizes(name):
    entry = catalogue()[name]
    sizes = {key: value for key, value in entry.items() if key not in ("total", "active")}
    declared, counted = teacher_parameters(entry), teacher_parameters(sizes)
    assert (counted.total, counted.active) == (declared.total, declared.active) == COUNTED[name]
    assert counted == declared


def test_active_parameters_are_those_that_model_cards_say():
    """gpt-oss (arXiv 2508.10925, table 1) leaves the input embedding out: 5.13B and 3.61B. Qwen3: 31.2B outside embeddings."""
    for name, published in (("gpt-oss-120b", 5.13e9), ("gpt-oss-20b", 3.61e9)):
        count = teacher_parameters(catalogue()[name])
        assert count.active - count.embedding / 2 == pytest.approx(published, abs=5e6)
    assert teacher_parameters(catalogue()["Qwen3-32B"]).active_non_embedding == pytest.approx(31.2e9, abs=5e7)


def test_an_unknown_type_asks_for_its_counts():
    unknown = {**catalogue()["Olmo-3-7B"], "model_type": "mamba9"}
    assert teacher_parameters(unknown).total == 7_298_011_136  # as declared
    del unknown["total"]
    with pytest.raises(TeacherError, match=r"mamba9.*'total' and 'active'"):
        teacher_parameters(unknown)


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


def test_find_knows_names_and_hub_ids_in_any_spelling():
    known = catalogue()
    assert find("allenai/olmo-3-1025-7b") == find("OLMO-3-7B") == find("olmo3-7b") == known["Olmo-3-7B"]
    assert find("qwen3-30b-a3b") == find("Qwen/Qwen3_30B_A3B") == known["Qwen3-30B-A3B"]
    assert find("gptoss120b") == known["gpt-oss-120b"] and find("glm-4.7-flash") == known["GLM-4.7-Flash"]
    assert find("Olmo-3-7B-Think") == known["Olmo-3-7B"]  # a hub id without its organisation
    for other in ("nobody/nothing", "somebody/Olmo-3-7B", "./Olmo-3-7B", "Olmo-3", ""):
        assert find(other) is None


def test_resolve_takes_names_hub_ids_and_beginnings_of_one_name():
    assert resolve("openai/gpt-oss-20b") == resolve("gpt_oss_20b") == ("gpt-oss-20b", catalogue()["gpt-oss-20b"])
    assert resolve("SmolLM2")[0] == "SmolLM2-135M-Instruct" and resolve("glm")[0] == "GLM-4.7-Flash"


def test_a_whole_name_is_not_the_beginning_of_a_longer_one(monkeypatch):
    known = {"Lime-3B": {"hub": []}, "Lime-3B-Long": {"hub": ["citrus/Lime-3B-Long"]}}
    monkeypatch.setattr("limbeck.plan.teachers.catalogue", lambda: known)
    assert resolve("lime3b") == ("Lime-3B", {"hub": []}) and resolve("lime-3b-l")[0] == "Lime-3B-Long"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("olmo3", r"olmo3.*Olmo-3-7B, Olmo-3-32B"),
        ("gpt-oss", r"gpt-oss.*gpt-oss-120b, gpt-oss-20b"),
        ("Qwen3-31B", r"Qwen3-31B.*did you mean 'Qwen3-32B'.*SmolLM2-135M-Instruct"),
        ("Olmo-3-7B-extra", r"did you mean 'Olmo-3-7B'"),
        ("", r"''"),
    ],
)
def test_resolve_names_the_candidates(name, message):
    with pytest.raises(TeacherError, match=message):
        resolve(name)


def test_resolve_reads_the_config_of_a_folder_or_file(tmp_path):
    config = small_config("qwen3_moe")
    folder = tmp_path / "my-teacher"
    config.save_pretrained(folder)
    total, active = counted_parameters(built(config), config)
    for given in (folder, folder / "config.json"):
        name, read = resolve(str(given))
        assert name == "my-teacher"
        count = teacher_parameters(read)
        assert (count.total, count.active) == (total, active)


def test_resolve_tells_of_files_that_are_no_configuration(tmp_path):
    for text in ("{", "[1]", json.dumps({"hidden_size": 3})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(TeacherError, match=r"config\.json.*model_type"):
            resolve(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match=r"empty.*config\.json"):
        resolve(str(tmp_path / "empty"))


def test_pretraining_tokens_say_where_they_are_stated():
    tokens = {name: entry["pretraining_tokens"] for name, entry in catalogue().items()}
    assert tokens == {
        "Olmo-3-7B": 5.93e12,
        "Olmo-3-32B": 5.5e12,
        "Qwen3-8B": 36e12,
        "Qwen3-32B": 36e12,
        "Qwen3-30B-A3B": 36e12,
        "GLM-4.7-Flash": None,
        "gpt-oss-120b": None,
        "gpt-oss-20b": None,
        "SmolLM2-135M-Instruct": 2e12,
    }
    assert all(("tokens_source" in entry) == (entry["pretraining_tokens"] is not None) for entry in catalogue().values())


def test_an_incomplete_config_is_named():
    with pytest.raises(TeacherError, match="'hidden_size'"):
        teacher_parameters({"model_type": "llama", "vocab_size": 10})


def test_accounting_does_not_import_torch():
    modules = "accounting", "student_layout", "config_sizes", "teachers", "devices", "storage", "price"
    imports = ", ".join(f"limbeck.plan.{module}" for module in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
