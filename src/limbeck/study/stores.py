"""Writing the signal stores that recipes need, with one pass of the teacher over the documents.

Under `torchrun` the processes share the documents (`limbeck.teachers.cache`), and those that are told to stop because one of
them died write the shard in hand first. A store whose path is a URL is written in the user cache and published from there when
it is complete; so processes on several machines need a cache that they share (`LIMBECK_CACHE`).

Stages of a curriculum may read other texts from the same store: it holds the documents of all. It is written for the first of
them and extended by those of the others.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from limbeck.compute import pick_device
from limbeck.errors import SpecError
from limbeck.paths import is_remote, write_atomically
from limbeck.signals.manifest import discard
from limbeck.signals.merge import Merged
from limbeck.signals.places import is_published
from limbeck.signals.remote import is_published_as, outgoing_folder, publish
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal
from limbeck.study.store_readers import passes_of, readers_of, stores_of
from limbeck.teachers.cache import Share, extend_store, store_identity, write_stores
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.train.interrupt import Interrupted, finish_the_step
from limbeck.train.parallel import Processes, leave, start_processes, wait_for_all
from limbeck.train.texts import Texts, open_texts


def write_recipe_stores(recipes: Sequence[Recipe]) -> list[str]:
    """Write the stores that the recipes read; those of one teacher and one set of texts in one pass. Resumes what was begun.

    Returns their folders or URLs.
    """
    readers = readers_of(recipes)
    if not readers:
        raise _reads_none(recipes[0])
    stores, passes = stores_of(recipes), passes_of(readers)
    shared = {path for path in stores if sum(path in stores_of(together) for together in passes) > 1}
    for path in filter(is_remote, shared):
        raise SpecError(
            f"{path} is to hold the texts of several stages, and a store at a URL cannot be extended: name a folder"
        )
    for together in passes:
        _write_together(together, shared=shared)
    return list(stores)


def extend_recipe_store(path: Path, recipe: Recipe) -> Merged | None:
    """Add to a store the training documents of a recipe that it lacks, and draws; None where it lacks none."""
    signal = recipe.signal
    if not recipe.uses_store or signal is None or isinstance(signal, DenseSignal):
        raise _reads_none(recipe)
    assert recipe.teacher is not None, "the recipe's validator requires one"
    texts, teacher, processes = _open(recipe)
    merged = extend_store(
        teacher,
        texts.train,
        path,
        signal=signal,
        context=recipe.teacher.context,
        share=_share(processes),
        counterpart=None if texts.across is None else texts.across.counterpart,
    )
    leave(processes)
    return merged


def _write_together(recipes: Sequence[Recipe], *, shared: Collection[str]) -> None:
    """In one pass, but for stores that are there and hold other texts too: they get what they lack of these."""
    first = recipes[0]
    assert first.teacher is not None, "the recipe's validator requires one"
    texts, teacher, processes = _open(first)
    context = first.teacher.context
    counterpart = None if texts.across is None else texts.across.counterpart
    signals = {}
    for path, signal in stores_of(recipes).items():
        identity = store_identity(teacher, texts.train, signal, context=context, counterpart=counterpart)
        if path in shared and is_published(path):
            extend_store(
                teacher,
                texts.train,
                Path(path),
                signal=signal,
                context=context,
                share=_share(processes),
                counterpart=counterpart,
            )
        elif not is_published_as(path, identity):
            signals[path] = signal
    folders = {outgoing_folder(path): signal for path, signal in signals.items()}
    write_stores(teacher, texts.train, folders, context=context, share=_share(processes), counterpart=counterpart)
    for path in filter(is_remote, stores_of(recipes)):
        if processes.is_first:
            publish(path) if path in signals else discard(outgoing_folder(path))
    leave(processes)


def _open(recipe: Recipe) -> tuple[Texts, Teacher, Processes]:
    """Texts, teacher, and the processes that share the work; the first one tokenises for all."""
    assert recipe.teacher is not None
    device = pick_device(recipe.device)
    processes = start_processes(device)
    first = open_texts(recipe) if processes.is_first else None
    wait_for_all(processes)
    return first or open_texts(recipe), load_teacher(recipe.teacher, device=device), processes


def _share(processes: Processes) -> Share:
    wait = partial(wait_for_all, processes)
    if processes.world_size == 1:
        return Share(wait=wait)
    return Share(processes.rank, processes.world_size, wait, finish_the_shard)


@contextmanager
def finish_the_shard() -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT or SIGTERM into a stop at the next call of what it gives; a second one stops at once."""
    with finish_the_step() as interrupt:

        def stop_if_asked() -> None:
            if interrupt.asked:
                raise Interrupted("stopped after a shard that is kept; the same command goes on from there")

        yield stop_if_asked


def _reads_none(recipe: Recipe) -> SpecError:
    return SpecError(f"{recipe.name}: no signal store is read (objective.kind={recipe.objective.kind}, or signal.live)")


def keep_fidelity(place: str, folder: Path) -> None:
    """Write what stands between a store and its teacher (`limbeck cache fidelity`), for the report.

    Hard labels and chunks hold no distribution over tokens, and a store at a URL is not read again for it.
    """
    from limbeck.signals.fidelity import fidelity
    from limbeck.signals.store import SignalStore

    if is_remote(place):
        return
    store = SignalStore.open(place)
    if store.signal.kind not in ("hard", "chunks"):
        folder.mkdir(parents=True, exist_ok=True)
        values = {"path": place, **fidelity(store).as_json()}
        write_atomically(folder / f"{Path(place).name}.json", json.dumps(values, indent=1, allow_nan=False))


def describe_store(facts: Mapping[str, Any]) -> str:
    """A store in one line: size, what it keeps, how fast it was scored."""
    tail = f", tail mass {facts['tail_mass']:.3f}" if "tail_mass" in facts else ""
    return (
        f"store {facts['path']}: {facts['bytes_per_token']:.1f} bytes/token, "
        f"{facts['distinct_ids_per_token']:.1f} ids/token{tail}, scored at {facts['scoring_tokens_per_second']:,.0f} tokens/s"
    )
