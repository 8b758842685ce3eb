"""python -m search.run: the command line, nothing else."""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from results.options import add_experiment, add_stores, check_stores, place
from search.cluster.options import add_place, share_of
from search.interrupts import terminable
from search.shipped import shipped, space_file
from trainable.config import parse_settings
from trainable.errors import Parser, UserError, nearest, typed
from trainable.interrupted import INTERRUPTED

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def main(argv: list[str] | None = None) -> int:
    """Run a search; return the exit code: 0 done, 1 failed, 2 a mistake, 130 stopped."""
    args = _parser().parse_args(argv)
    try:
        with terminable():
            # Imported late: --help and mistakes should not wait for Ray and MLflow.
            options = _options(args)
            _say_what_it_waits_for(options)
            from search.plan import Options
            from search.session import run_search

            return run_search(Options(**options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        nothing = "interrupted before the first trial: there is nothing to resume"
        again = "interrupted: repeat the command to go on" if args.resume else nothing
        is_told = stopped.args and not args.json
        print(stopped if stopped.args else again, file=sys.stdout if is_told else sys.stderr)
        return INTERRUPTED


def called(
    space: str | os.PathLike[str] | None, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[str, str | None, str | None]:
    """Run a search for a caller in Python; return its folder, and its study and MLflow as asked.

    Args:
        space: As `--space` takes it; null: none given.
        settings: Keys that are fixed for every trial.
        options: The command's other options, by name.

    Raises:
        UserError: A mistake in what was asked.
        TypeError: No option of that name.
    """
    parser = _parser(_Called)
    only_typed = {"help", "space", "settings", "dry_run"}
    known = {action.dest for action in parser._actions} - only_typed
    words = [] if space is None else [f"--space={os.fspath(space)}"]
    for key, value in options.items():
        if key not in known:
            raise TypeError(f"search() has no option {key!r}{nearest(key, known)}")
        if value is not None and value is not False:
            text = ",".join(value) if isinstance(value, list | tuple) else value
            words.append(f"--{key.replace('_', '-')}" + ("" if value is True else f"={text}"))
    words += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    asked = _options(parser.parse_args(words))
    _say_what_it_waits_for(asked)
    from results.record import run_folder
    from search.plan import Options, free_name
    from search.session import run_search

    storage = asked["storage"]
    asked["name"] = asked["name"] or free_name(asked["space"].stem, storage)
    run_search(Options(**asked))
    return str(run_folder(asked["name"], storage)), asked["study"], asked["tracking_uri"]


def _say_what_it_waits_for(options: Mapping[str, Any]) -> None:
    """Say so where the libraries are still to be imported, which takes seconds."""
    if "search.session" not in sys.modules and not options["quiet"]:
        name = options["name"] or options["space"].stem
        print(f"{name}: loading what a search needs", flush=True)


class _Called(Parser):
    """The options of a call from Python, whose process outlives a mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise `message`."""
        raise UserError(message)


def _parser(kind: type[Parser] = Parser) -> Parser:
    parser = kind(
        prog=typed("search.run"),
        description="Search for the best classifier that knows when to say novel.",
    )
    what = parser.add_argument_group("what is searched").add_argument
    what("--space", type=place, metavar="FILE|NAME",
         help=f"space file, or a shipped one: {', '.join(shipped())}")  # fmt: skip
    what("--trials", type=int, metavar="N", help="trials in all, over the file's NUM_TRIALS")
    what("--epochs", type=int, metavar="N", help="epochs of every trial, over the file's EPOCHS")
    what("--metric", metavar="NAME", help="metric to optimise; several with commas: a Pareto front")
    what("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
         help="fix a key for every trial, baselines included")  # fmt: skip
    what("--seed", type=int, metavar="N", help="of the sampler and of every trial (default 0)")
    on_which_data = parser.add_argument_group("on which data")
    data = on_which_data.add_argument
    data("--data", metavar="PATH|synthetic", help="folder or .zip (default: built-in synthetic)")
    data(
        "--novel",
        metavar="PATH|cifar100|synthetic",
        help="borrowed images: folder or .zip (default with --data: cifar100)",
    )
    data("--weights", type=Path, metavar="PATH", help="pretrained weights: a file or a folder")
    cache = on_which_data.add_mutually_exclusive_group().add_argument
    cache("--cache", type=Path, metavar="DIR", help="decoded images and frozen features")
    cache("--no-cache", action="store_true",
          help="slow: no stored features, no bf16, a new process for every trial")  # fmt: skip
    keep = parser.add_argument_group("what is kept").add_argument
    keep("--name", help="of the search (default: the space file's)")
    add_stores(keep)
    add_experiment(keep)
    keep("--keep-models", metavar="all|best_K|none",
         help="whose models MLflow gets; runs/NAME has all (default best_3)")  # fmt: skip
    keep("--resume", action="store_true",
         help="go on with an interrupted search; with --space also start it")  # fmt: skip
    keep("--retry-failed", action="store_true", help="with --resume: run failed trials again")
    again = parser.add_argument_group("with --resume, once a search is finished").add_argument
    again("--repeat", type=int, metavar="N", help="run its best configurations with N seeds each")
    again("--top", metavar="K|all", help="how many configurations to repeat (default 3)")
    where = parser.add_argument_group("how it runs").add_argument
    add_place(where, has_pilot=True)
    where("--concurrency", type=int, metavar="N", help="trials at once (default: what fits)")
    where("--time-budget", metavar="90m", help="stop after so long; resumable (s, m or h)")
    where("--max-reruns", type=int, metavar="N",
          help="of a trial whose process died by itself (default 2)")  # fmt: skip
    show = parser.add_argument_group("what is shown").add_argument
    show("--dry-run", action="store_true", help="check everything, say what would run, and stop")
    show("--json", action="store_true", help="end with one JSON object on standard output")
    show("--quiet", action="store_true", help="print only the end")
    return parser


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as `search.plan.Options` takes them.

    Raises:
        UserError: A value that cannot be meant.
    """
    if args.space is None and not args.resume:
        raise UserError("--space FILE is needed (or --resume --name NAME to go on with a search)")
    if args.resume and args.name is None:
        raise UserError("--resume needs --name NAME")
    if args.retry_failed and not args.resume:
        raise UserError("--retry-failed needs a search: add --resume --name NAME")
    if args.name is not None and not re.fullmatch(r"[\w][\w.-]*", args.name):
        raise UserError(f"--name may have letters, digits, '.', '_' and '-', but got {args.name!r}")
    for flag in ("trials", "concurrency"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} must be 1 or more, but got {value}")
    for flag in ("epochs", "seed", "max_reruns"):
        value = getattr(args, flag)
        if value is not None and value < 0:
            raise UserError(f"--{flag.replace('_', '-')} must be 0 or more, but got {value}")
    keep = args.keep_models
    if keep is not None and not re.fullmatch(r"all|none|best_[1-9]\d{0,8}", keep):
        raise UserError(f"--keep-models must be all, none, or best_K like best_3, but got {keep!r}")
    _check_repeat(args)
    check_stores(args.storage, args.study, args.tracking_uri)
    fixed = parse_settings(args.settings)
    for flag in ("epochs", "seed"):
        value = getattr(args, flag)
        if value is not None and fixed.get(flag, value) != value:
            raise UserError(
                f"--{flag} {value} and --set {flag}={fixed[flag]} contradict each other"
            )
    return {
        **{k: v for k, v in vars(args).items() if k not in ("settings", "metric", "time_budget")},
        "space": args.space and space_file(args.space),
        "top": _top(args.top),
        "metric": tuple(args.metric.split(",")) if args.metric else None,
        "fixed": fixed,
        "gpus_per_trial": share_of(args, has_pilot=True),
        "time_budget_s": _seconds(args.time_budget),
    }


def _check_repeat(args: argparse.Namespace) -> None:
    if args.repeat is None:
        if args.top is not None:
            raise UserError("--top needs --repeat N")
        return
    if not args.resume:
        raise UserError("--repeat needs a finished search: add --resume --name NAME")
    if args.retry_failed:
        raise UserError("--repeat ranks what has ended: first --retry-failed without it")
    if args.repeat < 2:
        raise UserError(f"--repeat must be 2 or more, but got {args.repeat}")
    for flag in ("space", "trials", "epochs", "settings"):
        if getattr(args, flag) not in (None, []):
            name = "set" if flag == "settings" else flag
            raise UserError(f"--repeat runs finished trials as they were: leave out --{name}")


def _top(text: str | None) -> int | None:
    if text == "all":
        return None
    if text is not None and not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UserError(f"--top must be all, or 1 or more, but got {text!r}")
    return int(text or 3)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise UserError(f"--time-budget must be like 90m, 2h or 300s, but got {text!r}")
    return float(match[1]) * _UNITS_S[match[2]]


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; taking Ray, MLflow and torch apart takes seconds
