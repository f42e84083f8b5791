"""Writing the signal stores that recipes need, with one pass of the teacher over the documents."""

from collections.abc import Sequence
from pathlib import Path

from limbeck.compute import pick_device
from limbeck.errors import SpecError
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, StoredSignal
from limbeck.teachers.cache import write_stores
from limbeck.teachers.huggingface import load_teacher
from limbeck.train.setup import open_texts


def stores_of(recipes: Sequence[Recipe]) -> dict[Path, StoredSignal]:
    """The stores that the recipes read, each once."""
    return {
        Path(recipe.store_path): recipe.signal
        for recipe in recipes
        if recipe.uses_store and recipe.signal is not None and not isinstance(recipe.signal, DenseSignal)
    }


def write_recipe_stores(recipes: Sequence[Recipe]) -> list[Path]:
    """Write the stores that the recipes read; those of one teacher and one set of texts in one pass. Resumes what was begun."""
    readers = [recipe for recipe in recipes if recipe.uses_store]
    if not readers:
        raise SpecError(
            f"{recipes[0].name}: no signal store is read (objective.kind={recipes[0].objective.kind}, or signal.live)"
        )
    while readers:
        first = readers[0]
        together = [recipe for recipe in readers if (recipe.teacher, recipe.data) == (first.teacher, first.data)]
        readers = [recipe for recipe in readers if recipe not in together]
        _write_together(together)
    return list(stores_of(recipes))


def _write_together(recipes: Sequence[Recipe]) -> None:
    first = recipes[0]
    assert first.teacher is not None, "the recipe's validator requires one"
    texts = open_texts(first)
    teacher = load_teacher(first.teacher, device=pick_device(first.device))
    write_stores(teacher, texts.train, stores_of(recipes), context=first.teacher.context)
