"""What training a student takes of memory, roughly: enough to say how many fit side by side.

Parameters in float32 with gradient and two moments (16 bytes each), what blocks keep for the backward pass (about 40 bytes for
each channel of each block of each token, with fused attention: Korthikanti et al., arXiv 2205.05198, section 4.1, have 34
without attention's matrix), a chunk of logits, and what an interpreter with torch holds before anything is loaded. An estimate,
not a bound: a live teacher is not in it.
"""

from limbeck.plan.accounting import student_parameters
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe

BYTES_PER_PARAMETER = 16
BYTES_PER_CHANNEL = 40
PROCESS_BYTES = 0.8e9
CHUNK_LOGITS = 2**25
"""Logits that are held at once (`limbeck.objectives.chunks`), in float32, with their gradients."""


def training_memory_bytes(recipe: Recipe, *, vocab_size: int, processes: int = 1) -> float:
    """Of one process that trains a recipe alone, or as one of several."""
    total = student_parameters(recipe.student, vocab_size=vocab_size).total
    sequences = min(recipe.batch.micro_sequences or recipe.batch.sequences, -(-recipe.batch.sequences // processes))
    tokens = sequences * recipe.data.sequence_length
    logits = 8.0 * min(CHUNK_LOGITS, tokens * vocab_size)
    return PROCESS_BYTES + BYTES_PER_PARAMETER * total + tokens * _kept_per_token(recipe, total=total) + logits


def _kept_per_token(recipe: Recipe, *, total: int) -> float:
    if isinstance(recipe.student, HuggingFaceStudent):
        return 2.0 * total**0.5 * BYTES_PER_CHANNEL  # blocks of 12 squares of their width: as if there were two hundred
    layout = recipe.student.layout
    blocks = 2 if recipe.activation_checkpointing else len(layout.layers)
    return float(blocks * layout.hidden_size * BYTES_PER_CHANNEL)
