"""Saved students open in transformers with equal logits, and come back as they were."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_students import FOREIGN, NATIVE, YARN, golf, ladder, moe, olmo3
from tiny_world import make_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Olmo3Config
from transformers import Olmo3ForCausalLM as TheirOlmo3

from limbeck.errors import LimbeckError
from limbeck.spec.parts import SharedExpert
from limbeck.spec.student import Student
from limbeck.students import hf
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.exported import foreign_part, native

VOCAB = 61


def moved(spec: Student, *, seed: int = 0) -> Decoder:
    """A student none of whose parameters and buffers is where it began."""
    student, draw = build(spec, vocab_size=VOCAB, seed=seed), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        for experts in student.experts():
            experts.router.bias.add_(0.1 * torch.randn(experts.router.bias.shape, generator=draw))
    return student.eval()


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def assert_same_weights(first: Decoder, second: Decoder) -> None:
    others = second.state_dict()
    assert list(others) == list(first.state_dict())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, others[name]), name


@pytest.mark.parametrize(("spec", "architecture"), NATIVE.values(), ids=NATIVE.keys())
@torch.no_grad()
def test_transformers_own_classes_open_a_saved_student_with_equal_logits(tmp_path, spec, architecture):
    student = moved(spec)
    hf.save(student, spec=spec, folder=tmp_path / "student", max_positions=64, eos_token_id=3, bos_token_id=2)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values())
    assert type(model).__name__ == architecture
    assert type(model).__module__.startswith("transformers.models.")
    assert model.dtype == torch.float32
    tokens_BT = random_tokens(2, 47)
    ours, theirs = student.logits(student(tokens_BT).hidden_BTD), model(tokens_BT).logits
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (model.config.max_position_embeddings, model.generation_config.eos_token_id) == (64, 3)

    again, spec_again, vocab_size = hf.load(tmp_path / "student")
    assert (spec_again, vocab_size) == (spec, VOCAB)
    assert_same_weights(again, student)


@pytest.mark.parametrize(("spec", "said"), FOREIGN.values(), ids=FOREIGN.keys())
@torch.no_grad()
def test_others_open_as_the_registered_class(tmp_path, spec, said):
    assert native(spec.layout) is None
    assert said in (foreign_part(spec.layout) or "")
    student = moved(spec)
    hf.save(student, spec=spec, folder=tmp_path / "student", max_positions=64, eos_token_id=3)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values())
    assert type(model).__name__ == "LimbeckForCausalLM"
    tokens_BT = random_tokens(2, 23)
    ours, theirs = student.logits(student(tokens_BT).hidden_BTD), model(tokens_BT).logits
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    again, spec_again, vocab_size = hf.load(tmp_path / "student")
    assert (spec_again, vocab_size) == (spec, VOCAB)
    assert_same_weights(again, student)


def test_yarn_is_in_the_full_layers_alone(tmp_path):
    spec = olmo3(yarn=YARN)
    hf.save(moved(spec), spec=spec, folder=tmp_path / "student", max_positions=256)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ropes = model.config.rope_parameters
    assert ropes["sliding_attention"] == {"rope_type": "default", "rope_theta": 500_000.0}
    full = ropes["full_attention"]
    assert (full["rope_type"], full["factor"], full["original_max_position_embeddings"]) == ("yarn", 4.0, 64)
    assert full["attention_factor"] == pytest.approx(1.1386294361119891)  # 0.1 ln 4 + 1
    with torch.no_grad():
        plain_BTD, stretched_BTD = (moved(each)(random_tokens(2, 23)).hidden_BTD for each in (olmo3(), spec))
    assert (plain_BTD - stretched_BTD).abs().max() > 1e-2


def test_the_config_says_everything(tmp_path):
    spec = olmo3(rms_norm_eps=1e-6)
    hf.save(moved(spec), spec=spec, folder=tmp_path / "student", max_positions=64)
    values = json.loads((tmp_path / "student" / "config.json").read_text())
    config = AutoConfig.from_pretrained(tmp_path / "student")
    # transformers would fill in 1e-5, 50279, 1 and hidden_size / heads = 12.
    assert (values["rms_norm_eps"], values["head_dim"]) == (1e-6, 16)
    assert (config.eos_token_id, config.pad_token_id, config.head_dim) == (None, None, 16)
    assert values["rope_parameters"]["sliding_attention"]["rope_theta"] == 500_000
    assert values["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]


def test_an_annealed_share_and_the_routers_biases_are_in_the_folder(tmp_path):
    spec = moe(shared_expert=SharedExpert(size=24, schedule="anneal", until=0.8))
    student = moved(spec)
    student.set_fraction(0.2)
    student.rebalance(torch.arange(24.0).reshape(3, 8))
    hf.save(student, spec=spec, folder=tmp_path / "student", max_positions=64)
    saved = load_file(tmp_path / "student" / "model.safetensors")
    shares = [tensor.item() for name, tensor in saved.items() if name.endswith("shared_share")]
    assert shares == [pytest.approx(0.75)] * 3  # a quarter of the way from 1 to 0
    biases = [tensor for name, tensor in saved.items() if name.endswith("router.bias")]
    for bias_E, experts in zip(biases, student.experts(), strict=True):
        assert bias_E.dtype == torch.float32 and torch.equal(bias_E, experts.router.bias)
    again, _, _ = hf.load(tmp_path / "student")
    assert_same_weights(again, student)


def test_saving_replaces_a_folder_and_leaves_nothing_beside_it(tmp_path):
    folder, spec = tmp_path / "student", olmo3()
    for seed in (0, 1):
        hf.save(moved(spec, seed=seed), spec=spec, folder=folder, max_positions=64)
        (folder / "stray").touch()
    hf.save(moved(spec, seed=2), spec=spec, folder=folder, max_positions=64)
    assert not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert torch.equal(hf.load(folder)[0].head_VD, moved(spec, seed=2).head_VD)


def test_a_failed_save_keeps_the_old_folder(tmp_path):
    folder, spec = tmp_path / "student", olmo3()
    hf.save(moved(spec), spec=spec, folder=folder, max_positions=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match="no tokenizer files"):
        hf.save(moved(spec), spec=spec, folder=folder, max_positions=64, tokenizer_folder=tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "student"]
    assert hf.load(folder)[2] == VOCAB


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder, spec, replace, calls = tmp_path / "student", olmo3(), os.replace, []
    student = moved(spec)
    hf.save(student, spec=spec, folder=folder, max_positions=64)

    def refuse_the_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    with pytest.raises(OSError, match="no"):
        hf.save(moved(spec, seed=1), spec=spec, folder=folder, max_positions=64)
    assert len(calls) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert_same_weights(hf.load(folder)[0], student)


def test_what_a_kill_left_beside_a_folder_is_in_nobodys_way(tmp_path, monkeypatch):
    """Also where a later process has the number of the killed one, as in containers."""
    spec, rmtree = olmo3(), shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(LimbeckError, match="no tokenizer files"):
        hf.save(moved(spec), spec=spec, folder=tmp_path / "student", max_positions=64, tokenizer_folder=tmp_path)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert len(list(tmp_path.glob(".student.*"))) == 1
    hf.save(moved(spec), spec=spec, folder=tmp_path / "student", max_positions=64)
    assert hf.load(tmp_path / "student")[2] == VOCAB


@pytest.mark.parametrize("spec", [olmo3(), golf()], ids=["native", "registered"])
def test_the_tokenizer_travels_with_the_student(tmp_path, spec):
    make_tokenizer(tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"none of the student's business")
    student = build(spec, vocab_size=300, seed=0)
    folder = tmp_path / "student"
    hf.save(student, spec=spec, folder=folder, max_positions=64, tokenizer_folder=tmp_path / "teacher", eos_token_id=1)
    hf.save_again(folder, to=tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (place, tmp_path / "teacher"))
        assert ours("the state of the union") == theirs("the state of the union")
        assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert json.loads((place / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_the_card_counts_parameters_and_says_what_to_import(tmp_path):
    for name, spec in (("ours", golf()), ("theirs", olmo3())):
        student = moved(spec)
        hf.save(student, spec=spec, folder=tmp_path / name, max_positions=64)
        card = (tmp_path / name / "README.md").read_text()
        assert f"{sum(parameter.numel() for parameter in student.parameters()):,}" in card
        assert ("import limbeck.students.registered" in card) == (name == "ours")


@torch.no_grad()
@pytest.mark.parametrize("yarn", [None, YARN], ids=["plain", "yarn"])
def test_an_olmo3_of_anyones_loads_sharded_and_in_bfloat16(tmp_path, yarn):
    rope = {"rope_type": "default", "rope_theta": 1e4}
    full = (
        dict(rope)
        if yarn is None
        else {
            **rope,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
        }
    )
    config = Olmo3Config(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=5,
        rope_parameters={"sliding_attention": rope, "full_attention": full},
        layer_types=["sliding_attention", "full_attention"],
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = TheirOlmo3(config).bfloat16()
    model.save_pretrained(tmp_path / "hub", max_shard_size="50KB")
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    student, spec, vocab_size = hf.load(tmp_path / "hub")
    assert (spec.kind, spec.full_attention_every, vocab_size, spec.yarn) == ("olmo3", 2, VOCAB, yarn)
    assert student.head_VD.dtype == torch.float32
    tokens_BT = random_tokens(2, 23)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", dtype=torch.float32)
    ours, theirs = student.logits(student(tokens_BT).hidden_BTD), wide(tokens_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_other_models_are_refused_by_name(tmp_path):
    with pytest.raises(LimbeckError, match=r"no config\.json"):
        hf.load(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    with pytest.raises(LimbeckError, match="'llama' that Limbeck did not save"):
        hf.load(tmp_path / "llama")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(LimbeckError, match="'gpt2'"):
        hf.load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (
            olmo3(),
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
            "rotary positions",
        ),
        (olmo3(yarn=YARN), {"rope_parameters": {"full_attention": {"attention_factor": 1.0}}}, "rotary positions"),
        (ladder(), {"rms_norm_eps": 0.5}, "changed since"),
        (golf(), {"student": {"kind": "golf", "hidden_sizes": 3}}, "did you mean 'hidden_size'"),
        (golf(), {"student": {"hidden_size": 64}}, "weights are not those"),
    ],
)
def test_variants_that_a_student_cannot_be_are_refused(tmp_path, spec, change, message):
    hf.save(moved(spec), spec=spec, folder=tmp_path / "s", max_positions=64)
    path = tmp_path / "s" / "config.json"
    values = json.loads(path.read_text())
    for key, value in change.items():
        if key == "rope_parameters":
            value = {kind: {**rope, **value.get(kind, {})} for kind, rope in values[key].items()}
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(values))
    with pytest.raises(LimbeckError, match=message):
        hf.load(tmp_path / "s")


def not_json(path):
    path.write_text("{")


def a_list(path):
    path.write_text("[]")


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def no_head(path):
    path.write_bytes(path.read_bytes()[:3])


def setting(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("spec", [olmo3(), ladder(), golf()], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("config.json", not_json, "is damaged"),
        ("config.json", a_list, "is damaged"),
        ("config.json", lambda path: path.write_bytes(b"\xff"), "is damaged"),
        ("config.json", lambda path: path.write_text('{"a":' * 100_000), "is damaged"),
        ("config.json", setting(hidden_size="x"), "is damaged"),
        ("config.json", setting(vocab_size="x"), "is damaged"),
        ("config.json", setting(vocab_size=-5), "is damaged"),
        ("config.json", setting(vocab_size=2**61), "the weights are not those"),
        ("config.json", setting(vocab_size=2**70), "the weights are not those"),
        ("config.json", setting(max_position_embeddings="x"), "is damaged"),
        ("config.json", setting(dtype="nonsense"), "is damaged"),
        ("config.json", setting(limbeck_student="x", student="x"), "config.json"),
        ("config.json", setting(limbeck_student=[1], student=[1]), "config.json"),
        ("model.safetensors", cut, "is damaged"),
        ("model.safetensors", no_head, "is damaged"),
        ("model.safetensors", lambda path: path.write_text("x" * 100), "is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line_that_names_the_file(tmp_path, spec, name, damage, said):
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "s", max_positions=64)
    damage(tmp_path / "s" / name)
    with pytest.raises(LimbeckError, match=said) as caught:
        hf.save_again(tmp_path / "s", to=tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "s") in str(caught.value)
    assert name in str(caught.value) or "of its config.json" in str(caught.value)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("change", [{"hidden_size": -4}, {"rope_theta": "x"}, {"yarn": {"factor": "x"}}], ids=str)
def test_an_olmo3_of_anyones_whose_sizes_are_none_is_refused(tmp_path, change):
    spec = olmo3(yarn=YARN)
    hf.save(build(spec, vocab_size=VOCAB, seed=0), spec=spec, folder=tmp_path / "s", max_positions=64)
    path = tmp_path / "s" / "config.json"
    values = json.loads(path.read_text())
    del values["limbeck_student"]
    rope = values["rope_parameters"]["full_attention"]
    rope |= change.pop("yarn", {}) | {name: change.pop(name) for name in list(change) if name in rope}
    path.write_text(json.dumps({**values, **change}))
    with pytest.raises(LimbeckError, match=r"config\.json|rotary positions"):
        hf.load(tmp_path / "s")


def test_an_edited_olmo3_is_what_its_config_says_and_not_what_it_was(tmp_path):
    """transformers reads the plain fields, and so must we."""
    spec = olmo3()
    hf.save(moved(spec), spec=spec, folder=tmp_path / "s", max_positions=64)
    path = tmp_path / "s" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": 9}))
    assert hf.load(tmp_path / "s")[1] == olmo3(sliding_window=9)


@pytest.mark.parametrize(
    "spec",
    [
        olmo3(full_attention_every=3, tied_embeddings=True),
        olmo3(yarn=YARN),
        olmo3(yarn=YARN, full_attention_every=1, sliding_window=4096),
        olmo3(full_attention_every=5),
    ],
)
def test_an_olmo3s_spec_can_be_told_from_its_config(tmp_path, spec):
    hf.save(moved(spec), spec=spec, folder=tmp_path / "s", max_positions=64)
    path = tmp_path / "s" / "config.json"
    values = json.loads(path.read_text())
    del values["limbeck_student"]
    path.write_text(json.dumps(values))
    assert hf.load(tmp_path / "s")[1] == spec
