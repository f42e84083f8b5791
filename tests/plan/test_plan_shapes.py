"""Shapes of equal size: parameters counted on the modules themselves, proportions kept."""

import pytest
from tiny_students import golf, ladder, moe, olmo3

from limbeck.errors import SpecError
from limbeck.plan.shapes import equal_shapes
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.students.build import build_empty


def counted(student, *, vocab_size: int) -> int:
    return sum(parameter.numel() for parameter in build_empty(student, vocab_size=vocab_size).parameters())


@pytest.mark.parametrize(
    ("student", "layers"),
    [
        (olmo3(hidden_size=128, num_heads=8, num_kv_heads=4, intermediate_size=352), (2, 4, 8, 16)),
        (golf(hidden_size=128, num_heads=8, intermediate_size=384, value_embedding_layers=(0,)), (2, 4, 8)),
        (moe(dense_layers=4, hidden_size=128, num_heads=8, intermediate_size=352), (4, 6)),
        (ladder(hidden_size=512, num_layers=4), (3, 4, 8)),
    ],
)
def test_shapes_have_equal_parameters(student, layers):
    shapes = equal_shapes(student, vocab_size=500, layers=layers)
    target = counted(student, vocab_size=500) if student.kind != "moe" else None
    assert [each.num_layers for each in shapes.values()] == list(layers)
    for name, shape in shapes.items():
        assert name == f"{shape.num_layers}x{shape.layout.hidden_size}"
        if target is not None:
            assert abs(counted(shape, vocab_size=500) / target - 1) <= 0.02
    widths = [shape.layout.hidden_size for shape in shapes.values()]
    assert widths == sorted(widths, reverse=True)


def test_its_own_depth_is_the_student_itself():
    student = Olmo3Student(
        hidden_size=256, num_layers=6, num_heads=8, num_kv_heads=2, head_dim=32, intermediate_size=704, vocab_size=1000
    )
    shape = equal_shapes(student, vocab_size=1000, layers=[6])["6x256"]
    assert shape == student


def test_heads_keep_their_ratios():
    student = olmo3(hidden_size=128, num_heads=8, num_kv_heads=4, intermediate_size=352)
    for shape in equal_shapes(student, vocab_size=500, layers=(2, 8)).values():
        assert shape.num_heads == 2 * shape.num_kv_heads
        assert shape.hidden_size == 16 * shape.num_heads
        assert shape.head_dim == 16
        assert 352 / 128 / 2 < shape.intermediate_size / shape.hidden_size < 352 / 128 * 2


def test_what_cannot_be_is_refused():
    with pytest.raises(SpecError, match=r"no width gives 200 layers"):
        equal_shapes(olmo3(), vocab_size=300, layers=[200])
    with pytest.raises(SpecError, match="dense MLPs"):
        equal_shapes(moe(dense_layers=0), vocab_size=300, layers=[4])
