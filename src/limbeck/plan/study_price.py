"""What a study costs before it is run: every arm's training, and every store's scoring once for all the arms that read it.

Accounting of `limbeck.plan.accounting` over rows as long as the recipe's: documents that are shorter cost less attention. None
stands for what cannot be told: a budget in seconds, a teacher whose configuration is not known. Torch-free.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from limbeck.errors import SpecError
from limbeck.plan.accounting import student_flops_per_token
from limbeck.plan.pretrained import student_vocab_size
from limbeck.plan.price import Price, price, shares_of
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe

Configs = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class ArmPrice:
    """What one arm costs."""

    arm: str
    teacher: str | None
    """The arm or the model that it learns from; None where it learns from the text."""
    params: int
    """Outside the embeddings."""
    total_params: int
    training_flops_per_token: float
    """Of the student, forward and backward."""
    tokens: float | None
    student_flops: float | None
    """Forward and backward."""
    teacher_flops: float | None
    """For the rows that it learns from, each once. A store pays them once for all its readers."""
    live_teacher_flops: float | None
    """Of these, what a teacher inside the training loop computes."""
    stores: tuple[str, ...]
    """That its stages read."""


@dataclass(frozen=True)
class StorePrice:
    """What one teacher's words about the training documents cost."""

    path: str
    teacher: str
    tokens: float | None
    """All training tokens where their number is known, otherwise as many as the longest arm that reads it."""
    flops: float | None
    """0 where another store of the same teacher and texts is written in the same pass, and pays for it."""
    bytes: float | None


@dataclass(frozen=True)
class StudyPrice:
    """What a study costs."""

    arms: tuple[ArmPrice, ...]
    stores: tuple[StorePrice, ...]
    flops_per_second: float

    @property
    def training_flops(self) -> float | None:
        """Of all students, forward and backward."""
        return _sum(arm.student_flops for arm in self.arms)

    @property
    def scoring_flops(self) -> float | None:
        """Of all teachers: stores once each, and teachers inside the training loop every time."""
        live = (arm.live_teacher_flops for arm in self.arms)
        return _sum([*(store.flops for store in self.stores), *live])

    @property
    def total_flops(self) -> float | None:
        """Training and scoring."""
        return _sum([self.training_flops, self.scoring_flops])

    @property
    def store_bytes(self) -> float | None:
        """Of all stores on disk."""
        return _sum(store.bytes for store in self.stores)

    @property
    def hours(self) -> float | None:
        """At `flops_per_second`, one thing after another."""
        return self.total_flops / self.flops_per_second / 3600 if self.total_flops is not None else None

    def as_json(self) -> dict[str, Any]:
        """Everything, totals included."""
        totals = ("training_flops", "scoring_flops", "total_flops", "store_bytes", "hours")
        return {**asdict(self), **{name: getattr(self, name) for name in totals}}


def price_study(
    recipes: Mapping[str, Recipe],
    *,
    taught_by: Mapping[str, str],
    configs: Configs,
    flops_per_second: float,
    unique_tokens: float | None = None,
    without_stores: Container[str] = (),
) -> StudyPrice:
    """Price a study's arms on a device that sustains `flops_per_second`.

    `taught_by` names the arm that teaches an arm; `configs` holds the config.json or catalogue entry of other teachers, by arm.
    `unique_tokens` is how many tokens the training documents have; None: what `data.train.sample_tokens` says. Stores at the
    paths `without_stores` cost nothing. `SpecError` for a student whose vocabulary is not known.
    """
    arms: list[ArmPrice] = []
    stores: list[_Scored] = []
    for arm, recipe in recipes.items():
        vocab_size = _vocab_size(arm, recipes, taught_by, configs)
        parts: list[ArmPrice] = []
        mine: list[_Scored] = []
        for stage in shares_of(recipe):
            cost = price(stage, vocab_size=vocab_size, teacher=configs.get(arm), flops_per_second=flops_per_second)
            scoring = _scoring_flops_per_token(stage, cost, recipes.get(taught_by.get(arm, "")), vocab_size=vocab_size)
            unique = _least(unique_tokens, getattr(stage.data.train, "sample_tokens", None))
            parts.append(_arm_price(arm, stage, cost, scoring=scoring, unique=unique, taught_by=taught_by))
            if stage.uses_store and stage.store_path not in without_stores:
                store = _store_price(parts[-1], cost, scoring=scoring, tokens=cost.tokens if unique is None else unique)
                mine = _added(mine, _Scored(stage.read_by_teacher, store), both=max if unique is not None else _more)
        arms.append(_of_all_stages(parts))
        for scored in mine:
            stores = _added(stores, scored, both=max)
    return StudyPrice(tuple(arms), _paid_once(stores), flops_per_second)


@dataclass(frozen=True)
class _Scored:
    """A store's part that is about the same texts."""

    read: tuple[Any, ...]
    store: StorePrice


