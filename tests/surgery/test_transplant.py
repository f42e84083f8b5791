"""Another tokenizer for a model: what is copied, how rows are made, what the folder says and that it is a student."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tiny_tokenizers import GROUPS_OF_THREE, byte_fallback, byte_level, word_piece
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, SpecError
from limbeck.surgery.matching_pursuit import matching_pursuit
from limbeck.surgery.new_rows import mean_rows, random_rows, sparsemax
from limbeck.surgery.transplant import Asked
from limbeck.surgery.transplant_folder import transplant_folder

CPU = torch.device("cpu")


def llama(folder: Path, tokenizer: Tokenizer, *, width: int, tied: bool, seed: int) -> Path:
    """A random model with a tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.size,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.start_id,
        eos_token_id=tokenizer.end_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.backend.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    special = ("<|pad|>", "<|im_start|>", "<|im_end|>")
    return {
        "old": byte_level(folder / "old", vocab_size=300, special=("<|pad|>",)),
        "new": byte_level(folder / "new", vocab_size=400, pattern=GROUPS_OF_THREE, special=special, bos=None),
        "fallback": byte_fallback(folder / "fallback"),
    }


@pytest.fixture(params=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "tied")


@pytest.fixture
def base(tmp_path: Path, tokenizers: dict[str, Tokenizer], tied: bool) -> Path:
    return llama(tmp_path / "base", tokenizers["old"], width=16, tied=tied, seed=1)


@pytest.fixture
def donor(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> Path:
    return llama(tmp_path / "donor", tokenizers["new"], width=12, tied=False, seed=2)


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}
    return {name: weight.detach() for name, weight in found.items()}


def texts_of(tokenizer: Tokenizer) -> dict[int, str]:
    """What each token that is text by itself decodes to, by the tokenizers library."""
    backend = tokenizer.backend.backend_tokenizer
    decoded = {index: backend.decode([index], skip_special_tokens=True) for index in range(tokenizer.size)}
    return {index: text for index, text in decoded.items() if text and "�" not in text}


@pytest.mark.parametrize("method", ["omp", "mean", "focus", "random"])
def test_rows_of_equal_tokens_are_copied_and_the_model_stays_as_tied_as_it_was(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path, donor: Path, tied: bool, method: Any
) -> None:
    out = tmp_path / "out"
    of_donor = str(donor) if method in ("omp", "focus") else None
    about = transplant_folder(str(base), str(donor), out, asked=Asked(method, atoms=8), donor=of_donor, device=CPU)
    before, after = matrices(base), matrices(out)
    of_old = {text: index for index, text in texts_of(tokenizers["old"]).items()}
    copied = {index: of_old[text] for index, text in texts_of(tokenizers["new"]).items() if text in of_old}
    copied |= {tokenizers["new"].end_id: tokenizers["old"].end_id}  # by role, and the other by its name
    copied |= {tokenizer.backend.convert_tokens_to_ids("<|pad|>"): tokenizers["old"].backend.convert_tokens_to_ids("<|pad|>")
               for tokenizer in [tokenizers["new"]]}  # fmt: skip
    assert len(copied) > 150
    for name in ("input", "output"):
        assert after[name].shape == (tokenizers["new"].size, 16)
        for index, source in copied.items():
            assert torch.equal(after[name][index], before[name][source]), index
    assert torch.equal(after["input"], after["output"]) == tied
    assert about["tied"] == tied
    assert sum(about["tokens"].values()) == tokenizers["new"].size
    assert json.loads((out / "transplant.json").read_text()) == about


