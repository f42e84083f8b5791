"""Objectives as YAML: what can be said, what is refused in one line, what weights are at a moment of the run."""

from typing import Any

import pytest
import yaml

from limbeck.errors import SpecError
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.spec.base import Spec, parse
from limbeck.spec.objective import (
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    Objective,
    check_signal,
    needs_hidden_states,
    needs_teacher,
    terms,
)
from limbeck.spec.signal import Signal
from limbeck.spec.weight import Points, WithLearningRate

WSD_ALPHA = """
objective:
  kind: mixture
  z_loss_weight: 1.0e-4
  terms:
    - {weight: {kind: with_lr, at_peak: 0.9, at_zero: 0.0}, term: {kind: forward_kl}}
    - {weight: {kind: with_lr, at_peak: 0.1, at_zero: 1.0}, term: {kind: ce}}
signal: {kind: topk, k: 8}
"""
ROUTED = """
objective:
  kind: mixture
  terms:
    - weight: {kind: points, at: [[0, 0], [0.1, 0.9], [0.9, 0.9], [1, 0]]}
      entropy: {from_nats: 0.5}
      term: {kind: jsd, beta: 0.1}
    - {weight: 1, entropy: {below_nats: 0.5}, term: {kind: ce}}
signal: {kind: dense}
"""


class Asked(Spec):
    """The two parts of a recipe that belong together."""

    objective: Objective
    signal: Signal | None = None


def asked(text: str) -> Asked:
    return parse(Asked, yaml.safe_load(text), source="test.yaml")


