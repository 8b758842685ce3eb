"""What to try next: TPE, made anew for each trial, over what there is to learn from."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from search.internals import num_good
from search.study.learnt import Learnt, Rows
from trainable.rng import generator


class _Sampler(optuna.samplers.TPESampler):
    """TPE that draws each parameter from a stream of its own, whatever was drawn before it.

    A trial whose driver was killed between two suggestions thus gets the others as it would have.
    Of the study it sees what `Learnt` holds.
    """

    def __init__(self, *purpose: str | int, learnt: Learnt) -> None:
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
        self._purpose, self._learnt = purpose, learnt
        self._halves: tuple[Rows, Rows] | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        view: Any = _Showing(study, self._learnt.examples())
        return super().infer_relative_search_space(view, trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        view: Any = _Showing(study, self._learnt.finished.values())
        return super().sample_relative(view, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        fresh = _Sampler(*self._purpose, param_name, learnt=self._learnt)
        view: Any = _Showing(study, self._learnt.finished.values())
        return super(_Sampler, fresh).sample_independent(
            view, trial, param_name, param_distribution
        )

    # What follows does as Optuna's own does, from columns instead of trials: see `Learnt`.

    def _sample(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        if self._halves is None:
            num_below = num_good(study, len(self._learnt.finished))
            self._halves = self._learnt.split(trial.number, num_below)
        below, above = (
            self._build_parzen_estimator(study, search_space, rows, handle_below=is_below)  # type: ignore[arg-type]
            for rows, is_below in zip(self._halves, (True, False), strict=True)
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: each.to_external_repr(best[name]) for name, each in search_space.items()}

    def _compute_acquisition_func(
        self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any
    ) -> np.ndarray:
        # Candidates that are alike are looked at once: of a few choices there are few.
        rows = np.array([*samples.values()])
        unlike, place = np.unique(rows, axis=1, return_inverse=True)
        values = super()._compute_acquisition_func(
            dict(zip(samples, unlike, strict=True)), mpe_below, mpe_above
        )
        return values[place]

    def _get_internal_repr(
        self,
        trials: Any,
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,
    ) -> dict[str, np.ndarray]:
        return self._learnt.observations(trials, search_space)


class _Showing:
    """A study that shows the trials given."""

    def __init__(self, study: optuna.Study, trials: Iterable[optuna.trial.FrozenTrial]) -> None:
        self._study, self._trials = study, [*trials]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *_: Any, **__: Any) -> list[optuna.trial.FrozenTrial]:
        return self._trials


def make_sampler(seed: int, place: int, learnt: Learnt) -> optuna.samplers.BaseSampler:
    """Return the sampler for one trial: multivariate TPE, which follows conditional spaces.

    One for each trial: it looks once at what there is to learn from.

    Args:
        seed: Of the search.
        place: Of the trial among those that the search asks for.
        learnt: What there is to learn from.
    """
    return _Sampler("sampler", seed, place, learnt=learnt)
