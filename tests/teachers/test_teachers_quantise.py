"""Quantised teachers: what is rounded and what is not, who says so, and who refuses whose store."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_world import make_tokenizer
from transformers import AutoModelForCausalLM

from limbeck.data.prepare import prepare
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import StoreError, TeacherError
from limbeck.evals.reference import teacher_reference
from limbeck.signals.manifest import info
from limbeck.spec.base import parse
from limbeck.spec.quantisation import quantisation_named
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.study.stores import write_recipe_stores
from limbeck.teachers import quantise as quantising
from limbeck.teachers.files import locate
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.quantise import summary
from limbeck.teachers.rounding import rounded
from limbeck.train.setup import open_setup

CPU = torch.device("cpu")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(folder: Path, scheme: str | None, *, dtype: str = "float32") -> Teacher:
    values = {"model": str(folder), "dtype": dtype, "context": Context(window=48, overlap=16)}
    quantisation = quantisation_named(scheme) if scheme is not None else None
    return load_teacher(HuggingFaceTeacher.model_validate({**values, "quantisation": quantisation}), device=CPU)


def changed(folder: Path, teacher: Teacher) -> set[str]:
    """Parameters that are not as in the file."""
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return {name for name, weight in teacher.model.state_dict().items() if not torch.equal(weight, original[name])}


def saved(model: Any, folder: Path) -> Path:
    make_tokenizer(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-row-sym", "fp8-row", "nf4-g64", "mxfp4", "gguf-q8_0", "gguf-q4_k"])
def test_every_linear_layer_is_rounded_and_nothing_else(teacher_folder: Path, scheme: str) -> None:
    teacher = load(teacher_folder, scheme)
    assert {name.split(".")[-2] for name in changed(teacher_folder, teacher)} == set(LINEAR)
    assert len(changed(teacher_folder, teacher)) == 2 * 7 == len(teacher.quantised)
    original = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).state_dict()
    for matrix in teacher.quantised:
        weight = original[f"{matrix.name}.weight"]
        assert torch.equal(teacher.model.get_submodule(matrix.name).weight, rounded(weight, quantisation_named(scheme)))  # type: ignore[arg-type]


def test_with_its_ends_the_embedding_and_the_head_are_rounded_too(teacher_folder: Path) -> None:
    names = changed(teacher_folder, load(teacher_folder, "int4-g32-all"))
    assert {"model.embed_tokens.weight", "lm_head.weight"} < names
    assert len(names) == 2 * 7 + 2


def test_a_tied_head_is_one_matrix(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    folder = saved(LlamaForCausalLM(LlamaConfig(vocab_size=300, tie_word_embeddings=True, **sizes)), tmp_path / "tied")
    kept, rounded_too = load(folder, "int4-g32"), load(folder, "int4-g32-all")
    assert "model.embed_tokens.weight" not in changed(folder, kept)
    assert [matrix.weights for matrix in rounded_too.quantised].count(300 * 32) == 1
    head = rounded_too.model.get_output_embeddings().weight
    assert head is rounded_too.model.get_input_embeddings().weight
    assert rounded_too.head_VE is not None
    assert torch.equal(rounded_too.head_VE, head)
    parameters = sum(parameter.numel() for parameter in kept.model.parameters())
    norms, ends = 5 * 32, 300 * 32
    inside = parameters - norms - ends
    assert kept.weights_bytes == pytest.approx(4 * (norms + ends) + inside * (4 + 20 / 32) / 8)
    assert rounded_too.weights_bytes == pytest.approx(4 * norms + (inside + ends) * (4 + 20 / 32) / 8)
    assert kept.quantised_share == pytest.approx(inside / parameters)


def experts(kind: str) -> Any:
    common = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "qwen3":
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        more = {
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        }
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, **more))
    from transformers import GptOssConfig, GptOssForCausalLM

    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 8}
    return GptOssForCausalLM(GptOssConfig(**common, **more))


@pytest.mark.parametrize(("kind", "transposed"), [("qwen3", False), ("gpt-oss", True)])
def test_experts_are_rounded_along_their_input_and_routers_stay(tmp_path: Path, kind: str, transposed: bool) -> None:
    torch.manual_seed(0)
    folder = saved(experts(kind), tmp_path / kind)
    teacher = load(folder, "int4-g32")
    names = changed(folder, teacher)
    assert not any("router" in name or "mlp.gate.weight" in name or "norm" in name or "bias" in name for name in names)
    assert sum(name.endswith(("gate_up_proj", "down_proj")) for name in names) == 2 * 2
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for index, expert in enumerate(original[name]):
        found = teacher.model.state_dict()[name][index]
        expected = rounded(expert.T if transposed else expert, quantisation_named("int4-g32"))  # type: ignore[arg-type]
        assert torch.equal(found.T if transposed else found, expected)


def test_a_router_that_is_a_linear_layer_stays(tmp_path: Path) -> None:
    """Many models keep the gate of a shared expert, and older ones the router, as an ordinary layer."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 48, "num_experts": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=300, **sizes, **more))
    gate = model.get_submodule("model.layers.0.mlp.shared_expert_gate")
    assert isinstance(gate, torch.nn.Linear)
    folder = saved(model, tmp_path / "qwen2")
    names = changed(folder, load(folder, "int4-g32"))
    assert "model.layers.0.mlp.shared_expert.up_proj.weight" in names
    assert not any("gate.weight" in name for name in names)


