"""`limbeck VERB …`: the table of verbs, and the one place where errors become a line and an exit code."""

import sys

import typer

from limbeck.cli import cache, evaluate, listing, quickstart, report, show, train
from limbeck.errors import LimbeckError

app = typer.Typer(
    help="A laboratory for distilling language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(cache.app, name="cache", help="Write, describe and check signal stores.")
app.command("train")(train.train_recipe)
app.command("eval")(evaluate.evaluate_model)
app.command("report")(report.report)
app.command("show")(show.show)
app.command("list")(listing.list_names)

INTERRUPTED = 130


def main() -> None:
    """Run the command line. A mistake that the user can mend is one line on stderr; exit code 2 where a spec is wrong."""
    try:
        app()
    except LimbeckError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("limbeck: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
