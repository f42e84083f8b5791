"""On-policy runs, whole: that the divergence falls, what is counted, what a kill changes, what a student equal to its teacher
learns, what is watched."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_world import SECONDS, make_student, on_policy, recipe_of
from test_train_resume import Killed, at_step, kill, only_checkpoint_after, require_same
from tiny_students import moe

from limbeck.errors import LimbeckError, SpecError
from limbeck.evals.repetition import seq_rep
from limbeck.runs import open_run
from limbeck.spec.on_policy import Sources, shares
from limbeck.train import guards
from limbeck.train import on_policy as on_policy_module
from limbeck.train.guards import RolloutsError
from limbeck.train.loop import run
from limbeck.train.on_policy import OnPolicySteps
from limbeck.train.parallel import Processes
from limbeck.train.rollouts import Continuation, Rollout
from limbeck.train.setup import open_setup
from limbeck.train.train import train


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


def train_records(path: Path) -> list[dict[str, Any]]:
    return open_run(path).events("train")


def rollouts(path: Path, name: str = "rollouts.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["reverse_kl", "sampled_reverse_kl"])
def test_the_reverse_kl_falls(kind: str, values: dict[str, Any], student_folder: Path) -> None:
    """The student's own entropy does not fall with it: it is not by growing certain that it agrees."""
    asked = on_policy(values, student_folder, objective={"kind": kind}, budget={"kind": "steps", "amount": 40})
    found = train_records(train(recipe_of({**asked, "optimizer": {"kind": "adamw", "lr": 0.02}})))
    name = "k1" if kind == "sampled_reverse_kl" else kind
    first, last = (sum(record[name] for record in part) / 5 for part in (found[:5], found[-5:]))
    assert last < 0.7 * first
    assert found[-1]["student_entropy_nats"] > 2


def test_costs_are_what_was_written_and_read(values: dict[str, Any], student_folder: Path) -> None:
    asked = on_policy(values, student_folder, budget={"kind": "steps", "amount": 3})
    setup = open_setup(recipe_of(asked))
    path = train(recipe_of(asked))
    written, records = rollouts(path), train_records(path)
    for record in records:
        so_far = [each for each in written if each["step"] <= record["step"]]
        read = sum(len(each["prompt_tokens"]) + len(each["tokens"]) - 1 for each in so_far)
        assert len(so_far) == 8 * record["step"]
        assert record["tokens"] == sum(len(each["tokens"]) for each in so_far)
        costs = setup.student_costs
        assert record["student_flops"] == pytest.approx(read * (costs.training_flops + costs.forward_flops))
        assert record["teacher_flops"] == pytest.approx(read * setup.teacher_flops_per_scored_token)
        assert record["seconds"] > 0
    # The head saw exactly the tokens that were drawn, with the weights that drew them.
    for record in records:
        drawn = [each for each in written if each["step"] == record["step"]]
        surprise = -sum(sum(each["log_probs"]) for each in drawn) / sum(len(each["tokens"]) for each in drawn)
        assert record["ce"] == pytest.approx(surprise, abs=1e-4)
        assert record["student_entropy_nats"] == pytest.approx(surprise)


def test_what_is_watched_is_counted_by_hand(values: dict[str, Any], student_folder: Path) -> None:
    path = train(recipe_of(on_policy(values, student_folder, budget={"kind": "steps", "amount": 2})))
    for record in train_records(path):
        drawn = [each for each in rollouts(path) if each["step"] == record["step"]]
        stops = [each["tokens"][-1] == 1 for each in drawn]  # the tiny tokenizer's only end
        assert all(1 not in each["tokens"][:-1] for each in drawn)
        assert record["stopped_share"] == sum(stops) / 8 == 1 - record["truncated_share"]
        assert [each["outcome"] == "stopped" for each in drawn] == stops
        assert all(len(each["tokens"]) == 24 for each in drawn if each["outcome"] != "stopped")
        assert record["rollout_tokens"] == sum(len(each["tokens"]) for each in drawn) / 8
        bodies = [each["tokens"][:-1] if stop else each["tokens"] for each, stop in zip(drawn, stops, strict=True)]
        assert record["seq_rep_4"] == pytest.approx(sum(seq_rep(body, n=4) for body in bodies) / 8)
        phases = sum(record[f"{phase}_seconds"] for phase in ("generate", "teach", "train"))
        earlier = sum(each["seconds"] for each in train_records(path) if each["step"] == record["step"] - 1)
        assert phases == pytest.approx(record["seconds"] - earlier)