def _added(stores: list[_Scored], new: _Scored, *, both: Callable[[float, float], float]) -> list[_Scored]:
    """With one more; where there is one of the same path and texts, it gets as many tokens as `both` have."""
    for place, each in enumerate(stores):
        if each.read == new.read and each.store.path == new.store.path:
            tokens = both(_tokens(each.store), _tokens(new.store))
            longest = max(each.store, new.store, key=_tokens)
            return [*stores[:place], _Scored(new.read, _scaled(longest, tokens)), *stores[place + 1 :]]
    return [*stores, new]


def _more(first: float, second: float) -> float:
    return first + second


def _scaled(store: StorePrice, tokens: float) -> StorePrice:
    """The store with so many tokens; as it is where their number is not known."""
    if not store.tokens or math.isinf(tokens):
        return store
    factor = tokens / store.tokens
    return replace(store, tokens=tokens, flops=_product(store.flops, factor), bytes=_product(store.bytes, factor))


def _paid_once(stores: Sequence[_Scored]) -> tuple[StorePrice, ...]:
    """The longest store of each pass of a teacher over the texts pays for the others."""
    paying: list[_Scored] = []
    for each in sorted(stores, key=lambda scored: _tokens(scored.store), reverse=True):
        if all(each.read != other.read for other in paying):
            paying.append(each)
    return tuple(each.store if each in paying else replace(each.store, flops=0.0) for each in stores)


def _of_all_stages(parts: Sequence[ArmPrice]) -> ArmPrice:
    """The arm that does one after another; of its tokens each costs what one costs on average."""
    sums = {
        name: _sum(getattr(part, name) for part in parts)
        for name in ("tokens", "student_flops", "teacher_flops", "live_teacher_flops")
    }
    mean = parts[0].training_flops_per_token
    if len(parts) > 1 and sums["tokens"] and sums["student_flops"] is not None:
        mean = sums["student_flops"] / sums["tokens"]
    return replace(
        parts[0],
        **sums,  # type: ignore[arg-type]
        teacher=next((part.teacher for part in parts if part.teacher is not None), None),
        training_flops_per_token=mean,
        stores=tuple(dict.fromkeys(path for part in parts for path in part.stores)),
    )


def _arm_price(
    arm: str, recipe: Recipe, cost: Price, *, scoring: float | None, unique: float | None, taught_by: Mapping[str, str]
) -> ArmPrice:
    taught = needs_teacher(recipe.objective) and recipe.teacher is not None
    rows = _least(cost.tokens, unique) if recipe.uses_store and cost.tokens is not None else cost.tokens
    scored = _product(scoring, rows) if taught else 0.0
    return ArmPrice(
        arm=arm,
        teacher=taught_by.get(arm, recipe.teacher.slug) if taught and recipe.teacher is not None else None,
        params=cost.params.non_embedding,
        total_params=cost.params.total,
        training_flops_per_token=cost.training_flops_per_token,
        tokens=cost.tokens,
        student_flops=cost.student_flops,
        teacher_flops=scored,
        live_teacher_flops=0.0 if recipe.uses_store else scored,
        stores=(recipe.store_path,) if recipe.uses_store else (),
    )


def _store_price(arm: ArmPrice, cost: Price, *, scoring: float | None, tokens: float | None) -> StorePrice:
    assert arm.teacher is not None, "who reads a store has a teacher"
    (path,) = arm.stores
    return StorePrice(
        path=path,
        teacher=arm.teacher,
        tokens=tokens,
        flops=_product(scoring, tokens),
        bytes=_product(cost.store_bytes_per_token, tokens),
    )


def _tokens(store: StorePrice) -> float:
    return store.tokens if store.tokens is not None else float("inf")


def _vocab_size(arm: str, recipes: Mapping[str, Recipe], taught_by: Mapping[str, str], configs: Configs) -> int:
    """The student's, or its teacher's, whose vocabulary it takes over."""
    size = student_vocab_size(recipes[arm].student) or (configs.get(arm) or {}).get("vocab_size")
    if size is None and arm in taught_by:
        return _vocab_size(taught_by[arm], recipes, taught_by, configs)
    if size is None:
        key = recipes[arm].student.vocab_size_key
        raise SpecError(f"{arm}: {key} is not set and not known from a teacher's configuration here: set it")
    return int(size)


def _scoring_flops_per_token(recipe: Recipe, cost: Price, teacher: Recipe | None, *, vocab_size: int) -> float | None:
    """Forward FLOPs of the teacher for a token that it reads."""
    if teacher is None or recipe.teacher is None:
        return cost.teacher_flops_per_token
    context = min(recipe.teacher.context.window, recipe.data.sequence_length)
    return student_flops_per_token(teacher.student, vocab_size=vocab_size, context=context)


def _product(first: float | None, second: float | None) -> float | None:
    return first * second if first is not None and second is not None else None


def _sum(amounts: Iterable[float | None]) -> float | None:
    known = list(amounts)
    return None if None in known else float(sum(amount for amount in known if amount is not None))


def _least(*amounts: float | None) -> float | None:
    """The smallest of those that are known."""
    return min((amount for amount in amounts if amount is not None), default=None)