def tiny_of(kind: str, **sizes: Any) -> Any:
    """A model of transformers by its type's name, random and small."""
    from transformers import AutoConfig

    common = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)  # some experts are made empty
    return model


LLAMA4 = {"num_local_experts": 4, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1, "pad_token_id": 0}
LONGCAT = {"n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 48, "ffn_hidden_size": 48, "num_layers": 1}
LONGCAT |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
INKLING = {"moe_intermediate_size": 48, "n_routed_experts": 4, "mlp_layer_types": ["sparse", "sparse"], "head_dim": 8}
INKLING |= {"num_attention_heads": 4, "num_key_value_heads": 2, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
JETMOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("kind", "sizes", "name", "transposed"),
    [
        ("llama4_text", LLAMA4, "model.layers.1.feed_forward.experts.gate_up_proj", True),  # torch.bmm(x, gate_up_proj)
        ("llama4_text", LLAMA4, "model.layers.1.feed_forward.experts.down_proj", True),
        ("longcat_flash", LONGCAT, "model.layers.0.mlp.experts.gate_up_proj", False),  # F.linear(x, gate_up_proj[expert])
        ("longcat_flash", LONGCAT, "model.layers.0.mlp.experts.down_proj", False),
        ("jetmoe", JETMOE, "model.layers.1.mlp.input_linear.weight", False),  # F.linear(x, weight[expert])
        ("jetmoe", JETMOE, "model.layers.1.self_attention.experts.output_linear.weight", False),
        ("inkling_text", INKLING, "model.layers.1.mlp.shared_experts.up_proj", False),  # torch.bmm(x, up_proj.transpose(1, 2))
        ("inkling_text", INKLING, "model.layers.1.mlp.shared_experts.down_proj", False),
        ("recurrent_gemma", {"lru_width": 32}, "model.layers.0.temporal_block.rg_lru.input_gate_weight", True),  # torch.baddbmm
    ],
)
def test_experts_that_do_not_say_how_they_lie_are_rounded_along_their_input(
    kind: str, sizes: dict[str, Any], name: str, transposed: bool
) -> None:
    model = tiny_of(kind, **sizes)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    found = {matrix.name: matrix for matrix in quantising.quantise(model, quantisation_named("int3-row"))}  # type: ignore[arg-type]
    after = dict(model.named_parameters())
    for expert, rounded_expert in zip(before[name], after[name], strict=True):
        expected = rounded(expert.T if transposed else expert, quantisation_named("int3-row"))  # type: ignore[arg-type]
        assert torch.equal(rounded_expert.T if transposed else rounded_expert, expected)
    assert found[name].weights == before[name].numel()
    assert not any(torch.equal(after[key], before[key]) for key in before if ".experts." in key and before[key].ndim == 3)
    assert all(torch.equal(after[key], before[key]) for key in before if "router" in key)


def unloaded(kind: str, **sizes: Any) -> Any:
    """A model as transformers configures it by default, without weights."""
    from transformers import AutoConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


def patterns(names: Any) -> set[str]:
    return {re.sub(r"\.\d+\.", ".*.", name) for name in names}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("qwen3_next", {"model.layers.*.mlp.shared_expert_gate"}),  # 512 experts, and 2 heads of 256 keys
        ("longcat_flash", {"model.layers.*.mlp.router.classifier"}),  # 512 experts and 256 that do nothing
        ("llama4_text", {"model.layers.*.feed_forward.router"}),
        ("deepseek_v4", set()),  # its routers are no linear layers; its indexer's keys are as wide as experts are many
        (
            "zaya",
            {
                f"model.layers.*.mlp.gate.{name}"
                for name in ("down_proj", *(f"router_mlp.{n}" for n in ("fc1", "fc2", "out_proj")))
            },
        ),
        ("llama", set()),
    ],
)
def test_routers_are_known_by_name_as_well_as_by_width(kind: str, expected: set[str]) -> None:
    model = unloaded(kind, num_hidden_layers=4)
    assert patterns(quantising.routers(model)) == expected