REPLAY = {"replay": {"capacity": 20, "share": 0.5}, "steps_per_rollout": 2, "group_size": 2}
MIXED = {"sources": {"student": 0.5, "teacher": 0.25, "data": 0.25}, "mask_truncated": True}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drawn, replayed": {"on_policy": REPLAY, "objective": {"kind": "sampled_reverse_kl"}},
    "mixed sources, top-k": {"on_policy": MIXED, "signal": {"kind": "topk", "k": 16, "live": True}},
}
BUDGETS = {"mixed sources, top-k": {"kind": "steps", "amount": 9}}


@pytest.mark.parametrize(("arm", "own"), [*((arm, False) for arm in ARMS), ("plain", True)])
def test_a_killed_run_continues_bit_for_bit(
    arm: str, own: bool, values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 8, after the checkpoint of step 5: in the middle of two steps on the same rollouts."""
    budget = BUDGETS.get(arm, {"kind": "tokens", "amount": 1500})
    changes = {"budget": budget, "checkpoint": {"seconds": 1e-9}, **ARMS[arm]}
    asked = on_policy(values, None if own else student_folder, **changes)
    calm, hurt = (recipe_of({**asked, "name": name}) for name in ("calm", "hurt"))
    undisturbed = train(calm)
    assert len(train_records(undisturbed)) > 7
    with at_step(8, kill, monkeypatch).context() as patched:
        only_checkpoint_after(5, patched)
        with pytest.raises(Killed):
            train(hurt)
    monkeypatch.undo()
    path = Path(hurt.run_path)
    (path / "rollouts.jsonl").open("a").write('{"step": 8, "wri')
    require_same(train(hurt), undisturbed, without=SECONDS)
    assert rollouts(path) == rollouts(undisturbed)


TOPK = {"kind": "topk", "k": 12, "live": True}
EXACT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reverse_kl": ({"kind": "reverse_kl"}, {"kind": "dense"}),
    "sampled": ({"kind": "sampled_reverse_kl"}, {"kind": "dense"}),
    "forward_kl": ({"kind": "forward_kl"}, {"kind": "dense"}),
    "jsd": ({"kind": "jsd", "beta": 0.3}, {"kind": "dense"}),
    "skew_kl": ({"kind": "skew_kl", "direction": "reverse"}, {"kind": "dense"}),
    "reverse_kl, top-k and tail": ({"kind": "reverse_kl"}, TOPK),
    "stop_gradient, top-k": ({"kind": "reverse_kl", "form": "stop_gradient"}, TOPK),
}


@pytest.mark.parametrize("arm", EXACT)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(arm: str, values: dict[str, Any], teacher_folder: Path) -> None:
    objective, signal = EXACT[arm]
    asked = on_policy(values, teacher_folder, objective=objective, signal=signal, budget={"kind": "steps", "amount": 1})
    (record,) = train_records(train(recipe_of(asked)))
    assert record["loss_nats"] == pytest.approx(0, abs=2e-6)
    assert record["grad_norm"] < 1e-4
    if signal["kind"] == "dense":
        assert record["log_ratio_nats"] == pytest.approx(0, abs=2e-6)
    else:
        assert 0.2 < record["topk_mass"] < 1


def test_the_mass_on_the_top_k_is_estimated_by_what_is_drawn(values: dict[str, Any], teacher_folder: Path) -> None:
    """Of a student that is its teacher, it is the teacher's own: the share of its draws that `topk_mass` counts is its mean."""
    asked = on_policy(values, teacher_folder, signal=TOPK, batch={"sequences": 64}, budget={"kind": "steps", "amount": 1})
    setup = open_setup(recipe_of(asked))
    steps = OnPolicySteps(setup, Path(setup.recipe.run_path))
    batches = next(steps.steps(0))
    masses = [batch.rows.log_probs_TK.exp().sum(-1)[batch.mask_BT.flatten()] for batch in batches]
    mass_N = torch.cat(masses)
    error = float((mass_N * (1 - mass_N)).mean() / len(mass_N)) ** 0.5
    assert steps.numbers["topk_mass"] == pytest.approx(float(mass_N.mean()), abs=4 * error)
    assert error < 0.02


def test_shares_are_those_of_the_largest_remainder() -> None:
    assert shares(Sources(), 8) == {"student": 8, "teacher": 0, "data": 0}
    assert shares(Sources(student=0.5, teacher=0.3, data=0.2), 8) == {"student": 4, "teacher": 2, "data": 2}
    assert shares(Sources(student=0.5, teacher=0.3, data=0.2), 7) == {"student": 4, "teacher": 2, "data": 1}
    assert shares(Sources(student=1 / 3, teacher=1 / 3, data=1 / 3), 4) == {"student": 2, "teacher": 1, "data": 1}
    assert shares(Sources(student=0.1, teacher=0, data=0.9), 10) == {"student": 1, "teacher": 0, "data": 9}


def test_processes_deal_out_a_step_in_turns(values: dict[str, Any], student_folder: Path) -> None:
    """Three processes and eight sequences: five of the student's, two of the teacher's, one row, numbered through the run."""
    sources = {"sources": {"student": 0.625, "teacher": 0.25, "data": 0.125}}
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy=sources)))
    found = []
    for rank in range(3):
        steps = OnPolicySteps(replace(setup, processes=Processes(rank, 3)), Path("nowhere"))
        found.append([list(steps._slots(2, source)) for source in ("student", "teacher", "data")])
    assert found == [[[10, 13], [5], []], [[11, 14], [], [2]], [[12], [4], []]]


