"""Pretrained students against transformers' own reading of the same folders, against peft's, and against formulas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from limbeck.errors import SpecError
from limbeck.optim.groups import parameter_groups, table
from limbeck.plan.accounting import student_parameters, training_flops_per_token
from limbeck.spec.optim import Muon
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.students import hf
from limbeck.students.pretrained import PretrainedStudent, adapter_parameters, load_pretrained, source_of, vocabulary
from limbeck.students.pretrained_folder import save_pretrained
from limbeck.testing import check_student

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOWS: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False),
    "olmo3": lambda: transformers.Olmo3Config(**SIZES, **WINDOWS),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, **WINDOWS),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, **WINDOWS, final_logit_softcapping=5.0),
    "granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES,
        **WINDOWS,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, initializer_range=0.3, bos_token_id=0, eos_token_id=1
    ),
}
LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 6.0}
DORA: dict[str, Any] = {"kind": "dora", "rank": 4, "alpha": 6.0}
# Of float32 sums in another order, relative to the largest value.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model, every parameter moved, so that norms matter."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write(MODELS[name](), tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def write(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def student_of(folder: Path, adapter: dict[str, Any] | None = None, *, seed: int = 0, moved: bool = False) -> PretrainedStudent:
    """`moved`: what learns is no longer where it begins."""
    student = load_pretrained(HuggingFaceStudent(model=str(folder), adapter=adapter), seed=seed)
    if moved:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return student


def tokens(length: int, *, rows: int = 1, seed: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(student: PretrainedStudent, token_BT: Tensor, **packing: Tensor) -> Tensor:
    return student.logits(student(token_BT, **packing).hidden_BTD)


def require_close(found: Tensor, expected: Tensor) -> None:
    apart = float((found - expected).abs().max())
    assert apart <= ROUNDING * float(expected.abs().max()), apart


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_transformers(name: str, saved: Callable[[str], Path]) -> None:
    model, token_BT = AutoModelForCausalLM.from_pretrained(saved(name)), tokens(20, rows=2)
    require_close(logits_of(student_of(saved(name)), token_BT), model(token_BT).logits)


def test_scales_and_caps_are_the_configurations(saved: Callable[[str], Path]) -> None:
    heads = {name: (student_of(saved(name)).scale, student_of(saved(name)).softcap) for name in ("llama", "granite", "gemma2")}
    assert heads == {"llama": (1.0, None), "granite": (0.25, None), "gemma2": (1.0, 5.0)}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_packed_row_is_its_documents(name: str, saved: Callable[[str], Path]) -> None:
    """Each as transformers reads it alone, though windows of four tokens reach over boundaries; a document of one token too."""
    lengths = ((7, 1, 12), (11, 6, 3))
    model, token_BT = AutoModelForCausalLM.from_pretrained(saved(name)), tokens(20, rows=2)
    segments_BT = torch.stack([torch.repeat_interleave(torch.tensor([5, 9, 2]), torch.tensor(each)) for each in lengths])
    positions_BT = torch.stack([torch.cat([torch.arange(length) for length in each]) for each in lengths])
    expected = torch.stack(
        [
            torch.cat([model(piece[None]).logits[0] for piece in row.split(list(each))])
            for row, each in zip(token_BT, lengths, strict=True)
        ]
    )
    student = student_of(saved(name))
    require_close(logits_of(student, token_BT, positions_BT=positions_BT, segments_BT=segments_BT), expected)
    require_close(logits_of(student, token_BT, segments_BT=segments_BT), expected)
    assert float((logits_of(student, token_BT) - expected).abs().max()) > 0.01, "read as one document they differ"


@pytest.mark.parametrize("name", ["llama", "olmo3", "gemma3", "gpt_oss"])
def test_a_document_does_not_see_its_neighbour(name: str, saved: Callable[[str], Path]) -> None:
    student, token_1T = student_of(saved(name)), tokens(16)
    segments_1T = torch.tensor([[0] * 6 + [1] * 10])
    other_1T = token_1T.clone()
    other_1T[:, :6] = (other_1T[:, :6] + 1) % VOCABULARY
    before, after = (logits_of(student, each, segments_BT=segments_1T) for each in (token_1T, other_1T))
    require_close(before[:, 6:], after[:, 6:])
    assert not torch.equal(before[:, :6], after[:, :6])


def test_those_that_cannot_read_packed_rows_are_known(saved: Callable[[str], Path]) -> None:
    found = {name: student_of(saved(name)).reads_packed_rows for name in MODELS}
    assert found == {**dict.fromkeys(MODELS, True), "gpt_oss": False, "mamba": False}


@pytest.mark.parametrize("name", ["llama", "olmo3", "gemma3"])
def test_an_adapter_begins_at_the_model(name: str, saved: Callable[[str], Path]) -> None:
    base, token_BT = student_of(saved(name)), tokens(20, rows=2)
    assert torch.equal(logits_of(student_of(saved(name), LORA), token_BT), logits_of(base, token_BT))
    require_close(logits_of(student_of(saved(name), DORA), token_BT), logits_of(base, token_BT))


@pytest.mark.parametrize(("adapter", "also"), [(LORA, ()), (DORA, ()), (LORA, ("norm",)), (LORA, ("input_layernorm",))])
def test_the_adapter_alone_learns(adapter: dict[str, Any], also: tuple[str, ...], saved: Callable[[str], Path]) -> None:
    """Rank times both widths of each of the seven matrices of a layer; a length for each output channel; norms of 32."""
    rank, layers, width, inner, keys = 4, 3, 32, 48, 16
    shapes = [(width, width), (width, keys), (width, keys), (width, width), (width, inner), (width, inner), (inner, width)]
    expected = layers * sum(rank * (into + out) for into, out in shapes)
    expected += layers * sum(out for _, out in shapes) if adapter["kind"] == "dora" else 0
    expected += {(): 0, ("norm",): 1 + 2 * layers, ("input_layernorm",): layers}[also] * width
    folder = saved("llama")
    student = student_of(folder, {**adapter, "also": also})
    spec = HuggingFaceStudent(model=str(folder), adapter={**adapter, "also": also})
    assert sum(each.numel() for each in student.parameters() if each.requires_grad) == expected
    assert (student.adapter_parameters, adapter_parameters(spec)) == (expected, expected)
    student.logits(student(tokens(8)).hidden_BTD).square().mean().backward()
    assert all((each.grad is not None) == each.requires_grad for each in student.parameters())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft itself
@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
@torch.no_grad()
def test_a_saved_student_is_the_merged_model_and_the_adapter_beside(
    adapter: dict[str, Any], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """Opened by transformers and by peft alone, and a matrix by the formula of the paper, in float64."""
    folder, token_BT = saved("qwen3"), tokens(20, rows=2)
    spec = HuggingFaceStudent(model=str(folder), adapter={**adapter, "also": ("norm",)})
    student = student_of(folder, {**adapter, "also": ("norm",)}, moved=True)
    layer = student.causal_lm.model.layers[1].self_attn.k_proj
    a_RI, b_OR = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    weight_OI = load_file(folder / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"].double()
    expected_OI = weight_OI + 6.0 / 4 * b_OR @ a_RI
    if adapter is DORA:
        length_O = layer.lora_magnitude_vector["default"].weight.double()
        expected_OI = length_O[:, None] * expected_OI / expected_OI.square().sum(1, keepdim=True).sqrt()
    before = logits_of(student, token_BT)
    save_pretrained(student, spec=spec, folder=tmp_path / "student")
    require_close(logits_of(student, token_BT), before)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    require_close(model.model.layers[1].self_attn.k_proj.weight.double(), expected_OI)
    require_close(model(token_BT).logits, before)
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "student" / "adapter")
    require_close(beside(token_BT).logits, before)
    assert not torch.allclose(before, AutoModelForCausalLM.from_pretrained(folder)(token_BT).logits, atol=0.1)
    assert beside.peft_config["default"].base_model_name_or_path == str(folder)


def test_a_student_trained_in_full_is_saved_as_it_is(saved: Callable[[str], Path], tmp_path: Path) -> None:
    student = student_of(saved("gemma3"), moved=True)
    save_pretrained(student, spec=HuggingFaceStudent(model=str(saved("gemma3"))), folder=tmp_path / "student")
    again = student_of(tmp_path / "student")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())
    assert not (tmp_path / "student" / "adapter").exists()
    hf.save_again(tmp_path / "student", to=tmp_path / "copy")
    assert torch.equal(logits_of(student_of(tmp_path / "copy"), tokens(8)), logits_of(student, tokens(8)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_holds_what_learns(wrapped: bool, saved: Callable[[str], Path]) -> None:
    adapter = {**LORA, "also": ("norm",)}
    one, other = student_of(saved("llama"), adapter, moved=True), student_of(saved("llama"), adapter, seed=7)
    first, second = (torch.nn.ModuleDict({"student": each}) if wrapped else each for each in (one, other))
    state = first.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == one.adapter_parameters
    assert not torch.equal(logits_of(one, tokens(8)), logits_of(other, tokens(8)))
    second.load_state_dict(state)
    assert torch.equal(logits_of(one, tokens(8)), logits_of(other, tokens(8)))
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing"):
        second.load_state_dict(state)


def test_dropout_is_a_function_of_seed_step_and_tokens(saved: Callable[[str], Path]) -> None:
    """So that a resumed run draws what an undisturbed one does; nothing drops out where no gradient is asked for."""
    adapter = {**LORA, "dropout": 0.5}
    student, again, other = (student_of(saved("llama"), adapter, seed=seed) for seed in (0, 0, 1))
    for each in (student, again, other):
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
                if "lora_A" in name:
                    parameter.copy_(student.get_parameter(name))
    generator_before = torch.get_rng_state()
    read = [each(tokens(8)).hidden_BTD.detach() for each in (student, again, other, student)]
    assert torch.equal(torch.get_rng_state(), generator_before)
    assert torch.equal(read[0], read[1])
    assert torch.equal(read[0], read[3])
    assert not torch.equal(read[0], read[2])
    student.set_fraction(0.5)
    assert not torch.equal(student(tokens(8)).hidden_BTD, read[0])
    with torch.no_grad():
        whole = student(tokens(8)).hidden_BTD
        student.set_fraction(0.25)
        assert torch.equal(whole, student(tokens(8)).hidden_BTD)
    student.train()
    assert not student.training


def test_muon_steps_the_matrices_of_an_adapter(saved: Callable[[str], Path]) -> None:
    student = student_of(saved("llama"), DORA)
    learning = [
        {**group, "params": [each for each in group["params"] if each.requires_grad]}
        for group in parameter_groups(Muon(), student)
    ]
    found = {(row.role, row.algorithm, row.tensors) for row in table(learning) if row.tensors}
    assert found == {("matrix", "muon", 2 * 7 * 3), ("vector", "adamw", 7 * 3)}


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo3", "gemma3"])
def test_parameters_are_the_configurations(name: str, saved: Callable[[str], Path]) -> None:
    spec = HuggingFaceStudent(model=str(saved(name)))
    counted, model = student_parameters(spec, vocab_size=VOCABULARY), AutoModelForCausalLM.from_pretrained(saved(name))
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert vocabulary(spec) == VOCABULARY


def test_what_is_frozen_has_no_gradients_to_pay_for(saved: Callable[[str], Path]) -> None:
    """Forward and the gradients of what layers read: twice 2 FLOPs a weight, the tied head among them; attention thrice."""
    folder, context = saved("llama"), 10
    weights = load_file(folder / "model.safetensors")
    inside = sum(tensor.numel() for name, tensor in weights.items() if "embed_tokens" not in name)
    attention = 2 * context * 3 * 32
    expected = 4 * (inside + VOCABULARY * 32) + 3 * attention + 6 * 1000
    frozen = HuggingFaceStudent(model=str(folder), adapter=LORA)
    found = training_flops_per_token(frozen, vocab_size=VOCABULARY, context=context, adapter_parameters=1000)
    assert found == pytest.approx(expected, rel=1e-12)
    whole = training_flops_per_token(HuggingFaceStudent(model=str(folder)), vocab_size=VOCABULARY, context=context)
    assert whole == pytest.approx(6 * (inside + VOCABULARY * 32) + 3 * attention, rel=1e-12)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tied head by rank": ({"targets": ("q_proj", "lm_head")}, "lm_head cannot be adapted, since"),
    "tied embedding": ({"targets": ("embed_tokens",)}, "one matrix"),
    "tied head": ({"also": ("lm_head",)}, "one matrix"),
    "no module": ({"also": ("layernorm_of_nothing",)}, "no module 'layernorm_of_nothing'"),
    "no target": ({"targets": ("c_attn",)}, "does not fit the model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adapted_is_refused(case: str, saved: Callable[[str], Path]) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(SpecError, match=words) as caught:
        student_of(saved("llama"), {**LORA, **changes})
    assert "\n" not in str(caught.value)


def test_a_head_is_not_adapted_by_rank(saved: Callable[[str], Path]) -> None:
    with pytest.raises(SpecError, match="losses read the head's own matrix"):
        student_of(saved("qwen3"), {**LORA, "targets": ("lm_head",)})


def test_an_untied_head_may_be_trained_in_full(saved: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = {**LORA, "also": ("lm_head",)}
    student = student_of(saved("qwen3"), adapter, moved=True)
    before = logits_of(student, tokens(8))
    save_pretrained(student, spec=HuggingFaceStudent(model=str(saved("qwen3")), adapter=adapter), folder=tmp_path / "student")
    require_close(logits_of(student_of(tmp_path / "student"), tokens(8)), before)


def test_models_that_cannot_be_students_are_one_line(saved: Callable[[str], Path], tmp_path: Path) -> None:
    biased = write(transformers.GPTJConfig(vocab_size=97, n_embd=32, n_layer=1, n_head=2, rotary_dim=4), tmp_path / "gptj")
    with pytest.raises(SpecError, match="logits are not made of hidden states and a matrix alone"):
        student_of(biased)
    with pytest.raises(SpecError, match=r"absent cannot be loaded") as caught:
        student_of(tmp_path / "absent")
    assert "\n" not in str(caught.value)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((saved("llama") / "config.json").read_text())
    torch.save(load_file(saved("llama") / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(SpecError, match="cannot be loaded"):
        student_of(pickled)


@pytest.mark.parametrize("adapter", [None, {**LORA, "also": ["norm"], "dropout": 0.1}, DORA], ids=["full", "lora", "dora"])
def test_the_public_checks_pass(adapter: dict[str, Any] | None, saved: Callable[[str], Path]) -> None:
    report = check_student(HuggingFaceStudent(model=str(saved("olmo3")), adapter=adapter))
    assert report.architecture == "Olmo3ForCausalLM"
    assert "packed documents" in report.checks
    assert "cache" not in report.checks


@pytest.mark.slow
@pytest.mark.quickstart_inputs
@torch.no_grad()
def test_a_real_model_begins_as_it_is() -> None:
    """Rank 16 on matrices of 576, 192 and 1,536 channels in thirty layers, and sixty-one norms."""
    from transformers import AutoTokenizer

    spec = HuggingFaceStudent(model="smollm2", adapter={"kind": "lora", "rank": 16, "also": ("norm",)})
    student, folder = load_pretrained(spec, seed=0), source_of(spec).model
    token_BT = AutoTokenizer.from_pretrained(folder)("The capital of France is", return_tensors="pt")["input_ids"]
    logits_BTV = logits_of(student, token_BT)
    assert AutoTokenizer.from_pretrained(folder).decode(logits_BTV[0, -1].argmax()) == " Paris"
    assert torch.equal(logits_BTV, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(token_BT).logits)
    assert student.adapter_parameters == 30 * 16 * (2 * 1152 + 2 * 768 + 3 * 2112) + 61 * 576
    assert student.reads_packed_rows