def test_packages_are_told_of_the_same_routers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from limbeck.teachers.backends import _kept
    from limbeck.teachers.files import TeacherFiles

    AutoConfig.for_model("qwen3_next", num_hidden_layers=4).save_pretrained(tmp_path)
    kept = _kept(TeacherFiles("any", str(tmp_path)))
    assert patterns(kept) == {"lm_head", "model.embed_tokens", "model.layers.*.mlp.shared_expert_gate"}


def test_qwen3_nexts_keys_and_values_are_quantised_and_its_gates_are_not() -> None:
    found = {matrices.name for matrices in quantising._matrices(unloaded("qwen3_next", num_hidden_layers=4), everything=False)}
    layer = {"self_attn.k_proj", "self_attn.v_proj", "mlp.shared_expert.up_proj", "mlp.experts.gate_up_proj"}
    assert {f"model.layers.3.{name}" for name in layer} < found
    assert not any(name.endswith("gate") for name in found)


DBRX = {"n_layers": 1, "d_model": 64, "n_heads": 4, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("kind", "sizes", "name"),
    [
        ("zamba", {}, "mamba.x_proj_weight"),
        ("xlnet", {}, "rel_attn.q"),
        (
            "dbrx",
            {**DBRX, "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64}},
            "experts.mlp.w1",
        ),  # all experts in one matrix
    ],
)
def test_many_weights_that_nothing_is_known_of_are_refused(kind: str, sizes: dict[str, Any], name: str) -> None:
    with pytest.raises(TeacherError, match=rf"int4-g32: \w+ keeps \d+% of its weights in [\w.]*{re.escape(name)} and the like"):
        quantising.check_quantisable(unloaded(kind, **sizes), quantisation_named("int4-g32"))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mamba", "gemma3", "gpt_oss", "qwen3_next", "llama4_text", "gpt2", "mixtral"])
def test_convolutions_biases_positions_and_routers_are_no_reason_to_refuse(kind: str) -> None:
    quantising.check_quantisable(unloaded(kind), quantisation_named("int4-g32"))  # type: ignore[arg-type]


def of_one_layer(layer: torch.nn.Module) -> Any:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.config = SimpleNamespace(get_text_config=SimpleNamespace)

        def get_input_embeddings(self) -> None:
            return None

        get_output_embeddings = get_input_embeddings

    return One()


def packed(dtype: torch.dtype) -> torch.nn.Module:
    linear = torch.nn.Linear(64, 32, bias=False)
    linear.weight = torch.nn.Parameter(torch.zeros(32, 64).to(dtype), requires_grad=False)
    return linear


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.int8])
def test_packed_weights_are_not_rounded_again(dtype: torch.dtype) -> None:
    """transformers' FP8Linear and bitsandbytes' layers are linear layers whose weights are no floats."""
    model = of_one_layer(packed(dtype))
    with pytest.raises(TeacherError, match=rf"int4-g32: layer of One is packed already, as {str(dtype)[6:]}"):
        quantising.quantise(model, quantisation_named("int4-g32"))  # type: ignore[arg-type]


def test_packed_weights_in_a_layer_of_its_own_are_not_passed_over() -> None:
    """As GPTQ and AWQ keep them: integers in a buffer, the model's head beside them as it was."""
    layer = torch.nn.Module()
    layer.register_buffer("qweight", torch.zeros(8, 64, dtype=torch.int32))
    layer.head = torch.nn.Linear(64, 8)
    with pytest.raises(TeacherError, match=r"int4-g32: One keeps \d+% of its weights in layer.qweight and the like"):
        quantising.quantise(of_one_layer(layer), quantisation_named("int4-g32"))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["gguf-q5_1", "gguf-q4_1", "gguf-q4_0", "gguf-q8_0"])