def test_a_step_mixes_its_sources(values: dict[str, Any], student_folder: Path) -> None:
    """Of eight: four by the student, two by the teacher, two rows of the texts, where every position counts."""
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy=MIXED)))
    steps = OnPolicySteps(setup, Path(setup.recipe.run_path))
    batches = next(steps.steps(0))
    written = [each for each in rollouts(Path(setup.recipe.run_path)) if each["step"] == 1]
    assert [each["writer"] for each in written] == ["student"] * 4 + ["teacher"] * 2
    texts = [batch for batch in batches if batch.mask_BT is None]
    assert sum(len(batch.tokens_BT) for batch in texts) == 2
    loader = setup.loader
    expected = loader.batch([loader.stream.sequence(0), loader.stream.sequence(1)])
    assert torch.equal(torch.cat([batch.tokens_BT for batch in texts]), expected.tokens_BT)
    # The two that are masked where they were cut off are counted nowhere.
    whole = sum(len(each["tokens"]) for each in written if each["outcome"] == "stopped")
    assert sum(batch.counted for batch in batches) == whole + 2 * 48
    read = sum(len(each["prompt_tokens"]) + len(each["tokens"]) - 1 for each in written)
    by_teacher = sum(len(each["prompt_tokens"]) + len(each["tokens"]) - 1 for each in written[4:])
    # The teacher reads texts in overlapping windows of documents, what was written once, and its own once more to write it.
    of_texts = sum(batch.tokens_scored for batch in texts)
    assert sum(batch.tokens_scored for batch in batches) == of_texts + read + by_teacher
    assert sum(batch.tokens_generated for batch in batches) == read - by_teacher


def test_replay_is_of_the_latest_of_earlier_steps(values: dict[str, Any], student_folder: Path) -> None:
    """Eight a step, half of them replayed from the last six once there are enough."""
    replay = {"replay": {"capacity": 6, "share": 0.5}}
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy=replay)))
    steps = OnPolicySteps(setup, Path(setup.recipe.run_path))
    found = steps.steps(0)
    seen = []
    for step in range(4):
        batches = next(found)
        written = rollouts(Path(setup.recipe.run_path))
        assert len([each for each in written if each["step"] == step + 1]) == (8 if step == 0 else 4)
        known = {tuple(each["prompt_tokens"] + each["tokens"]): each["step"] for each in written}
        rows = [row for batch in batches for row in _sequences(batch)]
        seen.append(sorted(known[row] for row in rows))
        assert len(set(rows)) == 8  # none twice
        latest = [each["step"] for each in written if each["step"] <= step][-6:]
        assert set(seen[-1]) - {step + 1} <= set(latest)
        assert sum(batch.tokens_generated for batch in batches) == sum(len(row) - 1 for row in rows if known[row] == step + 1)
    assert seen[0] == [1] * 8
    assert all(each.count(step + 1) == 4 for step, each in list(enumerate(seen))[1:])


def _sequences(batch: Any) -> list[tuple[int, ...]]:
    """What was read, whole: up to the last position that counts, and the target there."""
    found = []
    for tokens_T, targets_T, mask_T in zip(batch.tokens_BT, batch.targets_BT, batch.mask_BT, strict=True):
        last = int(mask_T.nonzero().max())
        found.append((*tokens_T[: last + 1].tolist(), int(targets_T[last])))
    return found


