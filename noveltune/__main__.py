"""python -m noveltune: the command, where it is not on the PATH."""

from noveltune.command import run

run()