def test_weights_beyond_the_scales_are_named_and_not_made_infinite(scheme: str) -> None:
    """A float16 scale ends at 65504."""
    linear = torch.nn.Linear(64, 32, bias=False)
    torch.nn.init.uniform_(linear.weight, -1, 1)
    with torch.no_grad():
        linear.weight[3, 5] = 1e8
    with pytest.raises(TeacherError, match=rf"{scheme}: layer holds weights up to 1e\+08, too large for the scheme's scales"):
        quantising.quantise(of_one_layer(linear), quantisation_named(scheme))  # type: ignore[arg-type]
    assert linear.weight.isfinite().all()


def test_weights_that_are_not_finite_to_begin_with_are_named() -> None:
    linear = torch.nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        linear.weight[3, 5] = float("nan")
    with pytest.raises(TeacherError, match="layer holds weights that are not finite before they are rounded"):
        quantising.quantise(of_one_layer(linear), quantisation_named("int4-g32"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq 4-bit"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "awq 4-bit"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
        ({"quantization_config": {"load_in_4bit": True, "load_in_8bit": False}}, "bitsandbytes 4-bit"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": None}},
                }
            },
            "compressed-tensors 8-bit",
        ),
        ({"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 3}}}, "gptq 3-bit"),
        ({"text_config": {}}, "none"),
        ({}, "none"),
    ],
)
def test_what_a_folder_was_quantised_with_is_known(tmp_path: Path, stated: dict[str, Any], expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **stated}), encoding="utf-8")
    spec = HuggingFaceTeacher(model=str(tmp_path))
    assert locate(spec).quantisation == expected
    quantised = locate(HuggingFaceTeacher(model=str(tmp_path), quantisation=quantisation_named("int8-row")))
    assert quantised.quantisation == ("int8-row" if expected == "none" else f"{expected}, int8-row")


