"""How text reaches a terminal: in whole words, paths and commands."""

import io

import pytest
from rich.text import Text

from results.terminal import plain_console

PATH = "/home/me/birds/runs/a-name-that-is-long/trials/00001/model.safetensors"
COMMAND = f"python -m search.run --resume --name birds --storage {PATH}"


def said(printed: object, *, width: int, is_terminal: bool = True) -> list[str]:
    file = io.StringIO()
    console = plain_console(file=file, width=width, force_terminal=is_terminal, color_system=None)
    console.print(printed)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("kind", [str, Text])
def test_line_is_broken_between_words_and_not_in_a_path_or_a_command(kind: type) -> None:
    text = f"1 failed:  there is a file already, {PATH}\nNext:\n  {COMMAND}"
    assert said(kind(text), width=40) == [
        "1 failed:  there is a file already,",
        f"  {PATH}",
        "Next:",
        f"  {COMMAND}",
    ]
    (line,) = said(kind(f"this does it: {COMMAND}"), width=200)
    assert said(kind(line), width=80) == ["this does it:", f"  {COMMAND}"]
    url = "http://127.0.0.1:5000/#/experiments/1/runs?searchFilter=tags.search_id%20%3D"
    assert said(kind(f"mlflow ui shows it at {url}"), width=40)[1:] == [f"  {url}"]
    assert said(kind(text), width=40, is_terminal=False) == text.splitlines()
