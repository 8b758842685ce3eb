"""What a person sees of a running search: complete at 80 columns, and in a pipe a line each."""

import io
import re
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from results.terminal import plain_console
from results.trial import Trial, TrialState
from search import progress
from search.progress import Progress
from trainable.config import TrialConfig
from trainable.epoch import Epoch

LONG = TrialConfig(
    architecture="two_models", fine_tune="frozen", super_fine_tune="last_2", lr=0.0123, epochs=8,
    super_head="cosine", novel_images=1000, label_smoothing=0.1, batch_size=32,
)  # fmt: skip
SAMPLES = [LONG, TrialConfig(architecture="two_heads", epochs=8)]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def epoch(number: int, score: float) -> Epoch:
    metrics = {"score": score, "score_calibration": score}
    return Epoch(number=number, metrics=metrics, seconds=8.0, images_per_s=100.0, elapsed_s=10.0)


def trial(number: int, *scores: float, state: str = "RUNNING", **more: Any) -> Trial:
    epochs = tuple(epoch(n, score) for n, score in enumerate(scores, 1))
    best = max(epochs, key=lambda each: each.metrics["score"], default=None)
    values: dict[str, Any] = {"config": LONG, "is_baseline": False, "host": "here"} | more
    ended: dict[str, Any] = {"best": best} if state in ("COMPLETE", "PRUNED") else {}
    return Trial(number=number, state=TrialState(state), epochs=epochs, **ended, **values)


class Seen:
    """A search's progress on a terminal of a given width, or in a pipe."""

    def __init__(self, width: int | None, **more: Any) -> None:
        self.file = io.StringIO()
        self.heard: list[str] = []
        terminal: dict[str, Any] = (
            {"width": width, "height": 24, "force_terminal": True} if width else {}
        )
        self.console = plain_console(file=self.file, listener=self.heard.append, **terminal)
        values: dict[str, Any] = {
            "num_trials": 40,
            "metric": "score",
            "samples": SAMPLES,
            "where": "mlflow ui",
        }
        self.progress = Progress(self.console, **(values | more))

    def screen(self) -> list[str]:
        """Return the lines at the bottom of the terminal, without colours."""
        file = io.StringIO()
        plain = Console(file=file, width=self.console.width, height=24, color_system=None)
        plain.print(self.progress._screen())
        return [line.rstrip() for line in file.getvalue().splitlines()]


def some_trials(seen: Seen) -> None:
    """Give the progress trials in every state."""
    started = [trial(0, state="RUNNING"), trial(1, state="RUNNING"), trial(2), trial(3), trial(4)]
    for each in started:
        seen.progress.update(replace(each, host=""))
    seen.progress.update(trial(0, *[0.1 * n for n in range(1, 9)], state="COMPLETE"))
    seen.progress.update(trial(1, 0.1, state="PRUNED"))
    seen.progress.update(trial(2, state="FAIL", reason="RuntimeError: two\nlines \x1b[31mred"))
    seen.progress.update(trial(3, 0.5))
    seen.progress.update(trial(3, 0.5, 0.4))
    seen.progress._within = {3: 2.25}


@pytest.mark.parametrize("width", [80, 120])
def test_screen_has_all_of_a_running_trial_but_what_its_configuration_gives_way(width: int) -> None:
    seen = Seen(width)
    some_trials(seen)
    lines = seen.screen()
    assert max(map(len, lines)) <= width
    (row,) = (line for line in lines if line.startswith("00003"))
    assert re.search(r"^00003  ━\S* +2\.2/8 +0\.500 ", row), "number, bar, epochs, best so far"
    (waiting,) = (line for line in lines if line.startswith("00004"))
    assert re.search(r"starting +- ", waiting)
    assert ("super last_2, sub frozen" in row) == (width == 120), row
    assert "1 done, 2 running, 1 pruned, 1 failed of 40 trials" in "\n".join(lines)
    assert any(line.startswith("best score 0.800, trial 00000  ") for line in lines)
    assert re.search(r"^160 images/s   \d+ s passed   about \d+ (s|min) left$", lines[-2])
    assert lines[-1] == "MLflow: mlflow ui"


def test_rows_of_similar_trials_begin_with_what_tells_them_apart() -> None:
    other = replace(LONG, batch_size=64)
    seen = Seen(80, samples=[*SAMPLES, other])
    seen.progress.update(trial(3, 0.5))
    seen.progress.update(trial(4, 0.5, config=other))
    starts = [line.split("0.500")[1].strip()[:26] for line in seen.screen()[1:3]]
    assert starts == ["batch size 32, two_models,", "batch size 64, two_models,"]


