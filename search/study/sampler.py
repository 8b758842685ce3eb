"""What to try next: TPE, made anew for each trial, over what there is to learn from."""

import warnings
from collections.abc import Collection
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from search.internals import all_trials
from trainable.rng import generator


class _Sampler(optuna.samplers.TPESampler):
    """TPE that draws each parameter from a stream of its own, whatever was drawn before it.

    A trial whose driver was killed between two suggestions thus gets the others as it would have.
    It sees the study as `_Learnable` shows it.
    """

    def __init__(self, *purpose: str | int, hidden: Collection[int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "`warn_independent_sampling`", FutureWarning)
            super().__init__(
                seed=generator(*purpose).initial_seed() % 2**32,
                multivariate=True,
                group=True,
                # Trials run at once: one that has no result yet counts as a bad one, so that those
                # asked for meanwhile are not its near copies. Optuna's default, relied upon here.
                constant_liar=True,
                warn_independent_sampling=False,
            )
        self._purpose, self._hidden = purpose, hidden
        self._seen: _Learnable | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return super().sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        fresh = _Sampler(*self._purpose, param_name, hidden=self._hidden)
        return super(_Sampler, fresh).sample_independent(
            self._view(study), trial, param_name, param_distribution
        )

    def _view(self, study: optuna.Study) -> optuna.Study:
        if self._seen is None:
            self._seen = _Learnable(study, self._hidden)
        return self._seen  # type: ignore[return-value]


class _Learnable:
    """A study as it is at the first look, with the trials alone that a sampler can learn from.

    Left out are those in `hidden`, and those without parameters: baselines outside the space, and
    what a resume with other choices left without any. TPE ranks all trials before it drops those
    that lack a parameter, so these would stand for its good ones, and count as random starts.
    """

    def __init__(self, study: optuna.Study, hidden: Collection[int]) -> None:
        self._study = study
        self._trials = [
            trial for trial in all_trials(study) if trial.params and trial.number not in hidden
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Collection[TrialState] | None = None, **_: Any
    ) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def make_sampler(
    seed: int, place: int, *, hidden: Collection[int] = ()
) -> optuna.samplers.BaseSampler:
    """Return the sampler for one trial: multivariate TPE, which follows conditional spaces.

    One for each trial: it looks at the study once.

    Args:
        seed: Of the search.
        place: Of the trial among those that the search asks for.
        hidden: Numbers of trials that it must not learn from, beside those without parameters.
    """
    return _Sampler("sampler", seed, place, hidden=hidden)
