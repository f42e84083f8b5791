"""Who reads which signal store: every stage of every recipe is a reader, of a path that may hold the texts of several."""

from collections.abc import Iterable

from limbeck.errors import SpecError
from limbeck.signals.places import is_published
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, StoredSignal


def readers_of(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Of all stages of the recipes those that read a store."""
    return [stage for recipe in recipes for _, stage in recipe.stages if stage.uses_store]


def stores_of(recipes: Iterable[Recipe]) -> dict[str, StoredSignal]:
    """The paths or URLs of the stores that the recipes and their stages read, each once."""
    found: dict[str, StoredSignal] = {}
    for recipe in readers_of(recipes):
        assert recipe.signal is not None and not isinstance(recipe.signal, DenseSignal), "what reads a store"
        if found.setdefault(recipe.store_path, recipe.signal) != recipe.signal:
            raise SpecError(f"{recipe.name}: {recipe.store_path} is to hold two signals: set store to another place for one")
    return found


def passes_of(readers: Iterable[Recipe]) -> list[list[Recipe]]:
    """Those that one pass of the teacher serves, together, in the order of their firsts."""
    passes: list[list[Recipe]] = []
    for reader in readers:
        same = next((each for each in passes if each[0].read_by_teacher == reader.read_by_teacher), None)
        if same is None:
            passes.append([reader])
        else:
            same.append(reader)
    return passes


def may_lack_rows(recipe: Recipe) -> bool:
    """Whether a store of the recipe is not there, or may have been left before all stages' texts were in it."""
    passes = [set(stores_of(together)) for together in passes_of(readers_of([recipe]))]
    return any(not is_published(path) or sum(path in each for each in passes) > 1 for path in recipe.stores)
