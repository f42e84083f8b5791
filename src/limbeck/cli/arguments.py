"""Arguments that several verbs share."""

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name (`limbeck list`) or a YAML file.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key.path=value, as many as you like, e.g. objective.kind=ce", metavar="[KEY=VALUE]..."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
