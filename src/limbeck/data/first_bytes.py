"""How tokens begin: the bytes that tell a next byte's distribution, and white space, which ends what was written before.

Legend: V ids.
"""

import numpy as np

from limbeck.data.token_bytes import TokenBytes

END, NONE = 256, 257
"""What stands for the end of a document, and for tokens without text."""
OUTCOMES = 257
"""The bytes and the end."""
_SPACES = b" \t\n\v\f\r"


def first_bytes(tokens: TokenBytes) -> np.ndarray:
    """int64 [V]: the byte that each token begins with; `END` for the end token, `NONE` for others that stand for no text."""
    first_V = np.array([content[0] if content else NONE for content in tokens.content], dtype=np.int64)
    first_V[tokens.end_id] = END
    return first_V


def begins_anew(tokens: TokenBytes) -> np.ndarray:
    """bool [V]: the token begins with white space (of ASCII), or is the end."""
    return np.isin(first_bytes(tokens), [*_SPACES, END])
