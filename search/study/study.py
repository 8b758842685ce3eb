"""What was tried and what was learnt: every trial's true state, in Optuna's study."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import optuna
from optuna.study import StudyDirection

from results.database import patiently
from results.record import Repeat, Retry
from results.stored_trials import uncollected
from results.trial import Trial, TrialState, from_optuna, to_attributes
from search.internals import ask, ask_again, at_once, live, stored
from search.space.file import SpaceError
from search.space.space import Space
from search.study.learnt import Learnt
from search.study.pruning import decide, is_rung, record_rungs, rung_epoch, rungs_of
from search.study.sampler import make_sampler
from search.study.storage import StudyError
from trainable.config import TrialConfig
from trainable.epoch import Epoch, best_epoch
from trainable.schema import schema_of

_PASSED = "passed_epoch"
T = TypeVar("T")

Observer = Callable[[Trial], None]


class Study:
    """The search's memory: written at every ask, report and tell, so nothing else is needed to
    resume. One driver at a time.

    Suggestions depend on the seed, the trial's number and the recorded history alone: the sampler
    is made anew for every trial, so that a resumed search asks what an undisturbed one would.
    Repeats are no part of that history: other seeds mean other validation images, and a point
    that is there several times would crowd the others out of what the sampler takes for good.
    So a search goes on after its repeats as if they had not been. Neither are trials without
    parameters, such as baselines outside the space: there is nothing in them to learn from.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        *,
        seed: int,
        observers: list[Observer],
        repeats: Sequence[Repeat] = (),
        retries: Sequence[Retry] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the study as it is.

        Args:
            check: Called before anything is written; raises where this driver may not.
        """
        self._study, self._space, self._seed = study, space, seed
        self._check = check
        self._observers = observers
        self._repeats = {repeat.number: repeat for repeat in repeats}
        self._retries = {retry.number: retry for retry in retries}
        self._again = self._repeats.keys() | self._retries.keys()
        self._hidden = {*self._repeats}
        """From the sampler: repeats, and what runs them again."""
        for number, retry in sorted(self._retries.items()):
            if retry.trial in self._hidden:
                self._hidden.add(number)
        self._live: dict[int, optuna.Trial] = {}
        schema = schema_of(study.user_attrs, f"the study {study.study_name}")
        with uncollected():
            self.trials: dict[int, Trial] = {
                each.number: from_optuna(each, schema)
                for each in self._read()
                if "config" in each.user_attrs or each.state == optuna.trial.TrialState.FAIL
            }
        self._to_resume = [*self._unfinished]

    def _read(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that were asked for, and take note of what later events need of them:
        those that run, what there is to learn from, and the values at rungs.
        """
        trials = self._study.get_trials(deepcopy=False, states=_ASKED)
        self._num_asked = len(trials)
        self._unfinished = {each.number: each for each in trials if not each.state.is_finished()}
        failed = {retry.trial for retry in self._retries.values()}
        self._failed = {each.number: each for each in trials if each.number in failed}
        self._learnt = Learnt(self._study, trials, hidden=self._hidden)
        self._rungs = {
            each.number: reached
            for each in trials
            if each.number not in failed and (reached := rungs_of(each))
        }
        return trials

    @property
    def num_finished(self) -> int:
        """How many trials will not run again."""
        return sum(trial.is_finished for trial in self.trials.values())

    @property
    def is_done(self) -> bool:
        """Whether all that was asked for has ended: the search's trials, repeats and retries."""
        ended = {trial.number for trial in self.trials.values() if trial.is_finished}
        num_searched = len(ended - self._again)
        return ended >= self._again and num_searched >= self._space.num_trials

    @property
    def handed_out(self) -> list[int]:
        """Trials that `next` returned and that have not ended, in that order."""
        return list(self._live)

    def hand_back(self) -> None:
        """Have `next` return the trials handed out once more: what ran them is gone."""
        self._to_resume += self._live
        self._live.clear()

    def next(self, *, only_resumed: bool = False) -> Trial | None:
        """Return the trial to run next: one left running, else a new one; None when all are out.

        One that the space gives no configuration is a FAIL already, with the reason.

        Args:
            only_resumed: Ask for no new one.
        """
        self._check()
        if self._to_resume:
            number = self._to_resume.pop(0)
        elif only_resumed:
            return None
        else:
            number = self._num_asked
            if number not in self._again:
                if self._place(number) >= self._space.num_trials:
                    return None
                patiently(lambda: self._enqueue_baseline(self._place(number)))
        self._live[number] = self._asked(number)
        if number not in self.trials:
            self._configure(number)
        return self.trials[number]

    def _configure(self, number: int) -> None:
        """Give a trial its configuration; one that the space gives none is a FAIL."""

        def configure(trial: optuna.Trial) -> Trial | SpaceError:
            try:
                return self._configured(number, trial)
            except SpaceError as error:
                return error  # what was suggested stays

        configured = self._write(number, configure)
        self._take_in(number)
        if isinstance(configured, Trial):
            self._publish(configured)
        else:
            self._publish(_running(number, None))
            self.fail(number, str(configured))

    def _asked(self, number: int) -> optuna.Trial:
        """Ask for trial `number`, or take it if it is there: also by a try that was cut off."""
        self._study.sampler = self._sampler(number)
        is_again = False

        def once() -> optuna.Trial:
            nonlocal is_again
            if is_again:
                self._read()
            is_again = True
            if number in self._unfinished:
                return live(self._study, self._unfinished[number])
            if number in self._retries:
                return ask_again(self._study, self._failed[self._retries[number].trial])
            return ask(self._study)

        trial = patiently(once)
        if trial.number != number:
            raise StudyError(
                f"trial {number} was asked for and came as {trial.number}: something else adds "
                "trials to this study, and a search must be alone in its own"
            )
        self._num_asked = max(self._num_asked, number + 1)
        return trial

    def _place(self, number: int) -> int:
        """Return how many trials the search asked for before this one.

        It names the trial's random streams and its baseline. Repeats and retries do not count, as
        if they had not been; baselines do, also those that the sampler is not shown.
        """
        return number - sum(again < number for again in self._again)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return make_sampler(self._seed, self._place(number), self._learnt)

    def _enqueue_baseline(self, place: int) -> None:
        """Have the next ask take a baseline's parameters, if the space can give it."""
        if place >= len(self._space.baselines):
            return
        parameters = self._space.parameters_of(self._space.baselines[place])
        waiting = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if parameters and not waiting:
            self._study.enqueue_trial(parameters)

    def _configured(self, number: int, trial: optuna.Trial) -> Trial:
        if number in self._repeats:
            return self._repeated(self._repeats[number], trial)
        if number in self._retries:
            failed = self.trials[self._retries[number].trial]
            again = _running(number, failed.config)
            again = replace(
                again, is_baseline=failed.is_baseline, repeat_of=failed.repeat_of,
                retry_of=failed.number,
            )  # fmt: skip
            self._store(trial, None, again)
            return again
        place = self._place(number)
        is_baseline = place < len(self._space.baselines)
        if is_baseline:
            config = TrialConfig.from_dict(self._space.baselines[place])
            if self._space.parameters_of(self._space.baselines[place]):
                self._space.ask(trial)  # the space has it, so the sampler can learn from it
        else:
            config = self._space.ask(trial)
        configured = replace(_running(number, config), is_baseline=is_baseline)
        self._store(trial, None, configured)
        return configured

    def _repeated(self, repeat: Repeat, trial: optuna.Trial) -> Trial:
        original = self.trials[repeat.trial].config
        assert original is not None  # it is COMPLETE
        config = replace(original, seed=repeat.seed)
        repeated = replace(_running(repeat.number, config), repeat_of=repeat.trial)
        self._store(trial, None, repeated)
        return repeated

    def _store(self, live: optuna.Trial, before: Trial | None, now: Trial) -> None:
        """Write what of a trial's attributes is new."""
        stored = to_attributes(before) if before else {}
        for key, value in to_attributes(now).items():
            if key not in stored or stored[key] != value:
                live.set_user_attr(key, value)

    def _write(self, number: int, write: Callable[[optuna.Trial], T]) -> T:
        """Return what `write` returns, all that it writes of a trial at once."""

        def once(is_again: bool) -> T:
            if is_again:  # it must not believe that what was lost is there, nor draw on from there
                self._study.sampler = self._sampler(number)
                self._live[number] = live(self._study, self._live[number])
            return write(self._live[number])

        return at_once(self._study, once)

    def _take_in(self, number: int) -> None:
        """Take note of a trial that was asked for, or that has ended."""
        frozen = stored(self._study, self._live[number])
        self._unfinished[number] = frozen
        if frozen.state.is_finished():
            del self._unfinished[number]
        self._learnt.put(frozen)

    def start(self, number: int, **where: str | float) -> None:
        """Record where the trial runs, by fields of `Trial`."""
        self._check()
        before = self.trials[number]
        started = replace(before, **where)  # type: ignore[arg-type]
        self._write(number, lambda trial: self._store(trial, before, started))
        self._publish(started)

    def count_rerun(self, number: int) -> None:
        """Record that the trial's process died by itself, and that the trial goes on."""
        trial = self.trials[number]
        self._recount(replace(trial, reruns=trial.reruns + 1))

    def count_lost_node(self, number: int) -> None:
        """Record that the trial's node went away, and that the trial goes on elsewhere."""
        trial = self.trials[number]
        self._recount(replace(trial, lost_nodes=trial.lost_nodes + 1))

    def _recount(self, trial: Trial) -> None:
        self._check()
        before = self.trials[trial.number]
        self._write(trial.number, lambda live: self._store(live, before, trial))
        self._publish(trial)

    def report(self, number: int, epoch: Epoch) -> bool:
        """Record an epoch and return whether to prune the trial, which is then told PRUNED.

        An epoch that is already recorded (a resumed trial repeats them) is not recorded twice.
        """
        self._check()
        before = self.trials[number]
        trial = before
        if epoch.number > len(before.epochs):
            trial = replace(before, epochs=(*before.epochs, epoch))
        is_behind = self._write(number, lambda live: self._record(live, before, trial, epoch))
        if trial is not before:
            self._publish(trial)
        if is_behind:
            best = best_epoch(trial.epochs, self._space.metrics[0])
            self._tell(replace(trial, state=TrialState.PRUNED, best=best))
        return is_behind

    def _record(self, live: optuna.Trial, before: Trial, trial: Trial, epoch: Epoch) -> bool:
        """Write an epoch and what is decided after it; return whether the trial is behind."""
        assert trial.config is not None
        if trial is not before:
            self._report_to_optuna(live, epoch)
            self._store(live, before, trial)  # this makes the epoch a recorded one: it comes last
        is_last = epoch.number >= trial.config.epochs
        is_known = epoch.number < len(trial.epochs)
        return not is_known and not is_last and self._should_prune(live, trial, epoch.number)

    def _report_to_optuna(self, live: optuna.Trial, epoch: Epoch) -> None:
        name = self._space.metrics[0]
        if self._is_single and name in epoch.metrics:
            with warnings.catch_warnings():  # that the value is there: of a killed driver
                warnings.simplefilter("ignore", UserWarning)
                live.report(epoch.metrics[name], epoch.number)

    def finish(self, number: int, best: Epoch) -> None:
        """Record that the trial ran all its epochs; values that are not finite make it a FAIL.

        Args:
            number: Of the trial.
            best: What counts as its result.
        """
        values = [best.metrics.get(name, math.nan) for name in self._space.metrics]
        if not all(map(math.isfinite, values)):
            self.fail(number, f"{'/'.join(self._space.metrics)} is not finite: {values}")
            return
        self._tell(replace(self.trials[number], state=TrialState.COMPLETE, best=best))

    def fail(self, number: int, reason: str) -> None:
        """Record that the trial failed, and why."""
        self._tell(replace(self.trials[number], state=TrialState.FAIL, reason=reason))

    def _tell(self, trial: Trial) -> None:
        if self.trials[trial.number].is_finished:
            return  # a worker that died after its last report was run again
        self._check()
        number = trial.number
        self._write(number, lambda live: self._end(live, trial))
        self._take_in(number)
        del self._live[number]
        self._publish(trial)

    def _end(self, live: optuna.Trial, trial: Trial) -> None:
        found = stored(self._study, live).state
        if found.is_finished():  # by a try whose answer was lost
            if found.name != trial.state:
                raise StudyError(
                    f"trial {trial.number} ends as {trial.state} and is {found.name} already: "
                    "something else ends trials of this study"
                )
            return
        self._store(live, self.trials[trial.number], trial)
        if not trial.reason and "reason" in live.user_attrs:  # a killed driver left one
            live.set_user_attr("reason", "")
        values = None
        if trial.state is TrialState.COMPLETE:
            values = [trial.metrics[name] for name in self._space.metrics]
        self._study.tell(live, values, state=optuna.trial.TrialState[trial.state])

    def _should_prune(self, live: optuna.Trial, trial: Trial, epoch: int) -> bool:
        if not self._is_single or trial.repeat_of is not None:
            return False
        assert trial.config is not None
        num_epochs = trial.config.epochs
        if not is_rung(epoch, num_epochs) or live.user_attrs.get(_PASSED, 0) >= epoch:
            return False
        frozen = stored(self._study, live)
        value = frozen.intermediate_values.get(epoch)
        if value is not None:
            # A driver killed between this rung's record and what follows from it left a rung that
            # this epoch has still to decide: without it the same decision is taken again.
            before = rungs_of(frozen)
            decision = decide(
                epoch,
                value,
                {k: v for k, v in before.items() if rung_epoch(k, num_epochs) < epoch},
                [rungs for number, rungs in self._rungs.items() if number != trial.number],
                num_epochs=num_epochs,
                is_maximized=self._study.direction == StudyDirection.MAXIMIZE,
            )
            record_rungs(self._study, live, decision.reached)
            self._rungs[trial.number] = before | dict(decision.reached)
            # Baselines are never pruned, but the others are measured against them.
            if decision.is_behind and not trial.is_baseline:
                return True
        live.set_user_attr(_PASSED, epoch)
        return False

    @property
    def _is_single(self) -> bool:
        return len(self._space.metrics) == 1

    def _publish(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        for observer in self._observers:
            observer(trial)


_ASKED = tuple(state for state in optuna.trial.TrialState if state.name != TrialState.WAITING)


def _running(number: int, config: TrialConfig | None) -> Trial:
    return Trial(number=number, config=config, state=TrialState.RUNNING, is_baseline=False)
