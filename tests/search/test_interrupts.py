"""Signals ask a search to stop, and a search that may not take them runs without."""

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from search.interrupts import Interrupts, terminable
from tests.commands import ROOT, run


def test_first_signal_asks_and_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts("resume it", sys.stdout) as interrupts:
        assert not interrupts.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested()
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_interrupts_as_ctrl_c_does_also_where_ray_took_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        sys.exit(signal.SIGTERM)  # what Ray's handler does
    with pytest.raises(SystemExit), terminable():
        sys.exit(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_first_signal_is_answered_at_once() -> None:
    said, answered = [], threading.Event()

    def note(line: str) -> None:
        said.append((line, threading.current_thread()))
        answered.set()

    with Interrupts("resume it", sys.stdout, note):
        os.kill(os.getpid(), signal.SIGINT)
        assert answered.wait(60)
    ((line, thread),) = said
    assert line == "stopping after this step; again stops now"
    assert thread is not threading.main_thread(), "which may be in the middle of a line"


def test_no_signal_has_no_answer() -> None:
    said: list[str] = []
    with Interrupts("resume it", sys.stdout, said.append):
        pass
    assert said == []


def test_another_thread_takes_no_signals() -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def search() -> None:
        with Interrupts("resume it", sys.stdout) as interrupts:
            interrupts.listen()
            seen.extend([signal.getsignal(signal.SIGINT), interrupts.requested()])

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [handler, False]


@pytest.mark.parametrize(("interactive", "code"), [(False, 130), (True, 0)])
def test_second_signal_ends_a_command_but_not_an_interactive_python(
    interactive: bool, code: int
) -> None:
    script = (
        "import os, signal, sys\n"
        "from search.interrupts import Interrupts\n"
        f"{'sys.ps1 = 1' if interactive else ''}\n"
        "try:\n"
        "    with Interrupts('resume it', sys.stdout):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = run(ROOT, "-c", script)
    assert done.code == code, done
    assert done.out == "resume it\n" + ("interrupted\n" if interactive else "")


def test_last_line_is_one_of_its_own_below_a_screen_that_ends_without_a_line_end() -> None:
    script = (
        "import os, signal, sys\n"
        "from search.interrupts import Interrupts\n"
        "with Interrupts('resume it', sys.stdout):\n"
        "    sys.stdout.write('MLflow: here')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=slave) as process:
        assert process.wait(60) == 130
    os.close(slave)
    text = os.read(master, 1000).decode()
    os.close(master)
    assert text.replace("\x1b[?25h", "").split("\r\n") == ["MLflow: here", "resume it", ""]
