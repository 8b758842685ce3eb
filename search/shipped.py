"""The space files that come with the installation, found by their names from any folder."""

from pathlib import Path

from upath import UPath

import spaces
from trainable.errors import UserError, nearest

FOLDER = Path(spaces.__file__).parent


def shipped() -> list[str]:
    """Return the names of the shipped space files."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


def space_file(given: UPath) -> UPath:
    """Return the file that `--space` names: one in the working folder, else a shipped one.

    Args:
        given: A path; or NAME, NAME.py or spaces/NAME.py of a shipped file.

    Raises:
        UserError: There is none. It names the nearest.
    """
    if not isinstance(given, Path) or (given.exists() and not given.is_dir()):
        return given
    if given.name and (own := given.with_name(f"{given.name}.py")).is_file():
        return own
    name = given.name.removesuffix(".py")
    is_bare = str(given.parent) in (".", FOLDER.name)
    if is_bare and name in shipped():
        return UPath(FOLDER / f"{name}.py")
    if given.exists() or not is_bare:
        return given  # reading it says why it cannot be read
    beside = (file.name for file in given.parent.glob("*.py") if file.stem != "__init__")
    known = [*beside, *shipped()]
    raise UserError(
        f"--space {given}: there is no such file, and no shipped space of that name"
        f"{nearest(given.name, known) or nearest(name, known)}; shipped are {', '.join(shipped())}"
    )
