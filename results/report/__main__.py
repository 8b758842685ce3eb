"""python -m results.report: a search as tables on the terminal, and as a page in its folder."""

import sys

import optuna
from upath import UPath

from results.options import add_stores, check_stores
from results.record import load_record, run_folder
from results.report.material import Search
from results.report.tables import print_tables, write_tables
from results.terminal import plain_console
from trainable.errors import Parser, UserError, typed


def main(argv: list[str] | None = None) -> int:
    """Print a search's tables and write its page, others beside it."""
    parser = Parser(prog=typed("results.report"), description=main.__doc__)
    parser.add_argument(
        "--name", required=True, action="append", metavar="NAME",
        help="of the search; given again, of another one to be shown beside it",
    )  # fmt: skip
    add_stores(parser.add_argument)
    args = parser.parse_args(argv)
    console = plain_console()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        check_stores(args.storage, args.study, args.tracking_uri)
        searches = []
        for name in dict.fromkeys(args.name):
            folder = run_folder(name, args.storage)
            record = load_record(folder).reached(args.study, args.tracking_uri)
            searches.append(Search(folder, record))
        for search in searches:
            search.parts.use()
            print_tables(console, search.everything, search.record)
        console.print("drawing the report")
        files = write_report(searches)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = error.strerror or error
        print(f"error: {searches[0].folder}: cannot be written: {reason}", file=sys.stderr)
        return 1
    page = searches[0].folder / "report" / "index.html"
    tables = [file for file in files if file.parent != page.parent]
    for file in (*tables, page):
        console.print(f"wrote {file}")
    console.print(
        f"beside it {len(files) - len(tables) - 1} files: PNG, SVG and CSV of all it shows"
    )
    from results.report.sent import send  # as late as what draws, for the same reason

    console.print(send(searches[0].record, files[len(tables) :]))
    return 0


def write_report(searches: list[Search]) -> list[UPath]:
    """Write the tables and the page of the first search, the others beside it; return the files."""
    # Imported late: this command prints tables first, and they should not wait for matplotlib.
    from results.report.page import write_page

    first = searches[0]
    first.parts.use()
    return write_tables(first.folder, first.everything, first.record) + write_page(searches)


if __name__ == "__main__":
    sys.exit(main())
