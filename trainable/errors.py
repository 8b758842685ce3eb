"""The errors that a user can cause and mend: printed as one line, exit code 2."""

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from trainable.urls import hidden

_T = TypeVar("_T")


_SOURCES = ("--data", "--novel", "--images")
"""Options that are checked where they are read, also in a call from Python."""
_MAX_REASON = 2000
"""Characters: no library or database says more, but a web server's error page may."""


def typed(module: str) -> str:
    """Return the command of a module as this process's user types: noveltune NAME, or python -m."""
    program = Path(sys.argv[0] if sys.argv else "")
    if "noveltune" not in (program.stem, program.parent.name):
        return f"python -m {module}"
    return "noveltune " + ("search" if module == "search.run" else module.partition(".")[2])


class _Once(argparse.Action):
    """Stores a value, and refuses another one: the last of two would win without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store `values` where nothing else was given."""
        before = vars(parser).setdefault("given", {}).setdefault(self.dest, values)
        if before != values:
            raise argparse.ArgumentError(self, f"given twice, {before} and {values}: drop one")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are a line that shows no password.

    A value that is empty, as of a variable that is not set, is no default; `~/` is the home folder.
    An option that is given twice with different values is refused.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for action in (None, "store"):
            self.register("action", action, _Once)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args`, by default those of the process."""
        words, flag = [], ""
        for word in sys.argv[1:] if args is None else args:
            option, equals, value = word.partition("=")
            if not (word.startswith("--") and equals):
                option, value = flag, word
            if option.startswith("--") and not value and option not in _SOURCES:
                self.error(f"{option}: its value is empty: is a variable not set?")
            if value.startswith("~/"):
                word = word.removesuffix(value) + os.path.expanduser(value)  # noqa: PTH111 (a word)
            words.append(word)
            flag = word
            self._check_option(word.partition("=")[0])
        _say_what_is_alike()
        vars(self)["given"] = {}
        return super().parse_args(words, namespace)

    def _check_option(self, option: str) -> None:
        """Name the nearest one where there is no such option, or none that begins so."""
        known = self._option_string_actions
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            hint = f"{self.prog} --help lists those that there are"
            self.error(f"there is no option {option}{nearest(option, known)}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Print the message as one line, and exit with 2."""
        self.exit(2, f"error: {hidden(message)}\n")


def _say_what_is_alike() -> None:
    """Name what Python would take for a package of ours if the commands did not prevent it."""
    here, root = Path.cwd(), Path(__file__).parents[1]
    if str(here) not in sys.path or here == root:
        return
    for name in ("search", "results", "trainable", "spaces"):
        for file in (here / f"{name}.py", here / name / "__init__.py"):
            if file.exists():
                print(
                    f"{file} has the name of a package of noveltune, and is not read: rename it, "
                    "or start in another folder",
                    file=sys.stderr,
                )


class _ToldError(Exception):
    """People read its message: no password is in it, whatever URL or library's text it quotes."""

    def __init__(self, message: str = "") -> None:
        super().__init__(hidden(message))


class UserError(_ToldError):
    """A mistake in what was asked. The message gives the rule, the value and what to do next."""


class ConfigError(UserError):
    """A configuration with an unknown key, a value out of range, or keys that clash."""


class DataError(UserError):
    """An image source that is missing, broken or inconsistent."""


class WeightsError(UserError):
    """Pretrained weights that cannot be found, fetched or loaded."""


class TrialError(_ToldError):
    """A trial that cannot go on (loss not finite, out of memory). The message is the reason."""


def reason_of(error: BaseException) -> str:
    """Return what an error says as one line, without passwords and SQL, and otherwise uncut."""
    error = getattr(error, "orig", None) or error  # SQLAlchemy's hold the database's own
    return hidden(" ".join(str(error).split())[:_MAX_REASON]) or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of `known`, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def chosen(table: Mapping[str, _T], key: str, name: str) -> _T:
    """Return what `table` holds for the value `name` of the config's `key`.

    Raises:
        ConfigError: Nothing: a name that the config allows and nobody built trains as no other.
    """
    if name not in table:
        raise ConfigError(f"`{key}` must be one of {', '.join(table)}, but got {name!r}")
    return table[name]