def test_groups_share_a_prompt_and_differ(values: dict[str, Any], student_folder: Path) -> None:
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy={"group_size": 4})))
    next(OnPolicySteps(setup, Path(setup.recipe.run_path)).steps(0))
    written = rollouts(Path(setup.recipe.run_path))
    assert [each["prompt"] for each in written] == [written[0]["prompt"]] * 4 + [written[4]["prompt"]] * 4
    assert written[0]["prompt"] != written[4]["prompt"]
    assert len({tuple(each["tokens"]) for each in written}) == 8


def test_another_step_or_seed_draws_other_tokens(values: dict[str, Any], student_folder: Path, tmp_path: Path) -> None:
    """From the same weights after the same prompt."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "the state of"}\n', encoding="utf-8")
    asked = on_policy(values, student_folder, on_policy={"prompts": {"kind": "file", "path": str(file)}})
    for seed in (0, 1):
        setup = open_setup(recipe_of({**asked, "seed": seed}))
        steps = OnPolicySteps(setup, tmp_path / str(seed)).steps(0)
        next(steps)
        next(steps)
    drawn = [tuple(each["tokens"]) for seed in "01" for each in rollouts(tmp_path / seed)]
    assert len(drawn) == len(set(drawn)) == 32


def test_steps_on_the_same_rollouts_read_them_again_and_skip_no_prompt(values: dict[str, Any], student_folder: Path) -> None:
    twice = {"steps_per_rollout": 2}
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy=twice)))
    steps = OnPolicySteps(setup, Path(setup.recipe.run_path)).steps(0)
    read = [sorted(row for batch in next(steps) for row in _sequences(batch)) for _ in range(4)]
    assert read[0] == read[1] != read[2] == read[3]
    written = rollouts(Path(setup.recipe.run_path))
    assert [each["step"] for each in written] == [1] * 8 + [3] * 8
    assert setup.writers is not None
    assert [each["prompt"] for each in written] == [setup.writers.prompts.prompt(index).name for index in range(16)]


def test_rollouts_that_never_stop_end_the_run(
    values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in every step: the run ends after so many in a row, and what it had learnt until its checkpoint is kept."""
    monkeypatch.setattr(guards, "PATIENCE", 4)
    short = {"max_new_tokens": 2, "stop_share": 0.5}
    asked = on_policy(values, student_folder, on_policy=short)  # whose first checkpoint is far away
    with pytest.raises(RolloutsError, match=r"stop_share=0\.5 of the rollouts of 4 steps in a row .*the checkpoint is kept"):
        train(recipe_of(asked))
    path = Path(recipe_of(asked).run_path)
    assert torch.load(path / "checkpoint.pt", weights_only=True)["costs"]["step"] == 3
    assert [record["truncated_share"] for record in train_records(path)] == [1.0] * 3


def test_a_good_step_between_bad_ones_lets_a_run_go_on(
    values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 3)
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy={"stop_share": 0.5})))
    watch = guards.Watch(setup)
    stopped = _rollout(tokens=(5, 6, 1), stopped=True)
    looping = _rollout(tokens=(*(7, 8) * 20, 1), stopped=True)
    for _ in range(3):
        watch([stopped, looping], None, counted=1)  # half of them are bad, which is not more than half
    for each in (looping, looping, stopped, looping, looping):
        watch([each], None, counted=1)
    with pytest.raises(RolloutsError):
        watch([looping], None, counted=1)


