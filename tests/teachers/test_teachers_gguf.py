"""GGUF teachers: a tiny file written here with the `gguf` package, and the real SmolLM2-135M-Instruct."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, LlamaFileType, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck import gguf_folder
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import TeacherError
from limbeck.spec.teacher import Context, GGUFTeacher, SmolLM2Teacher
from limbeck.teachers.files import locate, read_config
from limbeck.teachers.huggingface import load_teacher

CPU = torch.device("cpu")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, *, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring channels, Hugging Face halves: `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, folder: Path) -> None:
    """The tiny teacher's folder as a float32 GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer = GGUFWriter(str(path), "llama")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in {"<s>", "</s>"} else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, hub_name in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")):
        writer.add_tensor(f"{name}.weight", weights[f"{hub_name}.weight"])
    for layer in range(config.num_hidden_layers):
        for hub_name, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{hub_name}.weight"]
            if name in {"attn_q", "attn_k"}:
                heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                weight = interleaved(weight, heads=heads)
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf(tmp_path: Path, teacher_folder: Path) -> Path:
    path = tmp_path / "Tiny-F32.gguf"
    write_gguf(path, teacher_folder)
    return path


@torch.no_grad()
def test_a_gguf_file_is_the_model_it_was_written_from(gguf: Path, teacher_folder: Path) -> None:
    teacher = load_teacher(GGUFTeacher(path=str(gguf), dtype="float32", context=Context(window=48, overlap=16)), device=CPU)
    assert teacher.identity["quantisation"] == "gguf ALL_F32"
    assert teacher.identity["name"] == "tiny-f32"
    original = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    for name, expected in original.state_dict().items():
        # Kept in bfloat16: 8 significant bits.
        torch.testing.assert_close(teacher.model.state_dict()[name], expected, rtol=2**-8, atol=0)
    for parameter in original.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)  # the same rounding, by torch alone
    ids = torch.arange(2, 40)[None]
    torch.testing.assert_close(teacher.logits(ids), original(input_ids=ids).logits, rtol=1e-5, atol=2e-5)
    text = "the state of the union. énergie 42\n"
    expected_ids = AutoTokenizer.from_pretrained(teacher_folder)(text, add_special_tokens=False)["input_ids"]
    assert load_tokenizer(teacher.files.model).encode([text])[0].tolist() == [0, *expected_ids, 1]


def test_a_file_is_converted_once_and_again_when_it_changes(
    gguf: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = locate(GGUFTeacher(path=str(gguf)))
    config = read_config(first)
    assert config is not None
    assert config["vocab_size"] == 300

    def refuse(*arguments: object) -> None:
        raise AssertionError("converted again")

    with monkeypatch.context() as patched:
        patched.setattr(gguf_folder, "_convert", refuse)
        moved = gguf.rename(gguf.with_name("moved.gguf"))
        again = locate(GGUFTeacher(path=str(moved)))
        assert (again.model, again.revision) == (first.model, first.revision)
    moved.write_bytes(moved.read_bytes()[:-4] + np.float32(0.25).tobytes())
    assert locate(GGUFTeacher(path=str(moved))).model != first.model


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 50])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"broken\.gguf") as caught:
        locate(GGUFTeacher(path=str(path)))
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_one_line_and_leaves_nothing(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    gguf.write_bytes(gguf.read_bytes()[:-2000])
    with pytest.raises(TeacherError, match=r"Tiny-F32\.gguf") as caught:
        locate(GGUFTeacher(path=str(gguf)))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_two_processes_may_convert_at_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is done while this one is still converting: its folder is as good as ours."""
    original = gguf_folder._convert

    def also_by_another(source: Path, folder: Path) -> None:
        original(source, folder)
        monkeypatch.setattr(gguf_folder, "_convert", original)
        original(source, folder)

    monkeypatch.setattr(gguf_folder, "_convert", also_by_another)
    found = locate(GGUFTeacher(path=str(gguf)))
    assert Path(found.model, "config.json").is_file()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"absent\.gguf does not exist"):
        locate(GGUFTeacher(path=str(tmp_path / "absent.gguf")))


@pytest.mark.slow
@pytest.mark.quickstart_inputs
@torch.no_grad()
def test_the_real_teacher_speaks() -> None:
    teacher = load_teacher(SmolLM2Teacher(dtype="float32"), device=CPU)
    tokenizer = AutoTokenizer.from_pretrained(teacher.files.model)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    continued = teacher.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
    )
    assert tokenizer.decode(continued[0, ids.shape[1] :]) == " Paris"
    assert teacher.head_VE is not None
    assert teacher.vocab_size == 49152


@pytest.mark.slow
@pytest.mark.quickstart_inputs
@torch.no_grad()
def test_the_real_teacher_is_transformers_reading_of_the_file() -> None:
    teacher = load_teacher(SmolLM2Teacher(dtype="float32"), device=CPU)
    packaged = gguf_folder.smollm2_in_package()
    assert packaged is not None
    direct = AutoModelForCausalLM.from_pretrained(str(packaged.parent), gguf_file=packaged.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(packaged.parent), gguf_file=packaged.name)
    ids = tokenizer("We the People of the United States, in Order to form a more perfect Union", return_tensors="pt")[
        "input_ids"
    ]
    expected, found = direct(input_ids=ids).logits, teacher.logits(ids)
    # bfloat16 weights: each of some 30 layers adds a relative error of 2^-9; the logits have a spread of about 5.
    assert (found - expected).abs().mean() < 0.05 * expected.std()
    kl = torch.nn.functional.kl_div(found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    assert float(kl) / ids.shape[1] < 1e-2
