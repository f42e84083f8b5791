"""Writing the signal stores that recipes need, with one pass of the teacher over the documents."""

from collections.abc import Sequence
from pathlib import Path

from limbeck.compute import pick_device
from limbeck.errors import SpecError
from limbeck.signals.manifest import STORE_FILE
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, StoredSignal
from limbeck.teachers.cache import write_stores
from limbeck.teachers.huggingface import load_teacher
from limbeck.train.setup import open_texts


def is_published(path: Path) -> bool:
    """Whether a complete store lies there."""
    return (path / STORE_FILE).is_file()


def stores_of(recipes: Sequence[Recipe]) -> dict[Path, StoredSignal]:
    """The stores that the recipes read, each once."""
    return {
        Path(recipe.store_path): recipe.signal
        for recipe in recipes
        if recipe.uses_store and recipe.signal is not None and not isinstance(recipe.signal, DenseSignal)
    }


def write_recipe_stores(recipes: Sequence[Recipe]) -> list[Path]:
    """Write the stores that the recipes read. They must share teacher and texts. Continues what an earlier call left."""
    readers = [recipe for recipe in recipes if recipe.uses_store]
    if not readers:
        raise SpecError(
            f"{recipes[0].name}: no signal store is read (objective.kind={recipes[0].objective.kind}, or signal.live)"
        )
    first = readers[0]
    assert first.teacher is not None
    if any(recipe.teacher != first.teacher or recipe.data != first.data for recipe in readers):
        raise SpecError("stores are written together only for recipes with the same teacher and data")
    signals = stores_of(readers)
    texts = open_texts(first)
    teacher = load_teacher(first.teacher, device=pick_device(first.device))
    write_stores(teacher, texts.train, signals, context=first.teacher.context)
    return list(signals)
