"""`limbeck VERB …`: the table of verbs, and the one place where errors become a line and an exit code."""

import errno
import sys

import typer

from limbeck.cli import (
    artifact,
    cache,
    evaluate,
    export,
    fit,
    lab,
    listing,
    plan,
    prune,
    quantise,
    quickstart,
    report,
    show,
    study,
    teach_text,
    train,
    transplant,
)
from limbeck.errors import LimbeckError

app = typer.Typer(
    help="A laboratory for distilling language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(cache.app, name="cache", help="Signal stores: write, describe, check, compare, extend, merge.")
app.command("train")(train.train_recipe)
app.command("teach-text")(teach_text.teach_text)
app.command("eval")(evaluate.evaluate_model)
app.command("prune")(prune.prune)
app.command("transplant")(transplant.transplant)
app.command("quantise")(quantise.quantise)
app.command("export")(export.export)
app.add_typer(artifact.app, name="artifact", help="A student in one small file: write it, and measure what rounding cost.")
app.command("report")(report.report)
app.command("show")(show.show)
app.command("fit")(fit.fit)
app.add_typer(plan.app, name="plan", help="Should I distil, from which teacher, for how long?")
app.add_typer(lab.app, name="lab", help="Where a better teacher makes a worse student: two small laboratories.")
app.add_typer(study.app, name="study", help="Run studies: several arms of one recipe, some of which may teach others.")
app.command("list")(listing.list_names)

INTERRUPTED = 130
FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOENT,
}


def main() -> None:
    """Run the command line. A mistake that the user can mend is one line on stderr; exit code 2 where a spec is wrong."""
    try:
        app()
    except LimbeckError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL | NOT_WRITABLE:
            raise
        remedy = (
            "free some space, the same command continues" if error.errno in FULL else "name a path that can be read or written"
        )
        _complain(f"{error.filename or 'a file'}: {error.strerror}; {remedy}")
        sys.exit(LimbeckError.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            _complain("interrupted; the same command continues where it stopped")
        raise


def _complain(message: str) -> None:
    """One line, also where a library's message within it has several."""
    print(f"limbeck: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