def one_line(objective: str, signal: str = "{kind: dense}") -> str:
    with pytest.raises(SpecError) as caught:
        asked(f"{{objective: {objective}, signal: {signal}}}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal(objective: str, signal: str | None) -> str:
    given = asked(f"{{objective: {objective}, signal: {signal or 'null'}}}")
    with pytest.raises(ValueError) as caught:
        check_signal(given.objective, given.signal)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wsd_alpha_and_its_complement_add_up_to_one() -> None:
    given = asked(WSD_ALPHA)
    check_signal(given.objective, given.signal)
    for lr_factor, expected in ((1.0, [0.9, 0.1]), (0.25, [0.225, 0.775]), (0.0, [0.0, 1.0])):
        weights = [weight_at(each.weight, Moment(lr_factor=lr_factor)) for each in terms(given.objective)]
        assert weights == pytest.approx(expected)


def test_points_are_joined_by_lines_and_held_outside() -> None:
    given = asked(ROUTED)
    check_signal(given.objective, given.signal)
    weight = terms(given.objective)[0].weight
    found = {fraction: weight_at(weight, Moment(fraction=fraction)) for fraction in (0, 0.05, 0.1, 0.5, 0.9, 0.95, 1.0)}
    assert list(found.values()) == pytest.approx([0, 0.45, 0.9, 0.9, 0.9, 0.45, 0])
    late = Points(at=((0.2, 0.5), (0.4, 1.0)))
    assert [weight_at(late, Moment(fraction=fraction)) for fraction in (0.1, 0.2, 0.3, 1.0)] == pytest.approx(
        [0.5, 0.5, 0.75, 1.0]
    )


def test_a_resolved_spec_is_read_back_as_the_same() -> None:
    for text in (WSD_ALPHA, ROUTED, "objective: {kind: ce}"):
        given = asked(text)
        again = parse(Asked, yaml.safe_load(yaml.safe_dump(given.model_dump(mode="json"))), source="again")
        assert again == given


@pytest.mark.parametrize(
    ("objective", "complaint"),
    [
        ("{kind: jsd, beta: 1}", "objective.beta=1"),
        ("{kind: jsd, beta: 0.5, alpha: 0.5}", "objective.alpha is not a key"),
        ("{kind: skew_kl, alpha: 0}", "objective.alpha=0"),
        ("{kind: reverse_kl, form: tial}", "objective.form='tial'"),
        ("{kind: reverse_kl, form: renormalised, label_share: 0.1}", "label_share needs form=tail"),
        ("{kind: decoupled, mass_weight: 0, conditional_weight: 0}", "mass_weight and conditional_weight are both 0"),
        ("{kind: custom, function: loss}", "objective.function='loss'"),
        ("{kind: jds}", "objective.kind=jds is not a kind; did you mean 'jsd'?"),
        ("{kind: mixture, terms: [{weight: 0, term: {kind: ce}}]}", "objective.terms.0.weight.value=0"),
        ("{kind: mixture, terms: [{weight: heavy, term: {kind: ce}}]}", "objective.terms.0.weight.value='heavy'"),
        ("{kind: mixture, terms: [{weight: {kind: point}, term: {kind: ce}}]}", "did you mean 'points'?"),
        (
            "{kind: mixture, terms: [{weight: {kind: points, at: [[0.5, 1], [0.2, 1]]}, term: {kind: ce}}]}",
            "rising fractions of the budget between 0 and 1",
        ),
        ("{kind: mixture, terms: [{weight: {kind: points, at: [[0, 1], [2, 1]]}, term: {kind: ce}}]}", "rising fractions"),
        ("{kind: mixture, terms: [{weight: {kind: points, at: [[0, 0], [1, 0]]}, term: {kind: ce}}]}", "and one above"),
        ("{kind: mixture, terms: [{weight: {kind: points, at: [[0, 1], [1, -1]]}, term: {kind: ce}}]}", "at least 0"),
        (
            "{kind: mixture, terms: [{weight: {kind: with_lr, at_peak: 0}, term: {kind: ce}}]}",
            "at_peak and at_zero are both 0: leave the term out",
        ),
        ("{kind: mixture, terms: [{weight: {kind: balanced}, term: {kind: forward_kl}}]}", "is for the term hidden alone"),
        ("{kind: mixture, terms: [{weight: {kind: balanced}, term: {kind: hidden}}]}", "has nothing to balance against"),
        ("{kind: mixture, terms: [{weight: 1, entropy: {}, term: {kind: ce}}]}", "set from_nats, below_nats or both"),
        (
            "{kind: mixture, terms: [{weight: 1, entropy: {from_nats: 2, below_nats: 1}, term: {kind: ce}}]}",
            "from_nats=2.0 is not below below_nats=1.0",
        ),
        ("{kind: mixture, terms: [{weight: 1, entropy: {from_nats: 2}, term: {kind: hidden}}]}", "remove its entropy range"),
        ("{kind: mixture, terms: [{weight: 1, term: {kind: ce, z_loss_weight: 1}}]}", "z_loss_weight belongs to the mixture"),
    ],
)
def test_nonsense_is_one_line_that_names_the_key(objective: str, complaint: str) -> None:
    assert complaint in one_line(objective)


@pytest.mark.parametrize(
    ("objective", "signal", "complaint"),
    [
        ("{kind: reverse_kl}", "{kind: sampled}", "reverse_kl needs topk or topp or hybrid or dense"),
        ("{kind: jsd}", "{kind: hard}", "jsd needs topk or topp or hybrid or dense"),
        ("{kind: skew_kl}", "{kind: sampled}", "skew_kl needs"),
        (
            "{kind: reverse_kl, form: stop_gradient}",
            "{kind: dense}",
            "reverse_kl with form=stop_gradient needs topk or topp or hybrid",
        ),
        ("{kind: forward_kl}", "{kind: hard}", "signal.kind=hard is no distribution: forward_kl needs topk"),
        ("{kind: forward_kl, tail: text}", "{kind: sampled}", "signal.kind=sampled leaves no tail"),
        ("{kind: forward_kl, tail: renormalised}", "{kind: hybrid}", "forward_kl with tail=renormalised needs topk or topp"),
        ("{kind: decoupled}", "{kind: dense}", "decoupled needs topk or topp or hybrid"),
        ("{kind: decoupled}", "{kind: topk, temperature: 2}", "set signal.temperature=1"),
        ("{kind: hard}", "{kind: sampled}", "set signal.keep_top1=true"),
        ("{kind: hard}", "{kind: dense}", "signal.kind=dense has no top-1: hard needs hard or topk or topp or hybrid"),
        ("{kind: hidden}", "{kind: topk}", "signal.kind=topk has no hidden states: hidden needs dense"),
        ("{kind: forward_kl}", None, "reads a teacher's signal: set signal.kind"),
        ("{kind: mixture, terms: [{weight: 1, entropy: {below_nats: 1}, term: {kind: ce}}]}", None, "set signal.kind"),
        (
            "{kind: mixture, terms: [{weight: 1, entropy: {below_nats: 1}, term: {kind: ce}}]}",
            "{kind: hard}",
            "keeps no entropy",
        ),
    ],
)
def test_a_signal_that_does_not_hold_what_is_read_is_refused(objective: str, signal: str | None, complaint: str) -> None:
    assert complaint in refusal(objective, signal)


@pytest.mark.parametrize(
    ("objective", "signal"),
    [
        ("{kind: hard}", "{kind: sampled, keep_top1: true}"),
        ("{kind: ce}", "null"),
        ("{kind: decoupled}", "{kind: hybrid}"),
        ("{kind: decoupled, mass_weight: 0}", "{kind: topk}"),
        ("{kind: decoupled, conditional_weight: 0}", "{kind: topk}"),
    ],
)
def test_what_a_signal_holds_is_allowed(objective: str, signal: str) -> None:
    given = asked(f"{{objective: {objective}, signal: {signal}}}")
    check_signal(given.objective, given.signal)


def test_what_needs_a_teacher() -> None:
    routed: dict[str, Any] = {"weight": 1, "entropy": {"below_nats": 1.0}, "term": {"kind": "ce"}}
    values = {"objective": {"kind": "mixture", "terms": [routed]}}
    assert needs_teacher(parse(Asked, values, source="test").objective)
    assert not needs_teacher(CrossEntropy())
    assert needs_teacher(JensenShannon())
    assert not needs_hidden_states(ForwardKL())
    assert needs_hidden_states(parse(Asked, {"objective": {"kind": "hidden"}}, source="test").objective)


def test_a_weight_may_follow_the_learning_rate_up_or_down() -> None:
    assert weight_at(WithLearningRate(at_peak=0.9), Moment(lr_factor=0.5)) == 0.45
    assert weight_at(WithLearningRate(at_peak=0.2, at_zero=1.0), Moment(lr_factor=0.5)) == pytest.approx(0.6)
