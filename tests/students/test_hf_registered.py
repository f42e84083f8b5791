"""The registered class: generation, padding, precision, and what transformers asks of any model."""

import subprocess
import sys

import pytest
import torch
from test_hf import VOCAB, moved, random_tokens
from tiny_students import FOREIGN, dense, golf, moe
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from limbeck.spec.parts import GrapeM, Rope, SharedExpert
from limbeck.spec.student import Student
from limbeck.students import hf
from limbeck.students.decoder import Decoder
from limbeck.students.positions import GrapePlane, GrapeRates

FAMILIES = {name: FOREIGN[name][0] for name in ("moe", "golf", "dense, contextual", "dense, rank 2", "dense, sinks")}


def opened(spec: Student, folder, **options) -> tuple[Decoder, PreTrainedModel]:
    student = moved(spec)
    hf.save(student, spec=spec, folder=folder, max_positions=64)
    return student, AutoModelForCausalLM.from_pretrained(folder, **options)


def generate(model: PreTrainedModel, tokens_BT: Tensor, new: int, **options):
    return model.generate(
        tokens_BT,
        attention_mask=options.pop("attention_mask", torch.ones_like(tokens_BT)),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES.keys())
@torch.no_grad()
def test_generation_with_a_cache_is_reading_all_anew_for_every_token(tmp_path, spec):
    """Across golf's ntk_length of 24, beyond which positions change with every token."""
    student, model = opened(spec, tmp_path / "s")
    found = generate(model, random_tokens(2, 17), 12)
    read = []
    for end in range(17, 29):
        hidden_BTD = student(found.sequences[:, :end]).hidden_BTD
        read.append(student.logits(hidden_BTD[:, -1]))
    logits_BTV = torch.stack(found.logits, 1)
    torch.testing.assert_close(logits_BTV, torch.stack(read, 1), rtol=0, atol=2e-5)
    assert torch.equal(found.sequences[:, 17:], torch.stack(read, 1).argmax(-1))
    assert found.past_key_values.get_seq_length() == 28
    assert len(found.sequences[:, 17:].unique()) > 4  # it says something


@torch.no_grad()
def test_the_cache_spares_reading(tmp_path):
    """One position a step, where without a cache it is all of them."""
    _, model = opened(golf(ntk_length=None), tmp_path / "s")
    lengths = {}
    for use_cache in (True, False):
        seen = lengths[use_cache] = []
        hook = model.model.body.norm.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.shape[1])
        )
        generate(model, random_tokens(1, 5), 4, use_cache=use_cache)
        hook.remove()
    assert lengths == {True: [5, 1, 1, 1], False: [5, 6, 7, 8]}


@pytest.mark.parametrize("spec", [golf(), dense(positions=GrapeM(form="contextual"))], ids=["golf", "contextual"])
@torch.no_grad()
def test_beam_search_and_several_answers_reorder_the_cache(tmp_path, spec):
    _, model = opened(spec, tmp_path / "s")
    tokens_BT = random_tokens(2, 9)
    answers = [
        generate(model, tokens_BT, 10, num_beams=3, num_return_sequences=2, use_cache=use_cache).sequences
        for use_cache in (True, False)
    ]
    assert torch.equal(answers[0], answers[1])


@torch.no_grad()
def test_padded_rows_are_read_as_if_alone_and_want_no_cache(tmp_path):
    student, model = opened(golf(), tmp_path / "s")
    short_BT, long_BT = random_tokens(1, 7), random_tokens(1, 12, seed=1)
    padding_BT = torch.zeros(1, 5, dtype=torch.long)
    mask_BT = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])
    left_BT = torch.cat([torch.cat([padding_BT, short_BT], 1), long_BT])
    logits_BTV = model(left_BT, attention_mask=mask_BT).logits
    alone_BTV = student.logits(student(short_BT).hidden_BTD)
    torch.testing.assert_close(logits_BTV[:1, 5:], alone_BTV, rtol=0, atol=1e-5)
    right_BT = torch.cat([torch.cat([short_BT, padding_BT], 1), long_BT])
    torch.testing.assert_close(model(right_BT, attention_mask=mask_BT.flip(1)).logits[:1, :7], alone_BTV, rtol=0, atol=1e-5)
    together = generate(model, left_BT, 6, attention_mask=mask_BT, use_cache=False).sequences[:, 12:]
    for row, tokens_BT in enumerate((short_BT, long_BT)):
        assert torch.equal(generate(model, tokens_BT, 6).sequences[0, -6:], together[row])
    with pytest.raises(ValueError, match="use_cache=False"):
        generate(model, left_BT, 6, attention_mask=mask_BT)


