"""Saved students open in transformers with equal logits, and come back as they were."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from limbeck.errors import LimbeckError
from limbeck.spec.student import Olmo3Student
from limbeck.students import hf
from limbeck.students.build import build

VOCAB = 61


def spec_of(**changes) -> Olmo3Student:
    sizes = {"hidden_size": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 80}
    return Olmo3Student(**{**sizes, "sliding_window": 5, "init_std": 0.3, **changes})


CASES = {
    "wide attention": {},
    "tied": {"tied_embeddings": True},
    "one head per key, plain width": {"num_heads": 3, "num_kv_heads": 3},
    "other constants": {"rope_theta": 1234.0, "rms_norm_eps": 1e-2, "full_attention_every": 3, "sliding_window": 7},
    "no full layer": {"full_attention_every": 5},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_transformers_opens_a_saved_student_with_equal_logits(tmp_path, changes):
    spec = spec_of(**changes)
    student = build(spec, vocab_size=VOCAB, seed=0)
    hf.save(student, spec=spec, folder=tmp_path / "student", max_positions=64, eos_token_id=3, bos_token_id=2)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values())
    assert model.dtype == torch.float32
    tokens_BT = torch.randint(0, VOCAB, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = student(tokens_BT) @ student.head_VD.T, model(tokens_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (model.config.max_position_embeddings, model.generation_config.eos_token_id) == (64, 3)

    again, spec_again, vocab_size = hf.load(tmp_path / "student")
    assert (spec_again, vocab_size) == (spec, VOCAB)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())


def test_the_config_says_everything(tmp_path):
    spec = spec_of(rms_norm_eps=1e-6)
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "student", max_positions=64)
    values = json.loads((tmp_path / "student" / "config.json").read_text())
    config = AutoConfig.from_pretrained(tmp_path / "student")
    # transformers would fill in 1e-5, 50279, 1 and hidden_size / heads = 12.
    assert (values["rms_norm_eps"], values["head_dim"]) == (1e-6, 16)
    assert (config.eos_token_id, config.pad_token_id, config.head_dim) == (None, None, 16)
    assert values["rope_parameters"]["sliding_attention"]["rope_theta"] == 500_000
    assert values["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]


def test_saving_replaces_a_folder_and_leaves_nothing_beside_it(tmp_path):
    folder, spec = tmp_path / "student", spec_of()
    for seed in (0, 1):
        hf.save(build(spec, vocab_size=VOCAB, seed=seed), spec=spec, folder=folder, max_positions=64)
        (folder / "stray").touch()
    hf.save(build(spec, vocab_size=VOCAB, seed=2), spec=spec, folder=folder, max_positions=64)
    assert not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    expected = build(spec, vocab_size=VOCAB, seed=2)
    assert torch.equal(hf.load(folder)[0].head_VD, expected.head_VD)


def test_a_failed_save_keeps_the_old_folder(tmp_path):
    folder, spec = tmp_path / "student", spec_of()
    student = build(spec, vocab_size=VOCAB, seed=0)
    hf.save(student, spec=spec, folder=folder, max_positions=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match="no tokenizer files"):
        hf.save(student, spec=spec, folder=folder, max_positions=64, tokenizer_folder=tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "student"]
    assert hf.load(folder)[2] == VOCAB


def test_the_tokenizer_travels_with_the_student(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "still": 1, "copper": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    source = tmp_path / "teacher"
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>").save_pretrained(source)
    (source / "model.safetensors").write_bytes(b"not a tokenizer's file")
    spec = spec_of()
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "s", max_positions=64, tokenizer_folder=source)
    assert AutoTokenizer.from_pretrained(tmp_path / "s")("copper still")["input_ids"] == [2, 1]
    assert hf.load(tmp_path / "s")[2] == VOCAB


def test_the_model_card_counts_the_parameters(tmp_path):
    spec = spec_of()
    student = build(spec, vocab_size=VOCAB, seed=0)
    hf.save(student, spec=spec, folder=tmp_path / "s", max_positions=64)
    card = (tmp_path / "s" / "README.md").read_text()
    assert f"{sum(parameter.numel() for parameter in student.parameters()):,}" in card


def test_sharded_bfloat16_folders_of_transformers_load(tmp_path):
    spec = spec_of()
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "one", max_positions=64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    student, spec_again, _ = hf.load(tmp_path / "many")
    assert spec_again == spec
    assert student.head_VD.dtype == torch.float32
    assert torch.equal(student.head_VD, model.lm_head.weight.float())


def test_other_models_are_refused_by_name(tmp_path):
    with pytest.raises(LimbeckError, match=r"no config\.json"):
        hf.load(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    with pytest.raises(LimbeckError, match="'llama'"):
        hf.load(tmp_path / "llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "one full layer in every"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}}, "rotary positions"),
    ],
)
def test_variants_that_a_student_cannot_be_are_refused(tmp_path, change, message):
    spec = spec_of()
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "s", max_positions=64)
    path = tmp_path / "s" / "config.json"
    values = json.loads(path.read_text())
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(values))
    with pytest.raises(LimbeckError, match=message):
        hf.load(tmp_path / "s")
