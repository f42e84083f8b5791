"""Arguments that several verbs share."""

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name (`limbeck list`) or a YAML file.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key.path=value, as many as you like, e.g. objective.kind=ce", metavar="[KEY=VALUE]..."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
DeviceName = Annotated[str, typer.Option(help="For the hours: h100, a100, rtx4090, … or a number of FLOP/s.")]
DeviceCount = Annotated[int, typer.Option(min=1, help="How many of them.")]
Utilisation = Annotated[float, typer.Option(help="The share of the device's bfloat16 peak that is reached.")]
DEFAULT_DEVICE = "h100"
DEFAULT_UTILISATION = 0.4