@torch.no_grad()
def test_in_bfloat16_the_routers_biases_stay_float32(tmp_path):
    spec = moe(shared_expert=SharedExpert(size=24))
    student, model = opened(spec, tmp_path / "s", dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    _, cast = opened(spec, tmp_path / "s")
    for each in (model, cast.bfloat16()):
        biases = [tensor for name, tensor in each.state_dict().items() if name.endswith("router.bias")]
        assert len(biases) == 3
        for bias_E, experts in zip(biases, student.experts(), strict=True):
            assert bias_E.dtype == torch.float32 and torch.equal(bias_E, experts.router.bias)
    tokens_BT = random_tokens(2, 23)
    assert model(tokens_BT).logits.isfinite().all()


@pytest.mark.parametrize("form", ["frequencies", "contextual", "rank2"])
@torch.no_grad()
def test_in_bfloat16_learned_positions_stay_float32(tmp_path, form):
    """16 ln(rate) is some -60 for a middling plane: bfloat16 has quarters there, 1 % of a rate, a radian far out."""
    spec = dense(positions=GrapeM(form=form), full_attention_every=1)
    student, model = opened(spec, tmp_path / "s", dtype=torch.bfloat16)
    own = {name: tensor for name, tensor in student.state_dict().items() if ".positions." in name}
    kept = {name: tensor for name, tensor in model.state_dict().items() if ".positions." in name}
    assert len(own) == len(kept) >= 4
    for tensor, expected in zip(kept.values(), own.values(), strict=True):
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected)
    assert model.lm_head.weight.dtype == torch.bfloat16
    tokens_BT = random_tokens(1, 1500)
    expected_BTV = student.logits(student(tokens_BT).hidden_BTD)
    error = float((model(tokens_BT).logits.float() - expected_BTV).std() / expected_BTV.std())
    for module in model.modules():
        if isinstance(module, GrapeRates | GrapePlane):
            module.bfloat16()
    rounded = float((model(tokens_BT).logits.float() - expected_BTV).std() / expected_BTV.std())
    assert error < 0.05
    assert error < 0.7 * rounded


@torch.no_grad()
def test_the_body_alone_gives_hidden_states(tmp_path):
    """What a teacher that is a student is read by."""
    student, model = opened(golf(), tmp_path / "s")
    tokens_BT = random_tokens(2, 11)
    expected = student(tokens_BT).hidden_BTD
    for body in (model.base_model, AutoModel.from_pretrained(tmp_path / "s")):
        found = body(input_ids=tokens_BT, use_cache=False)
        torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=1e-6)
        assert found.past_key_values is None
    assert model(tokens_BT, logits_to_keep=2).logits.shape == (2, 2, VOCAB)
    capped = model(tokens_BT).logits
    torch.testing.assert_close(capped, 30 * torch.tanh(model.lm_head(expected) / 30), rtol=0, atol=1e-5)
    assert capped.abs().max() < 30


def test_labels_give_the_cross_entropy_of_the_next_token(tmp_path):
    _, model = opened(golf(), tmp_path / "s")
    tokens_BT = random_tokens(2, 11)
    output = model(tokens_BT, labels=tokens_BT)
    log_probs = torch.log_softmax(output.logits[:, :-1].double(), -1)
    expected = -log_probs.gather(-1, tokens_BT[:, 1:, None]).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("spec", [golf(), golf(tied_embeddings=False), moe()], ids=["tied", "untied", "moe"])
def test_what_transformers_saves_is_a_student_again(tmp_path, spec):
    student, model = opened(spec, tmp_path / "s")
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == spec.tied_embeddings
    model.save_pretrained(tmp_path / "tuned")
    again, spec_again, _ = hf.load(tmp_path / "tuned")
    assert spec_again == spec
    change = again.model.embed_tokens.weight - student.model.embed_tokens.weight
    assert change.abs().amax(1).nonzero()[:, 0].tolist() == [3]


def test_a_configuration_alone_gives_an_initialised_student(tmp_path):
    opened(golf(), tmp_path / "s")
    config = AutoConfig.from_pretrained(tmp_path / "s")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 4, 4)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config))
    table = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(table[0], table[1]) and not torch.equal(table[0], table[2])
    assert table[0].std().item() == pytest.approx(0.005, rel=0.1)
    assert (models[0].model.body.layers[0].mix_2D[0] == 1).all()


def test_embeddings_instead_of_tokens_and_forgetting_are_refused(tmp_path):
    _, model = opened(dense(positions=Rope(ntk_length=24)), tmp_path / "s")
    with pytest.raises(ValueError, match="input_ids"):
        model(input_ids=random_tokens(1, 3), inputs_embeds=torch.zeros(1, 3, 48))
    with pytest.raises(ValueError, match="assistant"):
        model(random_tokens(1, 3), use_cache=True).past_key_values.crop(-1)


@pytest.mark.slow
def test_limbeck_itself_stays_free_of_torch_and_one_import_registers(tmp_path):
    opened(golf(), tmp_path / "s")
    program = f"""
import sys, limbeck
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(tmp_path / "s")!r})
except (ValueError, KeyError) as error:
    assert "limbeck" in str(error)
else:
    raise AssertionError
import limbeck.students.registered
print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path / "s")!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LimbeckForCausalLM"
    assert not list((tmp_path / "s").glob("*.py"))
