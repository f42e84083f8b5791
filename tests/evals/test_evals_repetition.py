"""Repetition against closed forms, a brute-force reference and planted loops."""

import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.evals.repetition import (
    Loop,
    compression_ratio,
    distinct,
    longest_loop,
    rep_w,
    seq_rep,
    terminal_loop,
)

ids = st.lists(st.integers(0, 3), max_size=120)


def plain_loop(x: list[int]) -> Loop | None:
    """The definition, position by position."""
    for period in range(1, 257):
        run = 0
        while len(x) - 1 - run - period >= 0 and x[len(x) - 1 - run] == x[len(x) - 1 - run - period]:
            run += 1
        if run >= max(3 * period, 24):
            return Loop(period, len(x) - run - period, len(x))
    return None


def plain_longest(x: list[int]) -> Loop | None:
    """Every period, every place."""
    best = None
    for period in range(1, 257):
        at = period
        while at < len(x):
            run = 0
            while at + run < len(x) and x[at + run] == x[at + run - period]:
                run += 1
            if run >= max(3 * period, 24) and (best is None or run + period > best.stop - best.start):
                best = Loop(period, at - period, at + run)
            at += run + 1
    return best


def numbered_list() -> list[int]:
    """'1. a b c', '2. a b c', ...: all but the numbers repeat."""
    return [token for item in range(60) for token in (1000 + item, 1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("period", "start", "length"), [(1, 0, 25), (1, 40, 300), (7, 13, 200), (64, 100, 256), (256, 5, 1024)]
)
def test_a_planted_loop_is_recovered(period, start, length):
    drawn = random.Random(period)
    before = [1000 + drawn.randrange(10**6) for _ in range(start)]
    grammar = [drawn.randrange(10**6, 2 * 10**6) for _ in range(period)]
    tokens = before + (grammar * (length // period + 1))[:length]
    found = terminal_loop(tokens)
    assert found == Loop(period, start, start + length)
    assert found.run == length - period
    assert found.repeats == length / period
    assert longest_loop(tokens) == found


@pytest.mark.parametrize(("period", "run", "is_loop"), [(1, 24, True), (1, 23, False), (10, 30, True), (10, 29, False)])
def test_a_loop_needs_three_periods_and_24_tokens(period, run, is_loop):
    tokens = [99, *(list(range(period)) * 40)[: period + run]]
    assert (terminal_loop(tokens) is not None) == is_loop


def test_periods_beyond_256_are_no_loops():
    assert terminal_loop(list(range(257)) * 5) is None
    assert terminal_loop(list(range(256)) * 4) == Loop(256, 0, 1024)


def test_lists_and_text_are_no_loops():
    drawn = random.Random(0)
    text = [drawn.randrange(500) for _ in range(4000)]
    assert terminal_loop(numbered_list()) is None
    assert longest_loop(numbered_list()) is None
    assert terminal_loop(text) is None
    assert longest_loop(text) is None


def test_a_loop_that_was_left_is_found_anywhere_but_not_at_the_end():
    tokens = [*range(100, 110), *([7, 8] * 20), *range(200, 230)]
    assert terminal_loop(tokens) is None
    assert longest_loop(tokens) == Loop(2, 10, 50)


def test_of_two_loops_the_longer_is_found():
    tokens = [*([1, 2] * 15), *range(100, 110), *([3] * 31)]
    assert longest_loop(tokens) == Loop(1, 40, 71)
    assert longest_loop([*([3] * 31), *range(100, 110), *([1, 2] * 15)]) == Loop(1, 0, 31)
    assert longest_loop([*([3] * 30), *range(100, 110), *([1, 2] * 15), 1]) == Loop(2, 40, 71)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9), st.integers(0, 60), st.lists(st.integers(0, 3), max_size=4))
@settings(deadline=None, max_examples=150)
def test_loops_are_those_of_the_plain_definition(before, period, length, after):
    tokens = before + [index % period % 4 for index in range(length)] + after
    assert terminal_loop(tokens) == plain_loop(tokens)
    assert longest_loop(tokens) == plain_longest(tokens)


@pytest.mark.parametrize("length", [4, 5, 17, 200])
def test_seq_rep_of_one_token_over_and_over(length):
    assert seq_rep([5] * length, n=4) == pytest.approx(1 - 1 / (length - 3))
    assert seq_rep(list(range(length)), n=4) == 0


def test_what_is_too_short_repeats_nothing():
    assert seq_rep([1, 1, 1], n=4) == 0
    assert distinct([[1], []], n=2) == 1
    assert rep_w([]) == 0
    assert compression_ratio("") == 0
    assert terminal_loop([]) is None
    assert longest_loop([1]) is None


@given(ids, st.integers(1, 4))
def test_seq_rep_is_its_definition(tokens, n):
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    assert seq_rep(tokens, n=n) == pytest.approx(1 - len(set(grams)) / len(grams) if grams else 0)


@given(st.lists(ids, min_size=1, max_size=4), st.integers(1, 4))
def test_distinct_pools_samples(samples, n):
    grams = [tuple(each[start : start + n]) for each in samples for start in range(len(each) - n + 1)]
    assert distinct(samples, n=n) == pytest.approx(len(set(grams)) / len(grams) if grams else 1)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 20))
def test_rep_w_is_its_definition(tokens, w):
    hits = [token in tokens[max(0, at - w) : at] for at, token in enumerate(tokens)]
    assert rep_w(tokens, w=w) == pytest.approx(float(np.mean(hits)) if hits else 0)


def test_compression_is_of_the_worst_window():
    drawn = random.Random(1)
    noise = "".join(drawn.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(3000))
    loop = "I don't know. " * 147  # 2,058 bytes: the last 2 KB are a window of their own
    text = noise + loop
    last = text.encode()[-2048:]
    assert compression_ratio(text) == pytest.approx(2048 / len(zlib.compress(last, 9)))
    assert compression_ratio(text) > 10
    assert compression_ratio(noise) < 2
