"""A user's file as Python reads it, with the modules that lie beside it."""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

_NAME = "noveltune_space_file"
"""Its own in `sys.modules`, where dataclasses and annotations are looked up."""

_MACHINERY = ("<frozen importlib", importlib.__file__)
"""Files of what an import passes through."""

_loaded: dict[str, "UserModule"] = {}
"""Which file's neighbours are in `sys.modules`: two files may have different ones of one name."""


class UserModule(importlib.abc.MetaPathFinder):
    """A file whose code runs here, and finds the modules beside it only while it runs.

    They are found by this thread alone, and nothing is written beside them: the driver's other
    threads, its later imports and the workers never meet a stranger's `utils.py`.
    """

    def __init__(self, file: UPath, beside: UPath, name: str = _NAME) -> None:
        """Name the file, and the folder in which it finds modules.

        Args:
            file: Which.
            beside: In place of the file's own folder.
            name: Under which its own code stands in `sys.modules`.
        """
        self._file, self._beside = file, beside
        self._thread: int | None = None
        self._served: set[UPath] = set()
        self._ran: dict[UPath, types.ModuleType] = {}
        self._is_kept = False
        self._module = types.ModuleType(name)
        self._module.__file__ = str(file)

    def execute(self, source: bytes) -> dict[str, Any]:
        """Run the file's `source`; return its names."""
        with self.running():
            exec(compile(source, str(self._file), "exec", dont_inherit=True), vars(self._module))
        return vars(self._module)

    def run(self, file: UPath, source: bytes, name: str) -> None:
        """Run another file of the folder, unless one that ran before has imported it.

        Whoever imports it later gets what ran. It stands as `name` in `sys.modules`.
        """
        if getattr(sys.modules.get(file.stem), "__file__", None) == str(file):
            return
        self._ran[file] = sys.modules[name] = types.ModuleType(name)
        self._ran[file].__file__ = str(file)
        with self.running():
            exec(compile(source, str(file), "exec", dont_inherit=True), vars(self._ran[file]))

    def keep(self) -> None:
        """Let its code, and nobody else's, import what lies beside it at any later time."""
        self._is_kept = True
        sys.meta_path.insert(0, self)

    def release(self) -> None:
        """Undo `keep`, and forget what it has loaded."""
        self._is_kept = False
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._ran.clear()
        for name in [name for name, owner in _loaded.items() if owner is self]:
            sys.modules.pop(name, None)
            del _loaded[name]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let code of the file import what lies beside it."""
        sys.modules[self._module.__name__] = self._module
        for name, owner in list(_loaded.items()):
            if owner is not self:
                sys.modules.pop(name, None)
                del _loaded[name]
        before, self._thread = self._thread, threading.get_ident()
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            self._thread = before

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return what `import` needs of a module beside the file, or None if there is none."""
        is_own = self._is_kept and _importer().startswith(f"{self._beside}/")
        if threading.get_ident() != self._thread and not is_own:
            return None
        top, dot, _ = fullname.partition(".")
        if dot and _loaded.get(top) is not self:
            return None
        place = self._beside.joinpath(*fullname.split("."))
        if (file := _source_of(place)) is not None:
            ran = self._ran.get(file)
            loader = _Loader(file) if ran is None else _Loaded(ran)
            spec = importlib.util.spec_from_loader(fullname, loader)
            self._served.add(file)
        elif _is_namespace(place) and (dot or not _elsewhere(place, fullname)):
            spec = importlib.machinery.ModuleSpec(fullname, _Nothing(), is_package=True)
        else:
            return None
        _loaded[fullname] = self
        return spec

    def clash(self, source: bytes) -> str:
        """Return which import would not get the module beside the file, or nothing.

        It would not where Python, or what runs already, has another module of that name.
        """
        for name, text in {self._file.name: source, **self.sources(source)}.items():
            for line, imported in _imports(text):
                top = imported.partition(".")[0]
                file = _source_of(self._beside / top)
                if file is not None and (other := _elsewhere(file, top)):
                    return (
                        f"{name}, line {line}: `{top}` is the name of {other}, which {file} beside "
                        "it cannot replace: give that file another name"
                    )
        return ""

    def _gets(self, folder: str) -> bool:
        """Return whether `import` gets the folder beside the file, which has no `__init__.py`."""
        return _loaded.get(folder) is self or not _is_installed(folder)

    def sources(self, source: bytes) -> dict[str, bytes]:
        """Return the modules beside the file that it imports, now or later: by relative path."""
        files = set(self._served)
        waiting = [source, *(file.read_bytes() for file in files)]
        while waiting:
            for _, imported in _imports(waiting.pop()):
                top = self._beside / imported.partition(".")[0]
                file = _source_of(top)
                if file is None and _is_namespace(top) and not self._gets(top.name):
                    continue
                if file is not None and _elsewhere(file, top.name):
                    continue
                found = set(top.rglob("*.py"))  # a package is kept whole
                if file is not None and file.parent == self._beside:
                    found = {file}
                waiting += [each.read_bytes() for each in found - files]
                files |= found
        return {file.relative_to(self._beside).as_posix(): file.read_bytes() for file in files}


class _Loader(importlib.abc.SourceLoader):
    """Reads a module from wherever its file is, and caches nothing."""

    def __init__(self, file: UPath) -> None:
        self._file = file

    def get_filename(self, fullname: str) -> str:
        return str(self._file)

    def get_data(self, path: Any) -> bytes:
        return self._file.read_bytes()


class _Nothing(importlib.abc.Loader):
    """Loads a folder without code of its own."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing."""


class _Loaded(importlib.abc.Loader):
    """Gives a module that ran already."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return it."""
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing."""


def _importer() -> str:
    """Return the file whose code imports something now."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_MACHINERY):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def _is_installed(name: str) -> bool:
    """Return whether `import` finds a module with code elsewhere, or has it."""
    if name in sys.modules and name not in _loaded:
        return True
    spec = importlib.machinery.PathFinder.find_spec(name)
    return name in sys.stdlib_module_names or (spec is not None and spec.origin is not None)


def _source_of(place: UPath) -> UPath | None:
    """Return the file of a module or regular package at `place`, without suffix."""
    for file in (place / "__init__.py", place.parent / f"{place.name}.py"):
        if file.is_file():
            return file
    return None


def _is_namespace(place: UPath) -> bool:
    return place.is_dir() and any(place.glob("*.py"))


def _elsewhere(file: UPath, name: str) -> str:
    """Return what wins over `file` as module `name`: of Python, or imported already; or nothing.

    Replacing either would break others.
    """
    if name in _loaded:
        return ""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if origin is not None and Path(origin).resolve() == Path(str(file)).resolve():
        return ""
    if name in sys.stdlib_module_names:
        return "a module of Python"
    return "" if module is None else f"a module in use here ({origin})"


def _imports(source: bytes) -> list[tuple[int, str]]:
    """Return line and full name of every absolute import in `source`, wherever it stands."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []  # running it tells
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.lineno, node.module or ""))
    return found
