"""The fixed-aspect-ratio family of arXiv 2502.08606 (appendix H, Table 13): a model for every number of parameters.

Every member is a `limbeck.spec.ladder_student.LadderStudent`: 128 channels wide for each layer it has, with 16 heads of d / 16
channels, as many keys as queries, a SwiGLU of about 8/3 d, and QK-norm; context 4,096, vocabulary 32,768, tied embeddings.
Sizes with whole layers are named as the paper names them (`ladder-198m`); between them a closed form (eqs. 60-69) gives FLOPs
for any N.

N is parameters outside the embeddings, d the hidden size. All FLOPs are of a forward pass, per token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.plan.student_layout import touched
from limbeck.spec.ladder_student import LadderStudent

ASPECT_RATIO = 128
HEADS = 16
CONTEXT = 4096
VOCABULARY = 32_768
OMEGA = 12.0
"""Parameters of a layer over d**2: 2 + 2/g for attention with g = 1, and 3 matrices of 8/3 d."""
LAYERS = range(8, 41)
"""Of the 33 members that Table 13 lists."""


@dataclass(frozen=True)
class Member:
    """One size of the family, with whole layers."""

    num_layers: int
    num_heads: int = HEADS

    @property
    def student(self) -> LadderStudent:
        """The member as a recipe has it."""
        return LadderStudent(num_layers=self.num_layers, num_heads=self.num_heads, vocab_size=VOCABULARY)

    @property
    def hidden_size(self) -> int:
        """d."""
        return ASPECT_RATIO * self.num_layers

    @property
    def head_dim(self) -> int:
        """Of queries, keys and values."""
        return self.hidden_size // self.num_heads

    @property
    def intermediate_size(self) -> int:
        """8/3 d, rounded up to a multiple of 128; as the student has it, the paper's row of 10B included."""
        return self.student.intermediate_size

    @property
    def params(self) -> int:
        """N: everything outside the embedding, norms included."""
        return touched(self.student.layout)

    @property
    def total_params(self) -> int:
        """With the one tied embedding."""
        return self.params + VOCABULARY * self.hidden_size

    @property
    def name(self) -> str:
        """`ladder-` and N to three digits, as in Table 13."""
        return f"ladder-{short(self.params)}".lower()

    @property
    def flops_per_token(self) -> float:
        """C_approx of eqs. 57-59: 2 N + 2 context layers d + 2 V d."""
        d = self.hidden_size
        return 2 * self.params + 2 * CONTEXT * self.num_layers * d + 2 * VOCABULARY * d

    @property
    def exact_flops_per_token(self) -> float:
        """With softmax (2.5 a head and visible key) and 4 d a layer, which reproduces the paper's column C."""
        return self.flops_per_token + self.num_layers * (2.5 * self.num_heads * CONTEXT + 4 * self.hidden_size)


FAMILY = tuple(Member(layers) for layers in LAYERS)


def flops_per_token(params: ArrayLike, *, context: float = CONTEXT, vocabulary: float = VOCABULARY) -> NDArray[np.float64]:
    """F(N) of eqs. 60-69: 2 N (1 + s1 context / N**(1/3) + s2 V / N**(2/3)); within 0.32 % of Table 13."""
    params = np.asarray(params, dtype=np.float64)
    s1 = OMEGA ** (-2 / 3) * ASPECT_RATIO ** (-1 / 3)
    s2 = (ASPECT_RATIO / OMEGA) ** (1 / 3)
    return 2 * params * (1 + s1 * context / np.cbrt(params) + s2 * vocabulary / np.cbrt(params) ** 2)


def nearest_member(params: float) -> Member:
    """The member of any number of layers, from one up, whose size is nearest in ratio; sizes grow about as 12 d^2 layers."""
    about = round(np.cbrt(params / (OMEGA * ASPECT_RATIO**2)))
    around = [Member(layers) for layers in range(max(1, about - 2), about + 3)]
    return min(around, key=lambda member: abs(np.log(member.params / params)))


def short(amount: float) -> str:
    """Three digits and a letter: 197,900,000 is '198M'; a power of ten beyond a quadrillion."""
    if amount >= 1e15:
        return f"{amount:.3g}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= 0.9995 * size:
            return f"{amount / size:.3g}{letter}"
    return f"{amount:.3g}"
