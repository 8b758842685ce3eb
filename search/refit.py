"""python -m search.refit: the best configuration, every class, as a registered model."""

import argparse
import shlex
import sys
from functools import partial

from upath import UPath

from results.mlflow_store import TrackingError, default_uri
from results.options import add_experiment, add_stores, check_stores
from results.record import SearchRecord, load_record, run_folder
from results.terminal import plain_console
from search.champion import CHAMPION
from search.cluster.options import add_place, share_of
from search.interrupts import terminable
from search.registration import Registration
from search.retrain import Choice, Place, choose, here, refit_data, retrain, say_promise
from trainable.data.dataset import Data
from trainable.errors import ConfigError, Parser, TrialError, UserError, typed
from trainable.interrupted import INTERRUPTED
from trainable.memory import keep_freed_memory
from trainable.urls import public

ENSEMBLE_MAX = 100


def main(argv: list[str] | None = None) -> int:
    """Retrain a search's best configuration on every subclass and register it.

    Where configurations ran with several seeds, the best is the best mean.
    """
    parser = Parser(prog=typed("search.refit"), description=main.__doc__)
    parser.add_argument("--name", required=True, help="of the search")
    add_stores(parser.add_argument)
    add_experiment(parser.add_argument)
    parser.add_argument("--trial", type=int, metavar="N", help="its number (default: the best)")
    parser.add_argument(
        "--ensemble", type=int, default=1, metavar="N",
        help="train N models from N seeds, which answer by their mean logits as one (default: 1)",
    )  # fmt: skip
    add_place(parser.add_argument_group("where it trains").add_argument, has_pilot=False)
    args = parser.parse_args(argv)
    try:
        with terminable():
            return _refit(args)
    except KeyboardInterrupt:
        print("interrupted: repeat the command to go on", file=sys.stderr)
        return INTERRUPTED


def _refit(args: argparse.Namespace) -> int:
    keep_freed_memory()
    console = plain_console()
    try:
        _check(args)
        folder = run_folder(args.name, args.storage)
        record = load_record(folder)
        record = record.reached(args.study, args.tracking_uri, args.experiment)
        choice = choose(folder, record, args.trial, console.print)
        registration = Registration(record, is_new=args.tracking_uri is not None)
        data = refit_data(record, console.print)
        registration.prepare()
        target = folder / "refit" / f"{choice.trial:05d}"
        retrain(
            choice, record, data, target, console.print,
            ensemble=args.ensemble, where=_place(args, folder, record),
        )  # fmt: skip
        say_promise(choice, record, target, console.print)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrialError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    registered = _register(registration, choice, target, data)
    if registered is None:
        return 1
    version, champion = registered
    console.print(
        f"wrote {target}\nregistered models:/{record.name}/{version}\n{champion}\n"
        f"{_next(record, version)}"
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check what is typed, and read the share of a GPU."""
    if not 1 <= args.ensemble <= ENSEMBLE_MAX:
        raise ConfigError(f"`1 <= --ensemble <= {ENSEMBLE_MAX}` must hold, but got {args.ensemble}")
    check_stores(args.storage, args.study, args.tracking_uri)
    args.gpus_per_trial = share_of(args, has_pilot=False)
    if args.address is None and (args.cpus_per_trial, args.gpus_per_trial) != (None, None):
        raise ConfigError(
            "--cpus-per-trial and --gpus-per-trial need --address: without it a refit trains in "
            "this process, with all that the machine has"
        )
    if args.address is not None:
        from search.cluster.joined import check_address  # late: it imports Ray

        check_address(args.address)


def _place(args: argparse.Namespace, folder: UPath, record: SearchRecord) -> Place:
    """Return what does the work: this process, or one of a cluster."""
    if args.address is None:
        return here
    from search.cluster.task import on_cluster  # late: it imports Ray

    return partial(
        on_cluster, folder=folder, record=record, address=args.address,
        cpus_per_trial=args.cpus_per_trial, gpus_per_trial=args.gpus_per_trial,
    )  # fmt: skip


def _register(
    registration: Registration, choice: Choice, target: UPath, data: Data
) -> tuple[str, str] | None:
    """Return the model's version, and a line about the champion; None, and why, if it failed."""
    version = ""
    try:
        version = registration.register(choice.trial, choice.config, target, data)
        return version, registration.crown(version)
    except TrackingError as error:
        print(
            f"failed: {target} is registered as version {version}, but which one is the {CHAMPION} "
            f"is not said: {error}; the same command registers it again"
            if version
            else f"failed: {target} is written and predicts, but is not registered: {error}; the "
            "same command then registers it without training again",
            file=sys.stderr,
        )
        return None


def _next(record: SearchRecord, version: str) -> str:
    """Return what to do with a registered version."""
    uri = shlex.quote(public(record.tracking_uri))
    is_default = record.tracking_uri == default_uri()
    store = "" if is_default else f" --tracking-uri {uri}"
    where = "" if is_default else f"MLFLOW_TRACKING_URI={uri} "
    return (
        f"Next:\n  {typed('results.predict')} --model models:/{record.name}/{version} "
        f"--images IMAGES --out submission.csv{store}\n"
        f"  {where}mlflow models serve -m models:/{record.name}@{CHAMPION} --env-manager local"
    )


if __name__ == "__main__":
    sys.exit(main())