def test_a_run_in_which_nothing_counts_ends(
    values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is cut off and masked: a budget in tokens would never be spent. No share of bad rollouts is asked about."""
    monkeypatch.setattr(guards, "PATIENCE", 3)
    masked = {"max_new_tokens": 2, "mask_truncated": True}
    asked = on_policy(values, student_folder, on_policy=masked, budget={"kind": "steps", "amount": 5})
    with pytest.raises(RolloutsError, match=r"in 3 steps in a row every rollout was cut off.*the checkpoint is kept"):
        train(recipe_of(asked))
    path = Path(recipe_of(asked).run_path)
    assert [record["tokens"] for record in train_records(path)] == [0, 0]
    assert torch.load(path / "checkpoint.pt", weights_only=True)["costs"]["step"] == 2
    watch = guards.Watch(open_setup(recipe_of(asked)))
    for counted in (0, 0, 7, 0, 0):
        watch([], None, counted=counted)
    with pytest.raises(RolloutsError):
        watch([], None, counted=0)


def test_rollouts_that_are_not_there_any_more_are_one_line(
    values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one process wrote them, as two did, and gone; after two steps on the same ones, and one of the next two."""
    monkeypatch.setattr(on_policy_module, "any_says", lambda asked, *_: asked)  # there is no second process here
    recipes = {
        name: recipe_of(on_policy(values, student_folder, on_policy={"steps_per_rollout": 2, **more}, name=name))
        for name, more in (("plain", {}), ("replay", {"replay": {"capacity": 20, "share": 0.5}}))
    }
    setups = {name: open_setup(recipe) for name, recipe in recipes.items()}
    wrong = set()
    for name, setup in setups.items():
        path = Path(setup.recipe.run_path)
        begun = OnPolicySteps(setup, path).steps(0)
        for _ in range(3):
            next(begun)
        lines = (path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        found = {"one": [lines, None], "two": [lines[::2], lines[1::2]], "gone": [None, None]}
        cases = [("one", 0, 1), ("two", 0, 1), ("gone", 0, 1), ("one", 1, 2), ("two", 0, 2), ("two", 1, 2)]
        for left, rank, processes in cases:
            for first in (2, 3):
                for file, kept in zip(("rollouts.jsonl", "rollouts-1.jsonl"), found[left], strict=True):
                    (path / file).unlink(missing_ok=True)
                    if kept is not None:
                        (path / file).write_text("".join(kept), encoding="utf-8")
                steps = OnPolicySteps(replace(setup, processes=Processes(rank, processes)), path)
                try:
                    steps._return_to(first)
                except LimbeckError as error:
                    wrong.add((name, left, processes, first, "resume with as many processes as before" in str(error)))
    others = {("two", 1), ("gone", 1), ("one", 2)}
    after = [("plain", 3), ("replay", 2), ("replay", 3)]  # what is not replayed is not learned from again
    assert wrong == {(name, *each, first, True) for name, first in after for each in others}


def test_processes_that_are_no_more_leave_what_counts(values: dict[str, Any], student_folder: Path) -> None:
    """Of a run of two processes that goes on with one, from the step of its checkpoint."""
    setup = open_setup(recipe_of(on_policy(values, student_folder)))
    path = Path(setup.recipe.run_path)
    begun = OnPolicySteps(setup, path).steps(0)
    for _ in range(2):
        next(begun)
    lines = (path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "rollouts-1.jsonl").write_text("".join(lines), encoding="utf-8")
    next(OnPolicySteps(setup, path).steps(1))
    assert rollouts(path, "rollouts-1.jsonl") == [json.loads(line) for line in lines[:8]]
    next(OnPolicySteps(setup, path).steps(0))
    assert not (path / "rollouts-1.jsonl").exists()


def test_replay_is_a_share_of_all_that_processes_write(values: dict[str, Any], student_folder: Path) -> None:
    """A tenth of eight is one, though it is none of the three that a process writes."""
    setup = open_setup(recipe_of(on_policy(values, student_folder, on_policy={"replay": {"share": 0.1}})))
    written = []
    for rank in range(3):
        steps = OnPolicySteps(replace(setup, processes=Processes(rank, 3)), Path("nowhere"))
        steps._earlier.append(_rollout(tokens=(5, 1), stopped=True))
        assert steps._replays() == (1 if rank == 0 else 0)
        written += steps._slots_to_write(2, "student")
    assert sorted(written) == list(range(17, 24))


def _rollout(*, tokens: tuple[int, ...], stopped: bool) -> Rollout:
    return Rollout(1, "student", "p", (0, 3), Continuation(tokens, (-1.0,) * len(tokens), stopped), "")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stored": ({"signal": {"kind": "topk", "k": 8}}, "set signal.live=true or signal.kind=dense"),
    "no teacher": ({"objective": {"kind": "ce"}}, "on_policy needs a teacher that reads"),
    "drawn by others": (
        {"objective": {"kind": "sampled_reverse_kl"}, "on_policy": {"sources": {"student": 0.5, "teacher": 0.5}}},
        "about what the student draws",
    ),
    "drawn at another temperature": (
        {"objective": {"kind": "sampled_reverse_kl"}, "signal": {"kind": "dense", "temperature": 2.0}},
        "set signal.temperature=1",
    ),
    "of a few ids": (
        {"objective": {"kind": "sampled_reverse_kl"}, "signal": {"kind": "topk", "live": True}},
        "sampled_reverse_kl needs dense",
    ),
    "compiled": ({"compile": True}, "not with compile: remove it"),
    "sharded": ({"parallel": {"kind": "sharded"}}, "not with parallel.kind=sharded"),
    "a pool that writes": (
        {"placement": {"kind": "pool"}, "on_policy": {"sources": {"student": 0.5, "teacher": 0.5}}},
        "set placement.kind=same",
    ),
    "rounded": ({"quantisation_aware": {}}, "not with quantisation_aware: remove it"),
    "shares": ({"on_policy": {"sources": {"student": 0.5}}}, "sum to 0.5"),
    "a share of nothing": (
        {"on_policy": {"sources": {"student": 0.95, "data": 0.05}}},
        "on_policy.sources.data=0.05 comes to none of batch.sequences=8: raise batch.sequences",
    ),
    "a replay of nothing": (
        {"on_policy": {"replay": {"share": 0.05}}},
        "on_policy.replay.share=0.05 comes to none of batch.sequences=8",
    ),
    "a replay of one": ({"on_policy": {"replay": {}}, "batch": {"sequences": 1}}, "comes to none of batch.sequences=1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str, values: dict[str, Any]) -> None:
    changes, complaint = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        recipe_of(on_policy(values, **changes))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experts_see_no_padding(values: dict[str, Any], tmp_path: Path) -> None:
    """Read one at a time, where there is no padding, or together: they see what was written, layer by layer, and no more."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": "law " * count}) + "\n" for count in (1, 2, 3, 4)), encoding="utf-8")
    prompts = {"prompts": {"kind": "file", "path": str(file)}, "max_new_tokens": 8}
    asked = {**on_policy(values, on_policy=prompts), "student": moe().model_dump(mode="json")}
    seen, balances = {}, {}
    for together in (1, 4):
        setup = open_setup(recipe_of({**asked, "name": f"{together}", "batch": {"sequences": 8, "micro_sequences": together}}))
        path = Path(setup.recipe.run_path)
        batches = next(OnPolicySteps(setup, path).steps(0))
        readings = [setup.read(batch) for batch in batches]
        seen[together] = sum(reading.load_ME for reading in readings)
        balances[together] = sum(
            float(reading.balance.detach()) * len(batch.tokens_BT) for reading, batch in zip(readings, batches, strict=True)
        )
        assert (sum(batch.padding for batch in batches) > 0) == (together > 1)
        read = sum(len(each["prompt_tokens"]) + len(each["tokens"]) - 1 for each in rollouts(path))
        assert all(float(seen_E.sum()) == 3 * read for seen_E in seen[together])  # by three experts each
    assert torch.equal(seen[1], seen[4])
    assert balances[4] == pytest.approx(balances[1], rel=1e-5)


def test_a_teacher_must_be_able_to_read_a_whole_rollout(values: dict[str, Any], student_folder: Path) -> None:
    asked = on_policy(values, student_folder)
    with pytest.raises(SpecError, match=r"data\.sequence_length=257 is more than .* set it to 256 or less"):
        open_setup(recipe_of({**asked, "data": {**asked["data"], "sequence_length": 257}}))


def test_drawn_tokens_are_of_an_on_policy_run_alone(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="tokens that the student drew: set on_policy"):
        recipe_of({**on_policy(values, objective={"kind": "sampled_reverse_kl"}), "on_policy": None})


def test_dropout_of_an_adapter_is_off_while_it_writes(values: dict[str, Any], student_folder: Path, tmp_path: Path) -> None:
    """With an adapter whose B is zero nothing but dropout could tell the second step's draws from those of the bare model."""
    bare = on_policy(values, student_folder, optimizer={"kind": "adamw", "lr": 1e-12}, budget={"kind": "steps", "amount": 2})
    lora = {"kind": "lora", "rank": 2, "dropout": 0.5}
    adapted = {**bare, "student": {**bare["student"], "adapter": lora}}
    for name, asked in (("bare", bare), ("adapted", adapted)):
        setup = open_setup(recipe_of(asked))
        run(setup, path=tmp_path / name, writer=None)
    written = [[each["tokens"] for each in rollouts(tmp_path / name)] for name in ("bare", "adapted")]
    assert written[0] == written[1]
