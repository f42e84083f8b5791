"""Rows as bytes: an entropy coder whose model is fitted to each shard, read and written by numpy in many lanes at once.

    types.*Rows  --rows-->  whole numbers (layout, values)  --write-->  lanes of bits (lanes, tables), by a model (fit, model)
    types.*Rows  <--rows--  whole numbers                   <--read---  any pieces of any documents

Lossless for ids, counts and what the other numbers were rounded to; `values.py` states how far that rounding goes.

Bytes of a token, 50 draws of SmolLM2-135M-Instruct on State of the Union addresses, 19.3 distinct ids (`benchmarks/codec.py`):
12.1 is the floor for who has the teacher itself (-log2 of the draws' probability), 20.5 plus counts that for ids coded one by
one at their frequency. Here ids take 17.6 and counts 3.6, 1.10 of them per id; with the check of the token, the entropy,
tables, lanes and the index it is 24.4, 1.27 per id.
"""

from limbeck.signals.codec.errors import DamagedRowsError
from limbeck.signals.codec.read import Decoded, Piece, decode, row_checks
from limbeck.signals.codec.write import Encoded, encode

__all__ = ["DamagedRowsError", "Decoded", "Encoded", "Piece", "decode", "encode", "row_checks"]