def test_the_folder_opens_and_generates_with_the_new_tokenizer(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path, donor: Path
) -> None:
    new = AutoTokenizer.from_pretrained(donor)
    new.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    new.pad_token = "<|pad|>"
    new.save_pretrained(donor)
    out = tmp_path / "out"
    transplant_folder(str(base), str(donor), out, asked=Asked("mean"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == new.chat_template
    assert tokenizer("the law 12345")["input_ids"] == new("the law 12345")["input_ids"]
    end, turn, pad = (new.convert_tokens_to_ids(name) for name in ("</s>", "<|im_end|>", "<|pad|>"))
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id, config.pad_token_id) == (400, end, None, pad)
    assert model.generation_config.eos_token_id == [end, turn]
    written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert written.shape[1] > 3


@pytest.mark.parametrize("method", ["omp", "mean"])
def test_the_same_tokenizer_is_the_same_model(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path, method: Any
) -> None:
    out = tmp_path / "out"
    about = transplant_folder(str(base), str(base), out, asked=Asked(method), donor=str(base) if method == "omp" else None)
    assert about["tokens"]["made"] == 0
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (base, out)]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_mean_is_that_of_the_pieces_in_which_the_old_tokenizer_writes_a_token(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path
) -> None:
    llama(tmp_path / "new", tokenizers["new"], width=12, tied=True, seed=0)
    about = transplant_folder(str(base), str(tmp_path / "new"), tmp_path / "out", asked=Asked("mean"))
    before, after = matrices(base), matrices(tmp_path / "out")
    old, checked = tokenizers["old"].backend, 0
    for index, text in texts_of(tokenizers["new"]).items():
        ids = old(text, add_special_tokens=False)["input_ids"]
        if len(ids) > 1:
            expected = {name: before[name].double()[ids].mean(0) for name in before}
            assert all(torch.allclose(after[name][index].double(), expected[name], atol=1e-6) for name in after)
            checked += 1
    assert 20 < checked <= about["tokens"]["made"]
    assert about["norms"]["input"]["ratio"] < 1  # a mean of unlike rows is shorter than they are


def test_mean_serves_bytes_that_are_no_text_by_themselves(tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path) -> None:
    """Of `fallback`, every byte; and specials of the new tokenizer as they are written."""
    llama(tmp_path / "new", tokenizers["fallback"], width=12, tied=True, seed=0)
    about = transplant_folder(str(base), str(tmp_path / "new"), tmp_path / "out", asked=Asked("mean"))
    after, before = matrices(tmp_path / "out")["input"], matrices(base)["input"]
    byte = tokenizers["fallback"].backend.convert_tokens_to_ids("<0xE2>")
    same = tokenizers["old"].backend.convert_tokens_to_ids("â")  # how byte-level BPE writes 0xE2
    assert torch.equal(after[byte], before[same])
    assert about["tokens"]["unused"] == 0


def test_rescaled_rows_are_as_long_in_the_mean_as_copied_ones(tmp_path: Path, base: Path, donor: Path) -> None:
    about = transplant_folder(str(base), str(donor), tmp_path / "out", asked=Asked("mean", rescale=True))
    for norms in about["norms"].values():
        assert norms["ratio"] == pytest.approx(1, rel=1e-5)
        assert norms["factor"] > 1.1  # a mean of unlike rows is shorter than they are


def test_random_rows_have_the_mean_and_deviation_of_each_dimension() -> None:
    old_VD = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4]) + torch.arange(4)
    found = random_rows(old_VD, 40_000, seed=3)
    # The error of a mean of 40,000 is a 200th of the deviation; of the deviation a 283rd. Four of these.
    assert torch.allclose(found.mean(0), old_VD.mean(0), atol=4 * 4.5 / 200)
    assert torch.allclose(found.std(0), old_VD.std(0), rtol=4 / 283)
    assert not torch.equal(random_rows(old_VD, 2, seed=0), random_rows(old_VD, 2, seed=1))


