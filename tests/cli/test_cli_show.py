"""`limbeck show`, `train --dry-run` and `list`: what a recipe is and costs, against formulas written out here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import GROUPS_OF_THREE, ONE_BY_ONE, byte_level, word_piece

from limbeck.spec.load import load_recipe


@pytest.fixture
def nano(limbeck: Callable[..., Any]) -> dict[str, Any]:
    outcome = limbeck("show", "nano", "--json")
    assert outcome.code == 0
    assert outcome.err == ""
    return json.loads(outcome.out)


def test_the_nano_student_has_as_many_parameters_as_the_one_it_is_named_after(nano: dict[str, Any]) -> None:
    counts = {"total": 229_555_968, "embedding": 154_027_008, "non_embedding": 75_528_960, "active": 229_555_968}
    assert nano["params"] == {**counts, "active_non_embedding": 75_528_960}
    assert nano["exported_as"] == "Olmo3ForCausalLM"


def test_student_flops_are_those_of_the_formula(nano: dict[str, Any]) -> None:
    # arXiv 2502.08606, appendix H, with a window of 4096 that a context of 2048 does not fill.
    parameters, context, layers, heads, head_dim, vocabulary, width = 75_528_960, 2048, 12, 6, 128, 100_278, 768
    expected = 2 * parameters + 2 * context * layers * heads * head_dim + 2 * vocabulary * width
    assert nano["student_flops_per_token"] == pytest.approx(expected, rel=1e-12)
    assert nano["tokens"] == 5e9
    assert nano["student_flops"] == pytest.approx(3 * expected * 5e9, rel=1e-12)


def test_teacher_flops_are_those_of_olmo_3_7b(nano: dict[str, Any]) -> None:
    total, input_embedding = 7_298_011_136, 410_738_688
    attention = 2 * 2048 * 32 * 4096  # contexts are as long as the student's sequences
    expected = 2 * (total - input_embedding) + attention
    assert nano["teacher_flops_per_token"] == pytest.approx(expected, rel=1e-12)
    assert nano["teacher_flops"] == pytest.approx(expected * 5e9, rel=1e-12)


def test_hours_are_flops_over_what_the_device_sustains(limbeck: Callable[..., Any], nano: dict[str, Any]) -> None:
    flops = nano["student_flops"] + nano["teacher_flops"]
    assert nano["hours"] == pytest.approx(flops / (0.4 * 989.4e12) / 3600)  # 40 % of an H100
    slow = json.loads(limbeck("show", "nano", "--device", "1e14", "--utilisation", "0.5", "--devices", "2", "--json").out)
    assert slow["hours"] == pytest.approx(flops / 1e14 / 3600)
    assert limbeck("show", "nano", "--device", "0").code == 1


def test_an_override_changes_what_is_shown(limbeck: Callable[..., Any], nano: dict[str, Any]) -> None:
    tied = json.loads(limbeck("show", "nano", "student.tied_embeddings=true", "name=other", "--json").out)
    assert tied["params"]["total"] == 229_555_968 - 100_278 * 768
    assert tied["recipe"] == {
        **nano["recipe"],
        "name": "other",
        "student": {**nano["recipe"]["student"], "tied_embeddings": True},
    }


def test_without_json_it_is_text_for_people(limbeck: Callable[..., Any]) -> None:
    text = limbeck("show", "nano").out
    assert "229,555,968" in text
    assert "75,528,960 non-embedding" in text


def test_a_mixture_of_experts_says_what_a_token_passes(limbeck: Callable[..., Any]) -> None:
    """4.39B, 148M outside the embeddings, 302M with the head, of which 201,088 x 768 are the head's."""
    text = limbeck("show", "moe").out
    assert "parameters: 4,388,917,020 (4,080,045,852 non-embedding, 308,871,168 embedding)" in text
    assert f"of a token: 147,885,852 non-embedding, {147_885_852 + 201_088 * 768:,} with the head" in text
    assert "export: LimbeckForCausalLM (transformers has no class with experts)" in text
    shown = json.loads(limbeck("show", "moe", "--json").out)
    assert shown["params"]["active_non_embedding"] == 147_885_852
    assert shown["exported_as"] == "LimbeckForCausalLM"


