"""Log-probs, masses, entropies and weights as whole numbers, and how far off they are then.

* `uint8` log-probs: step s of 255 stands for |log p| = (e^(s d) - 1) / 4 with d = ln(1 + 4 x 63) / 255 = 0.0217: fine where p
  is near 1, coarse where it is small. The error is at most e^(d/2) - 1 = 0.0109 times (1/4 + |log p|), in nats: 0.003 at p = 1,
  0.014 at p = 0.37, 0.09 at p = 3e-4. Log-probs below -63 (p < 5e-28) are held there.
* `float16` log-probs: |log p| to 11 significant bits, an error of at most 2^-11 of it (2^-25 below 2^-14); held at 65504.
* tail mass: ln(tail) as `uint8`, and a tail below e^-63 is none. What is read is 1 less the head's mass, held inside the step
  that was stored: head and tail sum to 1 as well as they can, and ln(tail) is off by at most e^d - 1 = 0.022 times
  (1/4 + |ln tail|).
* entropy: step s of 255 stands for H = (e^(s d) - 1) / 25 with d = ln(1 + 25 ln V) / 255 = 0.022, so that step 255 is ln V. The
  error is at most e^(d/2) - 1 = 0.011 times (1/25 + H): half of 0.001 nats at H = 0, where most of a teacher's positions are
  nearly certain and an error would be the same at all of them; 0.012 at H = 1, where errors of many positions average out.
* importance weights: ln w in steps of 1/64: an error of at most 0.8% of w; |ln w| <= 512.
"""

import math

import numpy as np

STEPS = 255
LOWEST = 63.0
"""Nats: the most negative log-prob of `uint8`."""
_CURVE = 4.0
_STEP = math.log1p(_CURVE * LOWEST) / STEPS
LOG_PROB_ERROR = math.expm1(_STEP / 2)
"""Of `uint8`: nats, per nat of 1/4 + |log p|."""
WEIGHT_STEP = 1 / 64
_MOST_LN_WEIGHT = 512.0
_GREATEST_FLOAT16 = 65504.0
_ENTROPY_CURVE = 25.0
_LOG_PROBS = (-np.expm1(np.arange(STEPS + 1) * _STEP) / _CURVE).astype(np.float32)
_TAIL_EDGES = np.exp(-np.expm1((np.arange(STEPS + 2) - 0.5) * _STEP) / _CURVE)  # step s is between the s + 1st and the s-th
_TAIL_EDGES[0] = 1.0


def log_probs_to_steps(log_probs: np.ndarray, *, values: str) -> np.ndarray:
    """How far below 0 each log-prob is, int64; -inf is held at the lowest."""
    below = np.maximum(-log_probs.astype(np.float64), 0.0)
    if values == "float16":
        return np.minimum(below, _GREATEST_FLOAT16).astype(np.float16).view(np.uint16).astype(np.int64)
    return np.round(np.log1p(_CURVE * np.minimum(below, LOWEST)) / _STEP).astype(np.int64)


def steps_to_log_probs(steps: np.ndarray, *, values: str) -> np.ndarray:
    """float32."""
    if values == "float16":
        return -steps.astype(np.uint16).view(np.float16).astype(np.float32)
    return _LOG_PROBS[steps]


def tails_to_steps(tails: np.ndarray) -> np.ndarray:
    """int64."""
    with np.errstate(divide="ignore"):
        return log_probs_to_steps(np.log(tails.astype(np.float64)), values="uint8")


def steps_to_tails(steps: np.ndarray, *, head: np.ndarray) -> np.ndarray:
    """float32; `head` is the mass of each row's head."""
    tails = np.clip(1 - head, _TAIL_EDGES[steps + 1], _TAIL_EDGES[steps])
    return np.where(steps < STEPS, tails, 0).astype(np.float32)


def entropies_to_steps(entropies: np.ndarray, *, vocab_size: int) -> np.ndarray:
    """int64; what is beyond ln V is held there."""
    held = np.clip(entropies.astype(np.float64), 0, math.log(vocab_size))
    return np.round(np.log1p(_ENTROPY_CURVE * held) / _entropy_step(vocab_size)).astype(np.int64)


def steps_to_entropies(steps: np.ndarray, *, vocab_size: int) -> np.ndarray:
    """float32."""
    return (np.expm1(steps * _entropy_step(vocab_size)) / _ENTROPY_CURVE).astype(np.float32)


def _entropy_step(vocab_size: int) -> float:
    return math.log1p(_ENTROPY_CURVE * math.log(vocab_size)) / STEPS


def weights_to_steps(weights: np.ndarray) -> np.ndarray:
    """Steps of ln w, int64: 0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    with np.errstate(divide="ignore"):
        ln_w = np.clip(np.log(weights.astype(np.float64)), -_MOST_LN_WEIGHT, _MOST_LN_WEIGHT)
    steps = np.round(ln_w / WEIGHT_STEP).astype(np.int64)
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def steps_to_weights(steps: np.ndarray) -> np.ndarray:
    """float32; what is beyond float32 is infinite or 0."""
    signed = np.where(steps % 2 == 1, -(steps + 1) // 2, steps // 2)
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(signed * WEIGHT_STEP).astype(np.float32)