def test_mean_rows_of_different_lengths() -> None:
    old_VD = torch.tensor([[1.0, 0], [3, 2], [5, 7]])
    found = mean_rows(old_VD, [[2], [0, 1], [], [0, 0, 1]])
    assert torch.allclose(found, torch.tensor([[5, 7], [2, 1], [3, 3], [5 / 3, 2 / 3]]))


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_target_among_the_atoms_is_that_atom_alone() -> None:
    atoms_ME = unit(drawn(40, 8, seed=0))
    found = matching_pursuit(2.5 * atoms_ME[:5], atoms_ME, atoms=4)
    assert found.chosen_BK[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(found.coefficients_BK, torch.tensor([2.5, 0, 0, 0]).expand(5, 4), atol=1e-5)
    assert all(len(set(chosen)) == 4 for chosen in found.chosen_BK.tolist())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 12), count=st.integers(3, 30))
def test_what_is_left_never_rises_and_is_that_of_least_squares(seed: int, width: int, count: int) -> None:
    atoms_ME, target_BE = unit(drawn(count, width, seed=seed)), drawn(6, width, seed=seed + 1)
    found = matching_pursuit(target_BE, atoms_ME, atoms=7)
    taken = min(7, width, count)
    assert found.chosen_BK.shape == (6, taken)
    assert (found.residual_BK.diff(dim=1) <= 1e-5).all()
    for row in range(6):
        chosen = found.chosen_BK[row].tolist()
        assert len(set(chosen)) == taken
        for step in range(1, taken + 1):
            basis = atoms_ME[chosen[:step]].double().numpy().T
            _, residual, rank, _ = np.linalg.lstsq(basis, target_BE[row].double().numpy(), rcond=None)
            if rank == step and len(residual):
                assert float(found.residual_BK[row, step - 1]) == pytest.approx(float(np.sqrt(residual[0])), abs=1e-3)
    rebuilt_BE = torch.einsum("bk,bke->be", found.coefficients_BK, atoms_ME[found.chosen_BK])
    assert torch.allclose((target_BE - rebuilt_BE).norm(dim=1), found.residual_BK[:, -1], atol=2e-3)


def test_each_atom_is_the_one_nearest_to_what_is_left() -> None:
    """Plain orthogonal matching pursuit, one target at a time, in float64."""
    atoms_ME, target_BE = unit(drawn(25, 9, seed=5)), drawn(4, 9, seed=6)
    found = matching_pursuit(target_BE, atoms_ME, atoms=5)
    for row in range(4):
        target, dictionary = target_BE[row].double().numpy(), atoms_ME.double().numpy()
        chosen: list[int] = []
        rest = target
        for _ in range(5):
            chosen.append(int(np.abs(dictionary @ rest).argmax()))
            solution = np.linalg.lstsq(dictionary[chosen].T, target, rcond=None)[0]
            rest = target - dictionary[chosen].T @ solution
        assert found.chosen_BK[row].tolist() == chosen
        assert found.coefficients_BK[row].tolist() == pytest.approx(solution.tolist(), abs=1e-3)


