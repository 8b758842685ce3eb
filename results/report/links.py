"""What a page links to: the files beside it."""

import re

from upath import UPath

_FILES = r'<div class="files">.*?</div>'


def shown_by(page: UPath) -> set[str]:
    """Return the names of the files that a page written earlier has beside it; none are others'."""
    text = page.read_text(errors="replace") if page.exists() else ""
    shown = re.findall(_FILES, text)
    return {name for each in shown for name in re.findall(r'<a href="([\w.-]+)">', each)}


def without_links(page: str) -> str:
    """Return a page for where there is nothing beside it."""
    return re.sub(_FILES, "", page)
