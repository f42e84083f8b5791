"""Roles by rule, and by what a model says of itself, also inside wrappers."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.roles import Placement, placements
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.students.build import build

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "intermediate_size": 32}


def roles(model: nn.Module) -> dict[str, str]:
    found = placements(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all(placement.lr_scale == 1 for placement in found.values())
    return {name: placement.role for name, placement in found.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_by_rule(tied: bool) -> None:
    student = build(Olmo3Student(**TINY, tied_embeddings=tied), vocab_size=50, seed=0)
    found = roles(student)
    assert found.pop("model.embed_tokens.weight") == "embedding"
    assert found.pop("lm_head.weight", None) == (None if tied else "head")
    assert {name for name, role in found.items() if role == "matrix"} == {name for name in found if "_proj." in name}
    assert {role for name, role in found.items() if "norm" in name} == {"vector"}
    assert set(found.values()) == {"matrix", "vector"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_by_rule(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    found = roles(LlamaForCausalLM(config))
    assert found["model.embed_tokens.weight"] == "embedding"
    assert found.get("lm_head.weight") == (None if tied else "head")
    assert found["model.layers.0.mlp.down_proj.weight"] == "matrix"
    small = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    assert roles(small)["transformer.wpe.weight"] == "embedding"


def test_a_head_of_any_name_is_found_by_transformers_method() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.out, self.hidden = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(4, 4)

        def get_output_embeddings(self) -> nn.Module:
            return self.out

    expected = {"tokens": "embedding", "out": "head", "hidden": "matrix"}
    found = roles(Model())
    assert {name: found[f"{name}.weight"] for name in expected} == expected
    assert found["out.bias"] == "vector"


def test_shapes_decide_on_bare_parameters() -> None:
    model = nn.ParameterDict({"experts": torch.zeros(3, 4, 5), "gains": torch.zeros(3, 4), "scale": torch.zeros(())})
    assert roles(model) == {"experts": "experts", "gains": "vector", "scale": "vector"}


class Speaking(nn.Module):
    """Says what no rule would."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3, bias=False)
        self.inner = nn.ModuleDict({"ngrams": nn.Embedding(7, 4)})

    def placements(self) -> dict[str, Placement]:
        return {"gate.weight": Placement("router", lr_scale=0.5), "inner.ngrams.weight": Placement("table")}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(x)


def test_a_model_speaks_for_itself_also_in_a_wrapper() -> None:
    assert placements(Speaking()) == Speaking().placements()
    wrapped = nn.ModuleDict({"student": Speaking(), "projection": nn.Linear(4, 8, bias=False)})
    assert placements(wrapped) == {
        "student.gate.weight": Placement("router", lr_scale=0.5),
        "student.inner.ngrams.weight": Placement("table"),
        "projection.weight": Placement("matrix"),
    }


def test_the_outermost_speaks_for_all_inside() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.speaking = Speaking()

        def placements(self) -> dict[str, Placement]:
            return {f"speaking.{name}": Placement("vector") for name, _ in self.speaking.named_parameters()}

    assert {placement.role for placement in placements(Outer()).values()} == {"vector"}


@pytest.mark.slow
def test_names_survive_compilation() -> None:
    compiled = torch.compile(Speaking())
    found = placements(compiled)  # type: ignore[arg-type]
    assert set(found) == {name for name, _ in compiled.named_parameters()}  # type: ignore[attr-defined]
    assert {placement.role for placement in found.values()} == {"router", "table"}