def test_memory_is_parameters_gradients_and_what_the_optimizer_keeps(limbeck: Callable[..., Any], nano: dict[str, Any]) -> None:
    """AdamW keeps two numbers a parameter. NorMuon one, and one for each of a matrix's output channels."""
    assert nano["training_bytes"] == 16 * 229_555_968
    d, layers, experts, channels, heads = 768, 21, 512, 256, 12 * 64 + 2 * 4 * 64
    attention, shared, dense = (heads + d) * d, 2 * d * channels, 2 * d * 3072
    matrices = layers * attention + (layers - 1) * shared + dense
    stacks = (layers - 1) * experts * 2 * d * channels
    rows = layers * (heads + d) + (layers - 1) * (channels + d) + (3072 + d) + (layers - 1) * experts * (channels + d)
    by_adamw = 4_388_917_020 - matrices - stacks
    shown = json.loads(limbeck("show", "moe", "--json").out)
    assert shown["training_bytes"] == 16 * by_adamw + 12 * (matrices + stacks) + 4 * rows
    muon = json.loads(limbeck("show", "moe", "optimizer={kind: muon}", "--json").out)
    assert shown["training_bytes"] - muon["training_bytes"] == 4 * rows


def test_the_optimizers_table_says_what_goes_where(limbeck: Callable[..., Any]) -> None:
    """Everything once; learning rates under muP (256 / 1280 inside the blocks), decay only where weights are multiplied."""
    shown = json.loads(limbeck("show", "moe", "--json").out)
    table = {row["role"]: row for row in shown["optimizer_table"]}
    assert {role: row["algorithm"] for role, row in table.items()} == {
        **dict.fromkeys(("embedding", "head", "router", "vector"), "adamw"),
        **dict.fromkeys(("matrix", "experts"), "normuon"),
    }
    assert sum(row["parameters"] for row in table.values()) == shown["params"]["total"]
    assert table["router"]["parameters"] == 20 * 512 * 768 and table["router"]["tensors"] == 20
    assert table["experts"]["decay_per_step"] == pytest.approx(0.02 * 0.01) and table["embedding"]["decay_per_step"] == 0
    ladder = json.loads(limbeck("show", "ladder-198m", "--json").out)["optimizer_table"]
    rates = {row["role"]: row["peak_lr"] for row in ladder}
    assert rates == {"embedding": 0.01, "matrix": pytest.approx(0.01 * 256 / 1280), "vector": 0.01}
    lines = limbeck("show", "moe").out.splitlines()
    (line,) = [line for line in lines if line.startswith("experts by normuon")]
    assert line.split()[3:] == ["40", "4,026,531,840", "0.02", "0.0002"]


def test_an_upcycled_student_is_shown_with_its_experts(limbeck: Callable[..., Any]) -> None:
    """4 copies of each MLP of 512 channels: 4 times its parameters, of which a token passes one copy; routers beside them."""
    shown = json.loads(limbeck("show", "upcycled-tiny", "--json").out)
    dense = json.loads(
        limbeck("show", "quickstart", f"student={json.dumps(shown['recipe']['student']['dense'])}", "--json").out
    )
    mlps, routers = 4 * 3 * 192 * 512, 4 * 16 * 192
    assert shown["params"]["non_embedding"] == dense["params"]["non_embedding"] + 3 * mlps + routers
    assert shown["params"]["active_non_embedding"] == dense["params"]["non_embedding"] + routers
    assert (shown["recipe"]["student"]["noise"], shown["recipe"]["student"]["router_warmup"]) == (0.02, 0.05)


