"""What can be known of later stages before the first step is: hours should not be spent before a mistake is found."""

from limbeck.data.streams import open_stream
from limbeck.errors import LimbeckError, SpecError
from limbeck.progress import say
from limbeck.signals.store import SignalStore
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.students.start import yarns
from limbeck.train.checks import check_batch, check_reads_whole, check_store
from limbeck.train.course import Course
from limbeck.train.prompts import open_prompts
from limbeck.train.setup import Setup
from limbeck.train.texts import Texts, first_process_first


def check_stages(course: Course, setup: Setup) -> None:
    """Open the texts, stores and prompts of the stages that follow the one that is set up.

    `LimbeckError` names the stage that lacks something, whose texts are other tokens than those of the first, or whose batch
    the processes cannot share.
    """
    stages = course.recipe.stages
    for number in range(course.place.stage + 1, len(stages)):
        stage, recipe = stages[number]
        try:
            check_batch(recipe, setup.processes)
            texts = first_process_first(recipe, setup.processes)
            _check(recipe, texts, than=setup.texts)
        except LimbeckError as error:
            raise type(error)(f"stage {stage.name}: {error}") from error
        _warn_of_lengths(recipe, stages[number - 1][1], name=stage.name)


def _check(recipe: Recipe, texts: Texts, *, than: Texts) -> None:
    if texts.train.tokenizer_fingerprint != than.train.tokenizer_fingerprint:
        raise SpecError("its texts are read by another tokenizer than those of the stages before: a run has one")
    if recipe.uses_store:
        check_store(SignalStore.open(recipe.store_path), recipe, texts)
    check_reads_whole(recipe, texts)
    open_stream(recipe.data, texts.train, seed=recipe.seed)
    if recipe.on_policy is not None:
        open_prompts(recipe, texts.train, texts.tokenizer)


def _warn_of_lengths(recipe: Recipe, before: Recipe, *, name: str) -> None:
    """Aloud where positions are stretched from another length than the stage before has trained them to."""
    if isinstance(recipe.student, HuggingFaceStudent) or isinstance(before.student, HuggingFaceStudent):
        return
    if yarns(before.student.layout):
        return
    for length in sorted({yarn.original_length for yarn in yarns(recipe.student.layout)}):
        if length != before.data.sequence_length:
            say(
                f"stage {name}: YaRN stretches positions from {length} tokens, but the stage before it trains on "
                f"{before.data.sequence_length}: is yarn.original_length right?"
            )
