"""What a user means by a student: a number of parameters, a member of the family by name, or a recipe."""

from limbeck.errors import SpecError
from limbeck.plan.accounting import student_flops_per_token, student_parameters
from limbeck.plan.allocate import Size
from limbeck.plan.family import FAMILY
from limbeck.plan.pretrained import student_vocab_size
from limbeck.plan.quantities import amount, is_amount
from limbeck.spec.base import nearest
from limbeck.spec.load import load_recipe, shipped, shown_names
from limbeck.spec.recipe import Recipe

LEAST_PARAMS = 1e3


def size_of(student: str) -> Size:
    """The size that `student` names; `SpecError` with the nearest names where it names none.

    A number (`1B`, `3e8`) is parameters outside the embeddings, with the FLOPs of the family's closed form. A member of the
    family (`ladder-198m`) has those of its table. A recipe (a shipped name or a file) has its own, over its own sequence
    length.
    """
    if is_amount(student):
        return Size.of_family(amount(student, source="--student", least=LEAST_PARAMS))
    members = {member.name: member for member in FAMILY}
    if student.lower() in members:
        member = members[student.lower()]
        return Size(member.name, float(member.params), member.exact_flops_per_token)
    if student not in shipped("recipes") and not student.endswith((".yaml", ".yml")):
        hint = nearest(student, shipped("recipes"), shown=shown_names("recipes"))
        raise SpecError(f"--student={student} is no number, family member, recipe or file{hint}")
    return size_of_recipe(load_recipe(student))


def size_of_recipe(recipe: Recipe) -> Size:
    """The size of a recipe's student; `SpecError` where its vocabulary is not said."""
    vocab_size = student_vocab_size(recipe.student)
    if vocab_size is None:
        key = recipe.student.vocab_size_key
        raise SpecError(f"{recipe.name}: {key} is not set, so its FLOPs are not known: set it in the recipe")
    context = recipe.data.sequence_length
    flops = student_flops_per_token(recipe.student, vocab_size=vocab_size, context=context)
    params = student_parameters(recipe.student, vocab_size=vocab_size).non_embedding
    return Size(recipe.name, float(params), flops, context=context, vocab_size=vocab_size)