def test_members_of_the_family_are_shown_by_name(limbeck: Callable[..., Any]) -> None:
    """As Table 13 of arXiv 2502.08606 names them; between them by depth."""
    shown = json.loads(limbeck("show", "ladder-198m", "--json").out)
    assert (shown["recipe"]["name"], shown["recipe"]["student"]["num_layers"]) == ("ladder-198m", 10)
    d, mlp = 1280, 3456
    assert shown["params"]["non_embedding"] == 10 * (4 * d * d + 3 * d * mlp + 2 * d + 2 * 80) + d == 198_274_880
    assert shown["params"]["embedding"] == 32_768 * d
    assert shown["exported_as"] == "Qwen3ForCausalLM"
    assert shown["tokens"] == pytest.approx(20 * 198_274_880, rel=0.005)
    between = json.loads(limbeck("show", "laws", "student.num_layers=41", "--json").out)
    assert between["recipe"]["student"]["num_layers"] == 41 and between["params"]["embedding"] == 32_768 * 41 * 128
    complaint = limbeck("show", "ladder-199m").complaint
    assert "did you mean 'ladder-198m'" in complaint and "quickstart, upcycled-tiny, ladder-103m to ladder-12.6b)" in complaint


def test_the_quickstart_can_be_shown_before_its_teacher_is_converted(limbeck: Callable[..., Any], tmp_path: Path) -> None:
    shown = json.loads(limbeck("show", "quickstart", "--json").out)
    vocabulary, width = 49_152, 256
    assert shown["params"]["embedding"] == vocabulary * width
    # SmolLM2-135M: 134,515,008 parameters; embeddings are tied, so the one matrix of the vocabulary is multiplied, as head.
    context = min(shown["recipe"]["data"]["sequence_length"], shown["recipe"]["teacher"]["context"]["window"])
    assert shown["teacher_flops_per_token"] == pytest.approx(2 * 134_515_008 + 2 * context * 30 * 576, rel=1e-12)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prices_and_writes_nothing(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    dry = limbeck("train", recipe_file, "--dry-run", "--json")
    assert dry.code == 0
    assert json.loads(dry.out) == json.loads(limbeck("show", recipe_file, "--json").out)
    assert json.loads(dry.out)["tokens"] == 8 * 4 * 32  # steps, sequences, their length
    assert sorted(tmp_path.rglob("*")) == before


def test_a_teacher_that_is_not_here_leaves_its_costs_open(
    limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path
) -> None:
    gguf = f"teacher={{kind: gguf, path: {tmp_path}/absent.gguf}}"
    assert "student.vocab_size is not set" in limbeck("show", recipe_file, gguf).complaint
    shown = json.loads(limbeck("show", recipe_file, gguf, "student.vocab_size=300", "--json").out)
    assert shown["teacher_flops_per_token"] is None
    assert shown["hours"] is None


def test_showing_a_teacher_in_a_gguf_file_does_not_convert_it(
    limbeck: Callable[..., Any], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("show must not locate the file: that converts or downloads it")

    monkeypatch.setattr("limbeck.teachers.files._converted", refuse)
    assert limbeck("show", recipe_file, "teacher.gguf_file=model.gguf", "student.vocab_size=300").code == 0


def test_a_pretrained_student_is_priced_by_its_configuration(
    limbeck: Callable[..., Any], recipe_file: Path, teacher_folder: Path
) -> None:
    """Rank 4 on seven matrices of two layers: 32 to 32 and 16, 64 inside; 4 FLOPs a weight where all of it is frozen."""
    student = ["student.kind=huggingface", f"student.model={teacher_folder}"]
    whole = json.loads(limbeck("show", recipe_file, *student, "--json").out)
    assert whole["params"]["total"] == whole["trained"] == 2 * 300 * 32 + 2 * (32 * (32 + 16 + 16 + 32 + 3 * 64) + 64) + 32
    assert whole["exported_as"] == "LlamaForCausalLM"
    adapter = ["student.adapter.kind=lora", "student.adapter.rank=4"]
    found = json.loads(limbeck("show", recipe_file, *student, *adapter, "--json").out)
    assert found["trained"] == 2 * 4 * (64 + 48 + 48 + 64 + 3 * 96)
    assert found["training_bytes"] == 4 * whole["params"]["total"] + 16 * found["trained"]
    tokens = 8 * 4 * 32
    saved = 2 * (whole["params"]["total"] - 300 * 32)  # of the gradients of every weight that multiplies
    assert whole["student_flops"] - found["student_flops"] == tokens * (saved - 6 * found["trained"])
    assert f"trained: {found['trained']:,} of an adapter" in limbeck("show", recipe_file, *student, *adapter).out


def test_a_pretrained_student_that_is_not_here_is_one_line(limbeck: Callable[..., Any], recipe_file: Path) -> None:
    student = ["student.kind=huggingface", "student.model=nobody/nothing"]
    assert (
        "student.model=nobody/nothing: its config.json is not on this machine"
        in limbeck("show", recipe_file, *student).complaint
    )


def test_list_names_what_recipes_choose_from(limbeck: Callable[..., Any]) -> None:
    listed = json.loads(limbeck("list", "--json").out)
    assert {"nano", "quickstart"} <= set(listed["recipes"])
    assert all(load_recipe(name).name == name for name in listed["recipes"])
    assert listed["kinds"]["signal"] == ["topk", "topp", "sampled", "hybrid", "hard", "chunks", "dense"]
    assert listed["kinds"]["averaging"] == ["none", "ema", "swa"]
    assert listed["kinds"]["parallel"] == ["replicated", "sharded"]
    text = limbeck("list").out
    assert "recipes: across, continue-smollm2, golf, laws, moe, moe-tiny, nano, prune, quickstart, upcycled-tiny" in text
    assert "ladder-103m, ladder-143m" in text and "student.kind: olmo3, ladder, moe, golf, upcycled, huggingface" in text


def test_hours_of_an_on_policy_recipe_say_what_is_not_in_them(limbeck: Callable[..., Any]) -> None:
    changes = ("signal={kind: dense}", "objective={kind: reverse_kl}", "on_policy.max_new_tokens=64")
    assert "without what it takes to write the rollouts" in limbeck("show", "nano", *changes).out
    assert "rollouts" not in limbeck("show", "nano").out


def test_hours_of_masked_tokens_say_what_is_not_in_them(limbeck: Callable[..., Any]) -> None:
    """A budget in tokens counts those that have a loss; one in steps all that are read."""
    changes = ("data.loss_on=[assistant]", "data.train={kind: chats, paths: [c.jsonl]}")
    assert "FLOP/s, without the tokens that have no loss (data.loss_on)" in limbeck("show", "nano", *changes).out
    assert "data.loss_on)" not in limbeck("show", "nano", *changes, "budget={kind: steps, amount: 9}").out


def test_two_tokenizers_beside_each_other(limbeck: Callable[..., Any], tmp_path: Path) -> None:
    for name, pattern in (("three", GROUPS_OF_THREE), ("one", ONE_BY_ONE)):
        byte_level(tmp_path / name, vocab_size=450, pattern=pattern)
    (tmp_path / "mine.txt").write_text("12 laws of 345 peoples", encoding="utf-8")
    pair = ("show", tmp_path / "one", "--beside", tmp_path / "three", "--texts", tmp_path / "mine.txt")
    values = json.loads(limbeck(*pair, "--json").out)
    assert list(values["domains"]) == ["prose", "code", "numbers", "yours"]
    assert values["domains"]["yours"]["bytes"] == 22
    assert values["student_digits"]["manner"] == "one by one"
    assert "projected_kl rather than gold" in values["verdict"]
    shown = limbeck(*pair).out
    assert "digits: one one by one; three groups of up to" in shown
    assert shown.rstrip().endswith(values["verdict"])


def test_what_does_not_go_with_a_pair_of_tokenizers_is_one_line(limbeck: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    byte_level(folder, vocab_size=300)
    assert "is for a recipe, and --beside" in limbeck("show", folder, "seed=1", "--beside", folder).complaint
    assert "-o draws pruned models" in limbeck("show", folder, "--beside", folder, "-o", tmp_path / "x").complaint
    assert "name the other one with --beside" in limbeck("show", folder, "--texts", "x.txt").complaint
    assert "no tokenizer can be loaded from" in limbeck("show", folder, "--beside", tmp_path / "none").complaint
    word_piece(tmp_path / "pieces")
    assert "do not join to the bytes" in limbeck("show", folder, "--beside", tmp_path / "pieces").complaint
