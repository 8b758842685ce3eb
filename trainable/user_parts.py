"""A user's own parts: files that register them, wherever the process is that needs them.

A search reads them once and keeps what it read: in its folder, in every task of a worker and in
every model. So they run from memory, and a file that is gone or has changed since matters to none
of these. They are code, and run as such.
"""

from __future__ import annotations

import hashlib
import linecache
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainable.checkpoint import write_atomically
from trainable.errors import ConfigError, UserError
from trainable.parts import REGISTRIES, reading

if TYPE_CHECKING:
    from upath import UPath

    from trainable.modules import UserModule

PARTS_FOLDER = "space_parts"
"""In a search's folder: its parts as they were."""
_OURS = ("trainable", "search", "results", "spaces")


class PartsError(UserError):
    """A file of parts that cannot be read or run."""


@dataclass(frozen=True, kw_only=True)
class UserParts:
    """Files that register parts, with the modules beside them that they import."""

    files: tuple[str, ...] = ()
    """Run in this order; paths relative to one folder."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What each file and module says, by its relative path."""

    @classmethod
    def read(cls, folder: UPath, files: Sequence[str]) -> UserParts:
        """Return the parts in `files` of `folder`, which nothing has run yet.

        Raises:
            PartsError: One cannot be read, or imports what it would not get.
        """
        from trainable.modules import UserModule

        sources: dict[str, str] = {}
        for name in files:
            _check_name(name)
            file = folder / name
            try:
                content = file.read_bytes()
                module = UserModule(file, file.parent)
                if clash := module.clash(content):
                    raise PartsError(f"{file}: {clash}")
                found = {file.name: content, **module.sources(content)}
                within = name.rpartition("/")[0]
                for path, text in found.items():
                    if path.partition("/")[0] not in _OURS:
                        sources[f"{within}/{path}".lstrip("/")] = text.decode()
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise PartsError(f"{file}, a file of parts, cannot be read ({reason})") from error
            except UnicodeDecodeError as error:
                raise PartsError(f"{file}: a file of parts must be UTF-8 ({error})") from error
        return cls(files=tuple(files), sources=sources)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UserParts:
        """Return what `to_dict` gave, or none where it is empty."""
        return cls(files=tuple(values.get("files", ())), sources=dict(values.get("sources", {})))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; nothing where there are no parts."""
        return {"files": list(self.files), "sources": dict(self.sources)} if self.files else {}

    def save(self, folder: UPath) -> None:
        """Write the files into `folder`, as they were."""
        for path, text in self.sources.items():
            write_atomically(folder / path, text.encode())

    @property
    def digests(self) -> dict[str, str]:
        """A digest of each source."""
        return {
            path: hashlib.sha256(text.encode()).hexdigest()[:16]
            for path, text in sorted(self.sources.items())
        }

    @property
    def digest(self) -> str:
        """A digest of all of it."""
        named = repr((self.files, self.digests))
        return hashlib.sha256(named.encode()).hexdigest()[:16] if self.files else ""

    def use(self) -> None:
        """Have these parts registered in this process, and no other user's.

        Raises:
            PartsError: A file fails. None is registered then.
        """
        if self.digest == _current.digest:
            return
        _forget()
        if not self.files:
            return
        from upath import UPath

        # In memory, so that what runs is what was read; and for tracebacks to show their lines.
        home = UPath(f"memory:///noveltune_parts/{self.digest}")
        for path, text in self.sources.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_bytes(text.encode())
            linecache.cache[str(home / path)] = (len(text), None, text.splitlines(True), path)
        from trainable.modules import UserModule

        try:
            for name in self.files:
                file = home / name
                if str(file.parent) not in _modules:
                    _modules[str(file.parent)] = UserModule(file, file.parent, "noveltune_parts")
                    _modules[str(file.parent)].keep()
                _run(_modules[str(file.parent)], home, name, self.sources[name], self.digest)
        except BaseException:
            _forget()
            raise
        _set_current(self)


def current_parts() -> UserParts:
    """Return the user's parts that are registered in this process."""
    return _current


def kept_parts(folder: UPath, files: Sequence[str]) -> UserParts:
    """Return the parts that a search kept in its `folder`."""
    return UserParts.read(folder / PARTS_FOLDER, files) if files else UserParts()


def read_beside(files: Sequence[UPath]) -> UserParts:
    """Return the parts in `files`, which lie in one folder.

    Raises:
        PartsError: They do not, or one cannot be read.
    """
    folders = {str(file.parent): file.parent for file in files}
    if len(folders) > 1:
        raise PartsError(f"files of parts must lie in one folder, but got {', '.join(folders)}")
    (folder,) = folders.values() or (None,)
    return UserParts.read(folder, [file.name for file in files]) if folder else UserParts()


def _run(module: UserModule, home: UPath, name: str, text: str, digest: str) -> None:
    """Run one file and let it register."""
    file = home / name
    try:
        with reading(name, digest):
            stem = "".join(each if each.isalnum() else "_" for each in name)
            module.run(file, text.encode(), f"noveltune_parts_{stem}")
    except SyntaxError as error:
        where = str(error.filename).removeprefix(f"{home}/")
        raise PartsError(f"{where}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except UserError as error:
        if not isinstance(error, ConfigError):
            raise  # a time limit's
        raise PartsError(f"{name}, line {_line(file, error)}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PartsError(f"{name}, line {_line(file, error)}: {reason}") from error


def _line(file: UPath, error: BaseException) -> int | None:
    """Return the last line of the file on the way to `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)


def _check_name(name: object) -> None:
    """Refuse what would not lie in the folder: it travels with it."""
    is_path = isinstance(name, str) and name.endswith(".py") and not name.startswith("/")
    if not is_path or ".." in str(name).split("/"):
        raise PartsError(
            f"PARTS names Python files beside the space file or below it, but got {name!r}: "
            "copy the file there, and write its relative path"
        )


_current = UserParts()
_modules: dict[str, UserModule] = {}
"""By folder: its files share what they import, now and when they are called."""


def _set_current(parts: UserParts) -> None:
    global _current
    _current = parts


def _forget() -> None:
    _set_current(UserParts())
    while _modules:
        _modules.popitem()[1].release()
    for registry in REGISTRIES:
        registry.forget_users()
