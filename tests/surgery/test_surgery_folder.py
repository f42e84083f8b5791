"""Pruned folders: made once, found again, refused with one sentence, and never half-written."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from prunable import apart, logits, model_of, tokens
from tiny_students import golf, ladder, moe, olmo3
from tiny_world import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.paths import cache_folder
from limbeck.plan.prune_shapes import base_pruning
from limbeck.spec.base import parse
from limbeck.spec.data import Data, FileTexts
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import BlockInfluence, Calibration, Pruning
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students import hf
from limbeck.students.build import build_decoder
from limbeck.students.pretrained import load_pretrained
from limbeck.surgery import calibration as calibrating
from limbeck.surgery import folder as folders
from limbeck.surgery import importance
from limbeck.surgery.anatomy import anatomy_of
from limbeck.surgery.calibration import calibration_rows
from limbeck.surgery.cut import cut
from limbeck.surgery.depth import choose_layers
from limbeck.surgery.folder import prune_folder, pruned_student, read_record
from limbeck.surgery.importance import measure_importance
from limbeck.surgery.keep import Kept
from limbeck.surgery.scores import Scores

CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four layers with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("parent")
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=300, num_hidden_layers=4, initializer_range=0.3, **sizes, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def data(texts_folder: Path) -> Data:
    texts = {name: {"kind": "files", "paths": [f"{texts_folder}/{name}/*.txt"]} for name in ("train", "heldout")}
    return Data(**texts)


def student(folder: Path, *, samples: int = 8, sequence_length: int = 16, chats: str | None = None, **asked):
    calibration = Calibration(samples=samples, sequence_length=sequence_length, chats=chats)
    return HuggingFaceStudent(model=str(folder), prune=Pruning(**asked, calibration=calibration))


def counted(monkeypatch) -> list[int]:
    """How many rows importance was measured on, each time."""
    found = []

    def measure(model, rows, **options):
        found.append(len(rows))
        return measure_importance(model, rows, **options)

    monkeypatch.setattr(calibrating, "measure_importance", measure)
    return found


def test_a_second_call_finds_the_first(parent, data, monkeypatch):
    """Without reading anything; another size reads nothing again either, another calibration does."""
    measured = counted(monkeypatch)
    first = prune_folder(student(parent, hidden_size=24, num_layers=3), data=data)
    assert first.is_relative_to(cache_folder())
    assert measured == [8]
    with monkeypatch.context() as patched:
        patched.setattr("limbeck.surgery.folder.load_causal_lm", lambda spec: pytest.fail("loaded"))
        assert prune_folder(student(parent, hidden_size=24, num_layers=3), data=data) == first
    second = prune_folder(student(parent, intermediate_size=40), data=data)
    assert second != first and measured == [8]
    third = prune_folder(student(parent, intermediate_size=40, samples=9), data=data)
    assert third != second and measured == [8, 9]


def changed(parent: Path, folder: Path, name: str, change) -> Path:
    """A copy of the parent with one JSON file, or the chat template, changed."""
    shutil.copytree(parent, folder)
    path = folder / name
    text = path.read_text()
    path.write_text(change(text) if name.endswith("jinja") else json.dumps(change(json.loads(text))))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "anew"),
    [
        ("config.json", lambda config: config | {"rms_norm_eps": 1e-2}, True),
        ("config.json", lambda config: config | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, True),
        ("chat_template.jinja", lambda text: text.replace("<s>", "</s>"), True),
        ("generation_config.json", lambda values: values | {"temperature": 0.5, "do_sample": True}, False),
        ("config.json", lambda config: config | {"transformers_version": "1"}, None),
    ],
)
def test_what_is_made_depends_on_all_that_the_parent_is(parent, data, tmp_path, monkeypatch, name, change, anew):
    """`anew`: importance is measured once more; None: there is nothing new to make."""
    line = {"messages": [{"role": "user", "content": "the state of the people"}, {"role": "assistant", "content": "war"}]}
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(line)] * 20))
    asked = {"hidden_size": 24, "chats": str(tmp_path / "chats.jsonl")}
    first = prune_folder(student(parent, **asked), data=data)
    measured = counted(monkeypatch)
    second = prune_folder(student(changed(parent, tmp_path / "changed", name, change), **asked), data=data)
    assert (second != first, bool(measured)) == (anew is not None, bool(anew))


def test_another_precision_measures_anew(parent, data, monkeypatch):
    first = prune_folder(student(parent, hidden_size=24), data=data)
    measured = counted(monkeypatch)
    other = {"bfloat16": torch.float32, "float32": torch.bfloat16}
    with monkeypatch.context() as patched:
        pick = importance.pick_dtype
        patched.setattr(importance, "pick_dtype", lambda *named: other[str(pick(*named)).removeprefix("torch.")])
        assert prune_folder(student(parent, hidden_size=24), data=data) != first
    assert measured == [8]


def test_two_that_prune_the_same_wait_for_one_another(parent, data, monkeypatch):
    """The second begins while the first has all but written its folder: it reads nothing, and what a killed one left goes."""
    spec, asleep, saved = student(parent, hidden_size=24), threading.Event(), threading.Event()
    left = cache_folder() / "pruned" / f".{prune_folder(spec, data=data).name}.1-00.partial"
    shutil.rmtree(cache_folder() / "pruned")
    left.mkdir(parents=True)
    loaded, say, load, save = [], folders.say, folders.load_causal_lm, folders._save

    def saving(*arguments, **named):
        asleep.set()
        assert saved.wait(20)
        save(*arguments, **named)

    def saying(line):
        say(line)
        if "waiting" in line:
            saved.set()

    monkeypatch.setattr(folders, "_save", saving)
    monkeypatch.setattr(folders, "say", saying)
    monkeypatch.setattr(folders, "load_causal_lm", lambda spec: loaded.append(spec) or load(spec))
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(prune_folder, spec, data=data)
        assert asleep.wait(20)
        other = threads.submit(prune_folder, spec, data=data)
        assert one.result() == other.result()
    assert len(loaded) == 1 and [path.name for path in left.parent.iterdir()] == [one.result().name]


def test_what_the_configuration_says_is_said_before_anything_is_read(parent, data, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrating, "prepare", lambda *_: pytest.fail("read the texts"))
    asked = {"num_layers": 2, "keep_first": 0, "contiguous": True}
    with pytest.raises(SpecError, match="only 2 may go"):
        prune_folder(student(parent, num_layers=1), data=data)
    kinds = {"model_type": "olmo3", "layer_types": ["sliding_attention", "full_attention"] * 2}
    olmo3 = changed(parent, tmp_path / "olmo3", "config.json", lambda config: config | kinds)
    with pytest.raises(SpecError, match="no 2 neighbouring layers may go together"):
        prune_folder(student(olmo3, **asked, drop_types="sliding"), data=data)


def test_the_folder_has_all_that_a_model_needs(parent, data):
    spec = student(parent, hidden_size=24, num_heads=2, intermediate_size=40, num_layers=3)
    folder = prune_folder(spec, data=data)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == CHAT and model.generation_config.eos_token_id == 1
    assert (model.config.hidden_size, model.config.head_dim, model.config.num_hidden_layers) == (24, 8, 3)
    record = read_record(folder)
    assert record["parent"]["model"] == str(parent) and record["pruning"] == spec.prune.model_dump(mode="json")
    assert record["after"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["before"]["parameters"] == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(parent).parameters())
    assert (record["before"]["num_layers"], record["after"]["num_layers"], record["calibration_tokens"]) == (4, 3, 128)
    kept = record["kept"]
    assert len(record["influence"]) == 4 and len(kept["layers"]) == 3 and {0, 3} <= set(kept["layers"])
    whole = AutoModelForCausalLM.from_pretrained(parent).state_dict()
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding, whole["model.embed_tokens.weight"][:, kept["hidden"]], rtol=0, atol=0)
    for place, layer in enumerate(kept["layers"]):
        ups = whole[f"model.layers.{layer}.mlp.up_proj.weight"][kept["neurons"][place]][:, kept["hidden"]]
        torch.testing.assert_close(model.model.layers[place].mlp.up_proj.weight, ups, rtol=0, atol=0)
    assert "| hidden_size | 32 | 24 |" in (folder / "README.md").read_text()


def test_layers_by_their_places_need_no_texts(parent):
    folder = prune_folder(student(parent, layers=(0, 2)), data=None)
    whole, found = AutoModelForCausalLM.from_pretrained(parent), AutoModelForCausalLM.from_pretrained(folder)
    del whole.model.layers[3], whole.model.layers[1]
    for place, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = place
    whole.config.num_hidden_layers = 2
    token_BT = tokens()
    assert torch.equal(found(token_BT).logits, whole(token_BT, use_cache=False).logits)
    assert read_record(folder)["influence"] is None


def test_a_place_of_its_own(parent, data, tmp_path):
    spec = student(parent, hidden_size=24)
    assert prune_folder(spec, data=data, to=tmp_path / "a") == tmp_path / "a"
    assert prune_folder(spec, data=data, to=tmp_path / "a") == tmp_path / "a"
    with pytest.raises(SpecError, match="exists and holds something else"):
        prune_folder(student(parent, hidden_size=16), data=data, to=tmp_path / "a")
    (tmp_path / "mine").mkdir()
    with pytest.raises(SpecError, match="exists and holds something else"):
        prune_folder(spec, data=data, to=tmp_path / "mine")
    (tmp_path / "a" / "pruning.json").write_text("{")
    with pytest.raises(LimbeckError, match=r"pruning.json is damaged"):
        prune_folder(spec, data=data, to=tmp_path / "a")


def test_a_student_is_loaded_from_it(parent, data):
    spec = student(parent, hidden_size=24)
    done = pruned_student(spec, data=data)
    assert done.prune is None and load_pretrained(done, seed=0).head_VD.shape == (300, 24)
    assert pruned_student(done, data=data) is done


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hidden_size": 33}, "hidden_size=33 is more than the model's 32"),
        ({"num_heads": 3}, "num_heads=3 is not a multiple of the 2 heads"),
        ({"num_layers": 1}, "only 2 may go"),
        ({"hidden_size": 32, "num_layers": 4}, "asks for the sizes that the model has"),
        ({"layers": (0, 1, 2, 3)}, "asks for the sizes that the model has"),
        ({"num_layers": 3, "drop_types": "sliding"}, "all of the model's layers are of one kind"),
        ({"hidden_size": 24, "sequence_length": 5000}, r"texts: all documents together have \d+ tokens, fewer than one row"),
        ({"hidden_size": 24, "chats": "nothing.jsonl"}, "chats=nothing.jsonl is no file"),
    ],
)
def test_what_cannot_be_is_said_once_and_leaves_nothing(parent, data, monkeypatch, asked, message):
    measured = counted(monkeypatch)
    with pytest.raises(SpecError, match=message):
        prune_folder(student(parent, **asked), data=data)
    assert not (cache_folder() / "pruned").exists() and measured == []


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        ({"num_heads": 2, "contiguous": True, "keep_last": 0}, "contiguous, keep_last would do nothing: no layers are chosen"),
        ({"layers": (0, 1), "depth": {"kind": "loss"}}, "depth would do nothing: no layers are chosen"),
        ({"num_layers": 3, "hidden_scores": "raw_sum"}, "hidden_scores would do nothing: no channels are chosen"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(parent, data, asked, idle):
    """Whether they come by a recipe or in a copy; one that was written out with its defaults is as it was."""
    with pytest.raises(SpecError, match=idle):
        parse(Pruning, asked, source="test")
    spec = student(parent, num_heads=2)
    copied = spec.model_copy(update={"prune": base_pruning({"num_heads": 2, "contiguous": True})})
    with pytest.raises(SpecError, match="contiguous would do nothing"):
        prune_folder(copied, data=data)
    for whole in (spec.prune, Pruning(num_layers=3, contiguous=True), Pruning(hidden_size=8, hidden_scores="raw_sum")):
        assert parse(Pruning, whole.model_dump(mode="json"), source="test") == whole


def test_without_texts_there_is_nothing_to_measure_on(parent):
    with pytest.raises(SpecError, match=r"names neither texts nor chats: set student.prune.calibration.texts"):
        prune_folder(student(parent, hidden_size=24), data=None)


def test_without_a_tokenizer_nothing_can_be_read(tmp_path, data):
    model_of("llama").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no tokenizer"):
        prune_folder(student(tmp_path, hidden_size=24), data=data)


def test_a_module_that_is_not_known_is_named():
    model = model_of("llama")
    model.model.layers[2].mlp.extra_proj = torch.nn.Linear(3, 5)
    with pytest.raises(SpecError, match=r"model.layers.2.mlp.extra_proj is not recognised \(its weight is 5 x 3\).*qwen3"):
        anatomy_of(model)
    model = model_of("olmo2")
    model.model.layers[1].self_attn.q_norm = torch.nn.LayerNorm(7, bias=False)
    with pytest.raises(SpecError, match=r"model.layers.1.self_attn.q_norm is not recognised \(its weight is 7\)"):
        anatomy_of(model)


@pytest.mark.parametrize("spec", [golf(), UpcycledStudent(dense=ladder(), num_experts=4, first_layer=1)])
def test_families_that_cannot_be_pruned(spec, tmp_path, data):
    hf.save(build_decoder(spec, vocab_size=97, seed=0), spec=spec, folder=tmp_path, max_positions=64)
    make_tokenizer(tmp_path)
    with pytest.raises(SpecError, match=f"family {spec.kind} cannot be pruned"):
        prune_folder(student(tmp_path, layers=(0,)), data=data)


OURS = {
    "olmo3": olmo3(),
    "ladder": ladder(num_layers=4),
    "moe": moe(),
    "moe, dense": moe(dense_layers=4, activation="swiglu", sinks=False),
}


@pytest.mark.parametrize("name", OURS)
def test_students_that_limbeck_saved(name, tmp_path, data):
    """Again a folder of the class that it was, with layers whose pattern is broken; an olmo3 and a moe are students again."""
    spec, folder = OURS[name], tmp_path / "s"
    hf.save(build_decoder(spec, vocab_size=300, seed=0), spec=spec, folder=folder, max_positions=64)
    make_tokenizer(folder)
    pruning = {"hidden_size": 32, "layers": (0, 2, 3), "num_heads": 2}
    new = AutoModelForCausalLM.from_pretrained(prune_folder(student(folder, **pruning), data=data))
    assert type(new) is type(AutoModelForCausalLM.from_pretrained(folder))
    sizes = anatomy_of(new).sizes
    assert (sizes.hidden_size, sizes.num_layers, sizes.num_heads) == (32, 3, 2)
    if name in ("olmo3", "moe"):
        made, loaded, _ = hf.load(prune_folder(student(folder, **pruning), data=data))
        assert [kind == "full_attention" for kind in loaded.kinds] == [False, False, True]
        token_BT = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(made.logits(made(token_BT).hidden_BTD), new(token_BT).logits, rtol=1e-4, atol=1e-5)


def test_rows_are_full_and_speak_of_many_documents(parent, tmp_path):
    """Three documents of 40, 41 words and one, and chats of a few words: rows of 8 tokens."""
    for name, words in (("a", 40), ("b", 41), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text(" ".join([f"state{name}"] * words))
    tokenizer = load_tokenizer(str(parent))
    texts = FileTexts(paths=(f"{tmp_path}/*.txt",))
    rows = calibration_rows(Calibration(texts=texts, samples=4, sequence_length=8), tokenizer)
    assert [len(row) for row in rows] == [8] * 4
    read = [tokenizer.backend.decode(row) for row in rows]
    assert len({"a" if "statea" in text else "b" for text in read[:2]}) == 2, "the first rows are of both long documents"
    assert all(text.startswith("<s>") for text in read[:2]) and not any(text.startswith("<s>") for text in read[2:])
    lines = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}] * 9
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    mixed = Calibration(texts=texts, chats=str(tmp_path / "chats.jsonl"), samples=4, sequence_length=8)
    rows = calibration_rows(mixed, tokenizer)
    assert torch.equal(
        torch.stack(rows[:2]), torch.stack(calibration_rows(mixed.model_copy(update={"chats": None, "samples": 2}), tokenizer))
    )
    chats = calibration_rows(mixed.model_copy(update={"texts": None, "samples": 99}), tokenizer)
    read = [tokenizer.backend.decode(row) for row in chats]
    assert len(read) >= 9 and all(text.endswith("s</s>") for text in read[:9])
    assert len(rows) == 4 and torch.equal(torch.stack(rows[2:]), torch.stack(chats[:2]))
    one_of_each = calibration_rows(mixed.model_copy(update={"samples": 1}), tokenizer)
    assert len(one_of_each) == 2 and torch.equal(one_of_each[0], rows[0]) and torch.equal(one_of_each[1], chats[0])
    for wrong in ("no", []):
        (tmp_path / "chats.jsonl").write_text("\n" + json.dumps({"messages": wrong}))
        with pytest.raises(SpecError, match=r"chats\.jsonl, line 2: not a chat"):
            calibration_rows(mixed, tokenizer)
    (tmp_path / "empty.txt").write_text("")
    nothing = Calibration(texts=FileTexts(paths=(f"{tmp_path}/empty.txt",)))
    with pytest.raises(DataError, match=r"student\.prune\.calibration\.texts holds no text"):
        calibration_rows(nothing, tokenizer)


def scored(influence: list[float]) -> Scores:
    nothing = (torch.zeros(0),) * len(influence)
    return Scores(1, torch.zeros(0), *(nothing,) * 7, torch.tensor(influence), {})


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"num_layers": 2}, (0, 3)),
        ({"num_layers": 3}, (0, 2, 3)),
        ({"num_layers": 3, "keep_first": 0, "keep_last": 0}, (1, 2, 3)),
        ({"num_layers": 2, "keep_first": 0, "keep_last": 0, "contiguous": True}, (2, 3)),
        ({"num_layers": 3, "keep_first": 0, "keep_last": 0, "drop_types": "full"}, (0, 2, 3)),
        ({"num_layers": 3, "keep_first": 2, "keep_last": 0, "drop_types": "full"}, (0, 1, 2)),
        ({"num_layers": 2, "keep_first": 0, "keep_last": 0, "drop_types": "proportional"}, (2, 3)),
        ({"layers": (1, 2)}, (1, 2)),
        ({"hidden_size": 24}, (0, 1, 2, 3)),
    ],
)
def test_layers_by_influence(asked, kept):
    """Of sliding, full, sliding, full, with influences 0.1, 0.2, 0.4, 0.3."""
    anatomy = anatomy_of(model_of("olmo3"))
    pruning = Pruning(**asked, depth=BlockInfluence())
    assert choose_layers(anatomy, scored([0.1, 0.2, 0.4, 0.3]), pruning) == kept


@torch.no_grad()
def test_kinds_of_layers_differ_beyond_the_window_alone():
    """Sliding and full layers with the same positions, windows of four tokens: types swapped, as a cut without types would."""
    model = model_of(
        "olmo3",
        rope_parameters={kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")},
    )
    swapped = AutoConfig.for_model(**{**model.config.to_dict(), "layer_types": model.config.layer_types[::-1]})
    other = AutoModelForCausalLM.from_config(swapped).double()
    other.load_state_dict(model.state_dict())
    assert apart(logits(other, tokens(4)), logits(model, tokens(4))) < 1e-9
    assert apart(logits(other, tokens(5)), logits(model, tokens(5))) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["olmo3", "gemma3", "qwen3", "gpt_oss", "own, grape"])
def test_types_follow_the_layers_that_stay(name):
    """Two sliding layers of sliding, full, sliding, full: what the class would make of two layers is another pattern."""
    model = model_of(name)
    new = cut(model, Kept((0, 2)))
    assert anatomy_of(new).layer_types == ("sliding_attention",) * 2
    assert name.startswith("own") or new.config.layer_types == ["sliding_attention"] * 2
    token_BT = tokens(12)
    changed = token_BT.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 97
    same = 3 if not name.startswith("own") else 4  # two windows reach six tokens back, and those of our own eight
    beyond = slice(2 * same + 1, None)
    assert apart(logits(new, token_BT)[:, beyond], logits(new, changed)[:, beyond]) < 1e-12
    assert apart(logits(new, token_BT)[:, 2 * same], logits(new, changed)[:, 2 * same]) > 1e-6