def test_omp_takes_coefficients_from_the_donors_space_to_the_models(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    """A donor whose rows are a linear map of the model's own: where coefficients are exact, so are the rows."""
    old, new = tokenizers["old"], tokenizers["new"]
    base = llama(tmp_path / "base", old, width=6, tied=True, seed=1)
    donor = llama(tmp_path / "donor", new, width=6, tied=True, seed=2)
    model = AutoModelForCausalLM.from_pretrained(donor)
    equal = equal_tokens_of(old, new)
    turn_DE = torch.linalg.qr(drawn(6, 6, seed=3))[0]
    true_WD = drawn(new.size, 6, seed=4)
    true_WD[list(equal)] = matrices(base)["input"][list(equal.values())]
    model.get_input_embeddings().weight.data.copy_(true_WD @ turn_DE)
    model.save_pretrained(donor)
    out = tmp_path / "out"
    about = transplant_folder(str(base), str(donor), out, asked=Asked("omp", atoms=6), donor=str(donor), device=CPU)
    after = matrices(out)["input"]
    made = [index for index in texts_of(new) if index not in equal]
    assert len(made) > 20
    assert torch.allclose(after[made], true_WD[made], atol=2e-3)  # six atoms span all six dimensions
    assert about["left"]["input"] < 1e-3


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6))
def test_sparsemax_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    values = sorted(values, reverse=True)
    found = sparsemax(torch.tensor([values], dtype=torch.float64))[0].numpy()
    start = np.full(len(values), 1 / len(values))
    nearest = minimize(
        lambda point: ((point - np.array(values)) ** 2).sum(),
        start,
        bounds=[(0, 1)] * len(values),
        constraints={"type": "eq", "fun": lambda point: point.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert found.sum() == pytest.approx(1)
    assert found == pytest.approx(nearest.x, abs=1e-4)


def test_focus_weighs_shared_tokens_by_the_sparsemax_of_their_cosines(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path, donor: Path, tied: bool
) -> None:
    transplant_folder(str(base), str(donor), tmp_path / "out", asked=Asked("focus"), donor=str(donor), device=CPU)
    before, after, in_donor = matrices(base), matrices(tmp_path / "out"), matrices(donor)
    shared = equal_tokens_of(tokenizers["old"], tokenizers["new"])
    target = next(index for index in texts_of(tokenizers["new"]) if index not in shared)
    for name in ("input",) if tied else ("input", "output"):
        ids = torch.tensor(list(shared))
        cosine = (unit(in_donor[name][ids]) @ unit(in_donor[name][target][None]).T)[:, 0].double()
        order = cosine.argsort(descending=True)
        weights = sparsemax(cosine[order][None])[0]
        rows = before[name][torch.tensor(list(shared.values()))[order]].double()
        assert torch.allclose(after[name][target].double(), weights @ rows, atol=1e-5)


def equal_tokens_of(old: Tokenizer, new: Tokenizer) -> dict[int, int]:
    """The old id of each new token that both byte-level vocabularies write alike, but for added tokens."""
    vocabularies = [each.backend.backend_tokenizer.get_vocab(with_added_tokens=True) for each in (new, old)]
    added = set(old.backend.get_added_vocab()) | set(new.backend.get_added_vocab())
    return {
        index: vocabularies[1][token]
        for token, index in vocabularies[0].items()
        if token in vocabularies[1] and token not in added
    }


def test_a_token_of_two_roles_gives_its_row_to_both(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    """The old end is the old start too, as GPT-2's; the new tokenizer has one of either."""
    old, new = tokenizers["new"], tokenizers["old"]
    assert old.start_id == old.end_id
    base = llama(tmp_path / "base", old, width=16, tied=False, seed=1)
    new.backend.save_pretrained(tmp_path / "only")
    transplant_folder(str(base), str(tmp_path / "only"), tmp_path / "out", asked=Asked("mean"), device=CPU)
    before, after = matrices(base), matrices(tmp_path / "out")
    for name, rows in after.items():
        assert torch.equal(rows[new.start_id], before[name][old.end_id])
        assert torch.equal(rows[new.end_id], before[name][old.end_id])


def test_what_cannot_be_is_one_sentence(tmp_path: Path, tokenizers: dict[str, Tokenizer], base: Path, donor: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SpecError, match=r"--method omp looks for like tokens.*--donor, or take --method mean"):
        transplant_folder(str(base), str(donor), out, asked=Asked("omp"))
    with pytest.raises(SpecError, match="has another tokenizer than"):
        transplant_folder(str(base), str(donor), out, asked=Asked("omp"), donor=str(base))
    word_piece(tmp_path / "pieces")
    with pytest.raises(DataError, match="do not join to the bytes"):
        transplant_folder(str(base), str(tmp_path / "pieces"), out, asked=Asked("mean"))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(SpecError, match="exists: name another folder"):
        transplant_folder(str(base), str(donor), out, asked=Asked("mean"))
