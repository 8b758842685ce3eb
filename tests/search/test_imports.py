"""Imports point one way, so that training needs no search and a space file needs neither."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.commands import ROOT, run

PACKAGES = ("noveltune", "search", "trainable", "results", "spaces")


@cache
def imports_of(file: Path) -> set[str]:
    """Return the top-level packages that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import by the full name"
            assert node.module
            found.add(node.module.partition(".")[0])
    return found


def imports_by_file(package: str) -> dict[str, set[str]]:
    return {
        str(file.relative_to(ROOT)): imports_of(file) for file in (ROOT / package).rglob("*.py")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_files_and_uses_others(package: str) -> None:
    assert any(imports_by_file(package).values())


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("noveltune", {"search", "results", "trainable"}),
        ("search", {"spaces", "trainable", "results"}),
        ("results", {"trainable"}),
        ("trainable", set()),
        ("spaces", {"trainable"}),
    ],
)
def test_imports_point_one_way(package: str, others: set[str]) -> None:
    allowed = others | {package}
    for file, imports in imports_by_file(package).items():
        assert imports & {*PACKAGES, "tests"} <= allowed, file


def test_training_knows_nothing_of_search_tools() -> None:
    for file, imports in imports_by_file("trainable").items():
        assert imports.isdisjoint({"ray", "optuna", "mlflow"}), file


@pytest.mark.parametrize(
    ("room", "others"), [("model", {"data"}), ("novelty", {"data"}), ("data", set())]
)
def test_rooms_of_training_do_not_know_each_other(room: str, others: set[str]) -> None:
    rooms = {"model", "novelty", "data"}
    for file in (ROOT / "trainable" / room).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("trainable."):
                known = str(node.module).split(".")[1]
                assert known in others | {room} or known not in rooms, file


def test_only_search_imports_ray() -> None:
    importing = [
        file for package in PACKAGES for file, i in imports_by_file(package).items() if "ray" in i
    ]
    assert importing
    assert all(file.startswith("search/") for file in importing)


def test_space_files_import_only_optuna_and_trainable() -> None:
    for file, imports in imports_by_file("spaces").items():
        assert imports <= {"optuna", "trainable"} | sys.stdlib_module_names, file


def test_first_line_of_a_search_comes_before_what_takes_seconds_to_import(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'ray', 'mlflow', 'optuna', 'pandas']))\n"
        "from search.run import main\n"
        "main(['--space', sys.argv[1]])"
    )
    file = str(tmp_path / "mine.py")
    done = run(ROOT, "-c", code, file)
    assert done.out == "mine: loading what a search needs\n"
    assert "ModuleNotFoundError" in done.err


@pytest.mark.slow
def test_a_plan_needs_neither_ray_nor_mlflow_and_a_search_nothing_that_draws() -> None:
    code = (
        "import sys; draws = {'matplotlib', 'jinja2'}\n"
        "import search.plan; print(sys.modules.keys() & ({'ray', 'mlflow'} | draws))\n"
        "import search.session; print(sys.modules.keys() & draws)"
    )
    done = run(ROOT, "-c", code)
    assert done.out == "set()\nset()\n", done
