"""What the documentation says is so: names, files, commands and their options."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from noveltune.command import COMMANDS
from search.shipped import shipped
from trainable.errors import Parser
from trainable.novelty.metrics import METRICS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def commands_of(page: Path) -> list[list[str]]:
    """Return every command in the code blocks of a page, as words."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = (
        "".join(block for language, block in found if not language)
        .replace("\\\n", " ")
        .splitlines()
    )
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_of_a_page_are_taken(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse each, up to the point where it would run."""

    class TakenError(Exception):
        pass

    real = Parser.parse_args

    def parse(self: Parser, args: object = None, namespace: object = None) -> None:
        real(self, args, namespace)
        raise TakenError

    monkeypatch.setattr(Parser, "parse_args", parse)
    for words in commands_of(page):
        if words[0] == "noveltune":
            module = importlib.import_module(COMMANDS[words[1]][0])
            with pytest.raises(TakenError):
                module.main(words[2:])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


def test_page_of_metrics_names_every_metric_and_no_other_with_score_first() -> None:
    table = (ROOT / "docs/metrics.md").read_text().partition("## How sure")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named[0] == "score"
    assert sorted(named) == sorted(METRICS)


def test_readme_asks_the_question_of_every_shipped_space() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("| `--space` |")[2].partition("\n\n")[0]
    named = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(named))) == shipped()


def test_space_file_of_the_readme_is_one(tmp_path: Path) -> None:
    from upath import UPath

    from search.space.space import load_space

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "asked.py").write_text(code)
    assert load_space(UPath(tmp_path / "asked.py")).num_trials == 32


def test_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for package in ("noveltune", "search", "results", "trainable", "spaces"):
        assert (ROOT / package / "py.typed").exists()
        for file in (ROOT / package).rglob("*.py"):
            strings = [n.value for n in ast.walk(ast.parse(file.read_text()))
                       if isinstance(n, ast.Constant) and isinstance(n.value, str)]  # fmt: skip
            assert version not in strings, file


def test_versions_in_the_documentation_are_those_that_an_install_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    rows = re.findall(r"^\| ([a-z]+) \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    taken = {re.sub(r"\[.*?\]", "", each) for each in project["dependencies"]}
    assert len(rows) > 5
    assert {f"{name}>={low},<{high}" for name, low, high in rows} <= taken
    python = project["requires-python"].removeprefix(">=")
    assert f"Python {python} or newer" in (ROOT / "README.md").read_text()


def test_hooks_before_a_commit_fetch_nothing() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", config) == ["local"]
    assert {*re.findall(r"language: (\S+)", config)} == {"system"}
