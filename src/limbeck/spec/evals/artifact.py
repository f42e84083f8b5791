"""What a student loses when it becomes one small file, and how small that is."""

from typing import Literal

from limbeck.spec.artifact import ArtifactFormat


class Artifact(ArtifactFormat):
    """Students of Limbeck's own kinds alone."""

    kind: Literal["artifact"] = "artifact"