def test_of_many_rows_none_begins_as_another_nor_is_cut_within_a_word() -> None:
    varied = (
        {"super_fine_tune": ("last_2", "frozen")[n % 2], "novel_images": (1000, 200)[n // 4],
         "lr": 0.01 + n / 1000}
        for n in range(8)
    )  # fmt: skip
    many = [TrialConfig.from_dict({**LONG.to_dict(), **each}) for each in varied]
    for width in (80, 120):
        seen = Seen(width, samples=[*SAMPLES, *many])
        for number, config in enumerate(many):
            seen.progress.update(trial(number, 0.5, config=config))
        seen.progress.update(trial(9, 0.9, config=many[0]))
        seen.progress.update(trial(9, 0.9, config=many[0], state="COMPLETE"))
        rows = [line for line in seen.screen() if " 0.500 " in line or line.startswith("best ")]
        names = [row.partition(" 0.500 ")[2].strip() for row in rows[:-1]]
        assert len({name.split(", ")[0] for name in names}) == 8, names
        whole = {*seen.progress._name(many[0]).split(", "), "…"}
        assert {*rows[-1].partition("00009  ")[2].split(", ")} <= whole


def test_screen_wider_shows_more() -> None:
    narrow, wide = (Seen(width) for width in (80, 120))
    for seen in (narrow, wide):
        some_trials(seen)
    assert narrow.screen()[0].split() == ["trial", "epochs", "score", "configuration"]
    assert wide.screen()[0].split() == ["trial", "epochs", "score", "time", "configuration"]


def test_screen_of_more_trials_than_lines_still_ends_with_the_counts() -> None:
    seen = Seen(80)
    for number in range(60):
        seen.progress.update(trial(number, 0.5))
    lines = seen.screen()
    assert len(lines) < 24
    assert any(line.strip().startswith("+45 ") for line in lines)
    assert any("60 running" in line for line in lines)


def test_bar_moves_within_an_epoch_and_not_past_what_a_worker_has_recorded() -> None:
    seen = Seen(80)
    seen.progress.update(trial(3, 0.5))

    def shown(within: float) -> str:
        seen.progress._within = {3: within}
        return seen.screen()[1]

    assert "1.1/8" in shown(1.1)
    assert "1.9/8" in shown(1.9)
    assert "1/8" in shown(0.4), "told before the epoch was recorded"
    assert "2/8" in shown(7.5), "of a run that died, which goes on from a checkpoint"


def test_ended_trial_is_one_whole_line_in_a_pipe_without_control_characters() -> None:
    seen = Seen(None)
    some_trials(seen)
    lines = seen.file.getvalue().splitlines()
    assert [line[:21].rstrip() for line in lines] == [
        "trial 00000  COMPLETE", "trial 00001  PRUNED", "trial 00002  FAIL",
    ]  # fmt: skip
    assert len(lines[0]) > 80
    assert lines[2].endswith("RuntimeError: two lines red")
    assert not CONTROL.search(seen.file.getvalue().replace("\n", ""))
    assert "".join(seen.heard) == seen.file.getvalue()


def test_pipe_gets_a_heartbeat() -> None:
    seen, said = Seen(None), threading.Event()
    seen.console.listener = lambda text: said.set() if "running" in text else None
    some_trials(seen)
    with seen.progress.showing(heartbeat_s=0.01):
        assert said.wait(60)
    assert re.search(
        r"^1 done, 2 running, 1 pruned, 1 failed of 40 trials; best score 0\.800, trial 00000; "
        r"160 images/s; \d+ s passed; about \d+ (s|min) left$",
        seen.file.getvalue(),
        re.MULTILINE,
    )


@pytest.mark.parametrize("options", [{"quiet": True}, {"force_terminal": True}])
def test_heartbeat_of_a_screen_or_a_quiet_search_is_only_heard(options: dict[str, Any]) -> None:
    file, said = io.StringIO(), threading.Event()
    console = plain_console(file=file, listener=lambda text: said.set(), width=80, **options)
    progress = Progress(console, num_trials=2, metric="score")
    with progress.showing(heartbeat_s=0.01):
        assert said.wait(60)
    assert ";" not in file.getvalue()


def test_seconds_of_a_trial_count_all_its_runs_and_are_never_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    seen = Seen(None)
    seen.progress.known(trial(0, 0.1, 0.2))  # 10 s each
    now_s = 150.0  # it waited, and nothing of it ran
    seen.progress.update(trial(0, 0.1, 0.2))
    now_s = 157.0
    seen.progress.update(trial(0, 0.1, 0.2, 0.3, state="COMPLETE"))
    assert f"3/8 epochs {'27 s':>9}  two" in seen.file.getvalue()
    seen.progress.update(trial(1, 0.1))
    now_s = 157.4
    seen.progress.update(trial(1, 0.1, state="COMPLETE"))
    assert "1/8 epochs under 1 s  two" in seen.file.getvalue(), "and not 0 s"


def test_trials_of_an_earlier_run_count_and_are_not_told_again() -> None:
    seen = Seen(None)
    seen.progress.known(trial(0, 0.9, state="COMPLETE"))
    seen.progress.known(trial(1, 0.5))
    assert seen.file.getvalue() == ""
    assert seen.progress.heartbeat().startswith(
        "1 done, 0 running, 0 pruned, 0 failed of 40 trials; best score 0.900, trial 00000"
    )
