"""python -m results.report: a search as tables on the terminal, and as pictures in its folder."""

import sys

import pandas as pd
from upath import UPath

from results.history import trials_frame
from results.options import add_stores, check_stores
from results.record import SearchRecord, load_record, run_folder
from results.report.tables import print_tables, write_tables
from results.terminal import plain_console
from trainable.errors import Parser, UserError, typed


def main(argv: list[str] | None = None) -> int:
    """Print a search's tables and write its pictures; return the exit code."""
    parser = Parser(prog=typed("results.report"), description=main.__doc__)
    parser.add_argument("--name", required=True, help="of the search")
    add_stores(parser.add_argument)
    args = parser.parse_args(argv)
    console = plain_console()
    try:
        check_stores(args.storage, args.study, args.tracking_uri)
        folder = run_folder(args.name, args.storage)
        record = load_record(folder).reached(args.study, args.tracking_uri)
        trials = trials_frame(folder, record)
        print_tables(console, trials, record)
        for file in write_report(folder, trials, record):
            console.print(f"wrote {file}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(folder: UPath, trials: pd.DataFrame, record: SearchRecord) -> list[UPath]:
    """Write the tables and the pictures of a search; return the files."""
    # Imported late: this command prints tables first, and they should not wait for matplotlib.
    from results.report.pictures import write_pictures

    return write_tables(folder, trials, record) + write_pictures(folder, trials, record)


if __name__ == "__main__":
    sys.exit(main())