def test_what_came_with_the_weights_is_known_once_they_are_here(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub model nothing is known until it is downloaded."""
    from limbeck.teachers import files, huggingface

    downloaded: list[bool] = []
    original = huggingface._loaded
    monkeypatch.setattr(huggingface, "_loaded", lambda *given, **named: downloaded.append(True) or original(*given, **named))
    stated = {"quantization_config": {"quant_method": "fp8"}}
    monkeypatch.setattr(files, "read_config", lambda files: stated if downloaded else None)
    assert load(teacher_folder, None).identity["quantisation"] == "fp8"


def test_a_config_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TeacherError, match=r"config\.json is no valid JSON"):
        locate(HuggingFaceTeacher(model=str(tmp_path)))


def test_an_error_without_words_is_one_line_all_the_same(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(TeacherError, match=r"cannot be loaded from .*: RuntimeError$"):
        load(teacher_folder, None)


def test_gpt2s_layers_are_rounded_along_their_input(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = saved(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=4, n_positions=64)), tmp_path / "g")
    teacher = load(folder, "int4-row")
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).transformer.h[0].mlp.c_fc.weight
    found = teacher.model.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(found.T, rounded(original.T, quantisation_named("int4-row")))  # type: ignore[arg-type]


def test_a_few_rows_at_a_time_are_the_whole(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(teacher_folder, "int3-g32").model.state_dict()
    monkeypatch.setattr(quantising, "WEIGHTS_AT_ONCE", 100)
    for name, weight in load(teacher_folder, "int3-g32").model.state_dict().items():
        assert torch.equal(weight, whole[name])


def test_in_bfloat16_the_rounded_weights_are_rounded_once_more(teacher_folder: Path) -> None:
    teacher = load(teacher_folder, "int4-g32", dtype="bfloat16")
    original = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.bfloat16).model.layers[0].mlp.up_proj.weight
    expected = rounded(original, quantisation_named("int4-g32")).to(torch.bfloat16)  # type: ignore[arg-type]
    assert torch.equal(teacher.model.model.layers[0].mlp.up_proj.weight, expected)


def test_the_identity_says_which_scheme_and_which_layers(teacher_folder: Path) -> None:
    assert "quantised" not in load(teacher_folder, None).identity
    identity = load(teacher_folder, "gguf-q4_k").identity
    assert identity["quantisation"] == "gguf-q4_k"
    every = ", ".join(f"2 of model.layers.*.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}" for name in LINEAR)
    assert identity["quantised"] == f"gguf-q5_0: {every}"  # rows of 32 and 64 are no super-blocks


def test_a_summary_tells_types_and_counts_layers() -> None:
    from limbeck.teachers.quantise import QuantisedMatrix

    found = [
        QuantisedMatrix("layers.0.up", "gguf-q4_k", 1, 4.5),
        QuantisedMatrix("layers.0.down", "gguf-q5_0", 1, 5.5),
        QuantisedMatrix("layers.11.up", "gguf-q4_k", 1, 4.5),
        QuantisedMatrix("lm_head", "gguf-q4_k", 1, 4.5),
    ]
    assert summary(found) == "gguf-q4_k: 2 of layers.*.up, lm_head; gguf-q5_0: layers.*.down"


@pytest.fixture
def recipe_of(values: dict[str, Any]) -> Callable[..., Recipe]:
    def make(scheme: str | None, **changes: Any) -> Recipe:
        quantisation = quantisation_named(scheme).model_dump() if scheme is not None else None
        teacher = {**values["teacher"], "quantisation": quantisation}
        return parse(Recipe, {**values, "teacher": teacher, **changes}, source="test")

    return make


@pytest.mark.parametrize(("held", "asked"), [("int4-g32", "int4-g64"), ("int4-g32", None), (None, "int8-row-sym")])
def test_a_store_of_another_quantisation_is_refused_by_writer_and_reader(
    recipe_of: Callable[..., Recipe], tmp_path: Path, held: str | None, asked: str | None
) -> None:
    path = str(tmp_path / "store")
    write_recipe_stores([recipe_of(held, store=path)])
    assert info(Path(path))["identity"]["teacher"]["quantisation"] == (held or "none")
    open_setup(recipe_of(held, store=path))
    with pytest.raises(
        StoreError, match=rf"identity\.teacher\.quantisation: '{held or 'none'}' in the store, '{asked or 'none'}'"
    ):
        write_recipe_stores([recipe_of(asked, store=path)])
    with pytest.raises(
        StoreError, match=rf"with quantisation {held or 'none'}, but the recipe's teacher has {asked or 'none'}"
    ):
        open_setup(recipe_of(asked, store=path))


def test_the_held_out_reference_is_the_quantised_teachers_own(
    recipe_of: Callable[..., Recipe], values: dict[str, Any], teacher_folder: Path
) -> None:
    """Both are kept in one cache, of the same files."""
    _, heldout = prepare(recipe_of(None).data, load_tokenizer(values["teacher"]["model"]))
    for scheme in (None, "int3-g32"):
        recipe = recipe_of(scheme)
        assert recipe.teacher is not None
        reference = teacher_reference(recipe.teacher, heldout, device=CPU)
        assert reference is not None
        ids = torch.from_numpy(heldout.document(0)[:40].astype("int64"))[None]
        expected = load(teacher_folder, scheme).hidden(ids)[0]
        torch.testing.assert_close(reference.rows(0, 0, 40), expected, rtol=1e-5, atol=1e-5)


def test_what_a_file_was_quantised_with_stays_known() -> None:
    from limbeck.teachers import files as located

    spec = HuggingFaceTeacher(model="any", quantisation=quantisation_named("int4-g128"))
    assert locate(spec).quantisation == "int4-g128"
    of_file = located.TeacherFiles("any", "any", quantisation="gguf Q4_1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(located, "_located", lambda spec: of_file)
        assert locate(spec).quantisation == "gguf Q4_1, int4-g128"
        assert locate(HuggingFaceTeacher(model="any")).quantisation == "gguf Q4_1"


def test_a_model_that_nothing_can_be_rounded_of_is_one_line() -> None:
    class Empty(torch.nn.Module):
        def get_input_embeddings(self) -> None:
            return None

        get_output_embeddings = get_input_embeddings

        class config:  # noqa: N801
            get_text_config = classmethod(lambda cls: cls)

    with pytest.raises(TeacherError, match="int4-g128: Empty has no linear layer to quantise"):
        quantising.quantise(Empty(), quantisation_named("int4-g128"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("scheme", "package"), [("bnb-nf4", "bitsandbytes"), ("torchao-int8-row", "torchao")])
def test_a_missing_package_is_one_line_that_names_the_extra(
    teacher_folder: Path, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import PackageNotFoundError

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("limbeck.teachers.backends.version", absent)
    with pytest.raises(TeacherError, match=rf"{scheme} needs {package}: pip install 'limbeck\[{package}\]'"):
        load(teacher_folder, scheme)


def wide_teacher(folder: Path) -> Path:
    """Wide enough for bitsandbytes' blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return saved(LlamaForCausalLM(LlamaConfig(vocab_size=300, initializer_range=0.1, **sizes)), folder)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("scheme", "like", "bits"),
    [
        pytest.param("bnb-nf4", "nf4-g64", 4.5, marks=needs("bitsandbytes")),
        pytest.param("bnb-nf4-double", "nf4-g64", 4.127, marks=needs("bitsandbytes")),
        pytest.param("bnb-int8", "int8-row-sym", 8 + 32 / 128, marks=needs("bitsandbytes")),
        pytest.param("torchao-int8-row", "int8-row-sym", 8 + 32 / 128, marks=needs("torchao")),
    ],
)
@torch.no_grad()
def test_a_package_says_nearly_what_its_simulation_says(tmp_path: Path, scheme: str, like: str, bits: float) -> None:
    folder = wide_teacher(tmp_path / "wide")
    real, simulated, full = (load(folder, name) for name in (scheme, like, None))
    assert {matrix.name for matrix in real.quantised} == {matrix.name for matrix in simulated.quantised}
    narrow = next(matrix for matrix in real.quantised if matrix.name.endswith("up_proj"))
    assert narrow.bits_per_weight == pytest.approx(bits, rel=0.02)
    assert real.identity["quantised_by"].startswith(scheme.split("-")[0].replace("bnb", "bitsandbytes"))
    assert real.head_VE is not None
    ids = torch.arange(2, 40)[None]
    log_p, log_q, log_s = (each.logits(ids).float().log_softmax(-1) for each in (full, real, simulated))

    def kl(log_a: torch.Tensor, log_b: torch.Tensor) -> float:
        return float((log_a.exp() * (log_a - log_b)).sum(-1).mean())

    assert 0 < kl(log_p, log_q) < 0.2
    # LLM.int8 rounds activations too, and four bits are multiplied in bfloat16; both are far below four bits of weight.
    assert kl(log_s, log_q) < (0.2 * kl(log_p, log_s) if "nf4" in scheme else 2e-3)


@needs("bitsandbytes")
@pytest.mark.parametrize("shape", [(64, 128), (96, 192)])
def test_simulated_nf4_is_bitsandbytes_own(shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    weight = torch.randn(shape)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(rounded(weight, quantisation_named("nf4-g64")), expected, rtol=1e-6, atol=0)  # type: ignore[arg-type]


@needs("torchao")
def test_four_bits_of_torchao_are_refused_without_their_kernel(teacher_folder: Path) -> None:
    with pytest.raises(TeacherError, match="torchao-int4-g128 computes on CUDA in bfloat16 only"):
        load(teacher_folder, "torchao-int4-g128")


@needs("bitsandbytes")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_layers_that_bitsandbytes_cannot_multiply_on_a_cpu_are_one_line(teacher_folder: Path) -> None:
    with pytest.raises(TeacherError, match="on a CPU a layer of 32 by 32 does not fit"):
        load(teacher_folder, "bnb-nf4")


@pytest.mark.slow
@pytest.mark.quickstart_inputs
def test_the_real_teachers_file_is_q4_1_and_a_second_q4_1_finds_its_blocks_again() -> None:
    """SmolLM2's file was written by llama.cpp: its layers are Q4_1 already, so that only other schemes change them."""
    from limbeck.spec.teacher import SmolLM2Teacher

    def loaded(scheme: str | None) -> Teacher:
        quantisation = quantisation_named(scheme) if scheme is not None else None
        return load_teacher(SmolLM2Teacher(dtype="bfloat16", quantisation=quantisation), device=CPU)

    plain = loaded(None).model.state_dict()
    for scheme, least, most in (("gguf-q4_1", 0.999, 1.0), ("int4-g32", 0.0, 0.5)):
        teacher = loaded(scheme)
        assert teacher.identity["quantisation"] == f"gguf Q4_1, {scheme}"
        assert len(teacher.quantised) == 30 * 7
        names = [f"{matrix.name}.weight" for matrix in teacher.quantised]
        same = [float((teacher.model.state_dict()[name] == plain[name]).float().mean()) for name in names]
        assert least <= min(same) <= max(same) <= most
        assert teacher.weights_bytes == pytest.approx(2 * (49152 * 576 + 61 * 576) + 106_168_320 * (5 if least else 4.625) / 8)
