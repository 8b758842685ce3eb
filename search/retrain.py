"""The refit: which trial, by which rule, trained on every class for as long as was best."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from upath import UPath

from results.evaluate import compared, evaluate_images, promise_lines, write
from results.history import searched, trials_frame
from results.naming import Names
from results.promise import comparable, intervals_of, promise_of_trials, rates_text
from results.ranking import best_repeated, best_row, ranking_metric, repeated
from results.record import SearchRecord, trial_folder
from results.terminal import duration
from trainable.checkpoint import has_checkpoints, remove_folder, write_atomically
from trainable.classifier import (
    Classifier,
    load_outputs,
    save_classifier,
)
from trainable.config import Task, TrialConfig
from trainable.data.built_in import TEST_CSV, synthetic_folder
from trainable.data.dataset import Data, folder_for_images, load_data, same_data
from trainable.errors import ConfigError, UserError, reason_of, typed
from trainable.novelty.rule import Rule, for_num_classes
from trainable.novelty.scores.sums import plain
from trainable.novelty.thresholds import choose_rule
from trainable.out_of_fold import SUBCLASS_SHARES, Rejected, carried_over, pools_of_refit
from trainable.schema import CONFIG_STEPS, Step, schema_of, stamp, upgraded
from trainable.train import Metrics, together, train

ASKED_FILE = "refit.json"
"""What a refitted classifier was trained by; written when it is whole."""
CHECKPOINTS = "checkpoints"
"""Beside it until then: by a digest of what it is trained by, a folder for each model."""

Work = Callable[[Data, Callable[[str], None]], None]
"""Trains on data, wherever it is called, tells lines for a person, and leaves the model behind."""
Place = Callable[[Work, Data, Callable[[str], None]], None]
"""Does the work: `here`, or elsewhere."""


def here(work: Work, data: Data, note: Callable[[str], None]) -> None:
    """Do the work in this process."""
    work(data, note)


class RefitError(UserError):
    """A search without a trial that could be refitted."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is refitted: a configuration, and what the trials that ran it found."""

    trial: int
    """Number of the one that names the model."""
    config: TrialConfig
    epochs: int
    """How long it trains: the best epoch, or the median of its seeds'."""
    rule: Rule
    """By which its answers go."""
    rejected: Rejected
    """What that rule rejects of the validation images."""
    num_subclasses: int
    """That the trials knew."""
    promise: dict[str, float]
    """What the trials let expect, as `results.promise` says."""


def choose(
    folder: UPath, record: SearchRecord, number: int | None, note: Callable[[str], None]
) -> Choice:
    """Return what to refit of a search, with the median thresholds of its seeds.

    Args:
        folder: Of the search.
        record: Of the search.
        number: Of a trial; null: the best one, by its mean where there are repeats.
        note: Called with lines for a person.

    Raises:
        RefitError: There is no such trial, or none is COMPLETE.
    """
    trials = trials_frame(folder, record)
    row = chosen(trials, record, number)
    note(f"refit of trial {row['number']:05d}: {Names(trials['config']).name(row['config'])}")
    if len(row["seeds"]) > 1:
        note(f"the best mean over {len(row['seeds'])} seeds; their median thresholds")
    numbers = sorted(row["seeds"], key=lambda each: each != row["number"])
    configs = dict(zip(trials["number"], trials["config"], strict=True))
    rules = [_rule(folder, each, configs[each]) for each in numbers]
    outputs = load_outputs(trial_folder(folder, row["number"]))
    return Choice(
        trial=int(row["number"]),
        config=row["config"],
        epochs=int(row["best_epoch"]),
        rule=common_rule([each for each, _ in rules]),
        rejected=common_rejected(rules),
        num_subclasses=outputs.sub_logits.shape[1] - 1,
        promise=promise_of_trials(trials[trials["number"].isin(numbers)]),
    )


def chosen(trials: pd.DataFrame, record: SearchRecord, number: int | None) -> "pd.Series[Any]":
    """Return the trial to refit: its row in `trials`, and `seeds`, the numbers of its repeats.

    Where there are repeats and none is asked for, it is the original of the best mean, with the
    median over its seeds of the best epoch, rounded.
    """
    if number is None:
        best = best_repeated(repeated(trials), ranking_metric(record.metrics, trials))
        if best is not None:
            seeds = best.by_seed
            epoch = round(median(seeds["best_epoch"].astype(float)))
            numbers = seeds["number"].tolist()
            return pd.Series({**best.original, "best_epoch": epoch, "seeds": numbers})
        row = best_row(searched(trials), record.metrics)
        if row is None:
            raise RefitError(f"{record.name}: no trial is COMPLETE, so there is nothing to refit")
        return pd.Series({**row, "seeds": [row["number"]]})
    rows = trials[(trials["number"] == number) & (trials["state"] == "COMPLETE")]
    if not len(rows):
        states = dict(zip(trials["number"], trials["state"], strict=True))
        state = f", it is {states[number]}" if number in states else ""
        table = f"{typed('results.report')} --name {record.name}"
        raise RefitError(
            f"{record.name}: there is no COMPLETE trial {number}{state}; {table} shows them all"
        )
    return pd.Series({**rows.iloc[0], "seeds": [number]})


def _rule(folder: UPath, number: int, config: TrialConfig) -> tuple[Rule, Rejected]:
    """Return a trial's rule, chosen on all of its validation images, and what it rejects there."""
    outputs = load_outputs(trial_folder(folder, number))
    rule = choose_rule(outputs, config)
    return rule, Rejected.by(rule, outputs)


def _scores(rule: Rule) -> tuple[str, str]:
    """Return the names of its scores: what standardises the parts of a sum is each seed's own."""
    return plain(rule.super_score), plain(rule.sub_score)


def common_rejected(rules: Sequence[tuple[Rule, Rejected]]) -> Rejected:
    """Return the median shares that the rules with the scores of the first one reject."""
    alike = [each for rule, each in rules if _scores(rule) == _scores(rules[0][0])]
    by_superclass = zip(*(each.sub for each in alike), strict=True)
    return Rejected(
        median(each.super for each in alike),
        tuple(map(median, by_superclass)),
        median(each.super_of_both for each in alike),
    )


def common_rule(rules: Sequence[Rule]) -> Rule:
    """Return the first rule, with the median thresholds of those that use the same scores.

    One seed's threshold is fitted to the few validation images that this seed drew, and a mean
    would follow the one seed whose threshold went astray.
    """
    first = rules[0]
    alike = [rule for rule in rules if _scores(rule) == _scores(first)]
    return replace(
        first,
        tau_super=median(rule.tau_super for rule in alike),
        tau_sub=tuple(median(taus) for taus in zip(*(rule.tau_sub for rule in alike), strict=True)),
    )


def refit_data(record: SearchRecord, note: Callable[[str], None]) -> Data:
    """Return the data that the search had: its thresholds belong to those classes and images.

    Raises:
        UserError: They cannot be read, or are others by now.
    """
    with folder_for_images(_cache(record)) as images:
        data = load_data(record.data, record.novel, images, note=note)
    if same_data(record.data_fingerprint, data.fingerprint, note):
        return data
    raise RefitError(
        f"{record.data} and {record.novel} are other data than the search had: their fingerprint "
        f"was {record.data_fingerprint}, now it is {data.fingerprint}, and the thresholds found "
        f"belong to those. Bring them back ({typed('search.run')} --resume "
        f"--name {record.name} --data PATH --novel PATH, if they have moved), or start a new search"
    )


def retrain(
    choice: Choice,
    record: SearchRecord,
    data: Data,
    target: UPath,
    note: Callable[[str], None],
    *,
    ensemble: int = 1,
    where: Place = here,
) -> None:
    """Train, unless `target` holds what would come of it: of a refit that could not register.

    One that was interrupted goes on after its last epoch, if the same is asked.

    Args:
        choice: What.
        record: Of the search.
        data: That it had.
        target: Where the model goes.
        note: Called with lines for a person.
        ensemble: So many models are trained, each from a seed of its own, and answer as one.
        where: The training is done: `here`, or on a cluster.

    Raises:
        TrialError: The training cannot go on.
    """
    rule = for_num_classes(choice.rule, choice.num_subclasses, len(data.subclasses))
    asked = _asked(choice, rule, record, data) | ({"ensemble": ensemble} if ensemble > 1 else {})
    content = json.dumps(asked, indent=2)
    file = target / ASKED_FILE
    checkpoints = target / CHECKPOINTS
    if file.exists() and _stored(file) == json.loads(content):
        note(f"{target} is trained already; to train it again, delete that folder")
    else:
        if file.exists():
            file.unlink()
        named = f"{content} {SUBCLASS_SHARES}"  # as many further heads are in a checkpoint
        own = checkpoints / hashlib.sha256(named.encode()).hexdigest()[:16]
        # Elsewhere needs no passwords, and has another working folder.
        record = replace(record, study=None, tracking_uri="")
        choice = replace(choice, rule=rule)
        work = partial(_train, choice, record, target.absolute(), own.absolute(), ensemble)
        where(work, data, note)
        write_atomically(file, content.encode())
    remove_folder(checkpoints)  # also of a refit that was interrupted just before this


def _asked(choice: Choice, rule: Rule, record: SearchRecord, data: Data) -> dict[str, Any]:
    """Return what a refit is trained by, ready for JSON: another one of it is trained anew."""
    return {
        "config": choice.config.to_dict(), "best_epoch": choice.epochs,
        "rule": asdict(rule), "data": data.fingerprint, "weights": record.weights,
        "cache": record.cache, **stamp(),
    }  # fmt: skip


def _asked_to_2(values: dict[str, Any]) -> dict[str, Any]:
    config = upgraded(values["config"], 1, CONFIG_STEPS[:1])
    return values | {"config": config, "schema": 2}


ASKED_STEPS: tuple[Step, ...] = (_asked_to_2,)
"""Of what a refit was trained by; version 0.2 wrote some without a number, in the form of 2."""


def _stored(file: UPath) -> dict[str, Any] | None:
    """Return what an earlier refit was trained by; null: the file is damaged.

    Raises:
        SchemaError: A later version wrote it.
    """
    try:
        stored = json.loads(file.read_text())
        found = upgraded(stored, schema_of(stored, str(file)), ASKED_STEPS)
        # A key that is younger than the file has its default there.
        return found | {"config": TrialConfig.from_dict(found["config"]).to_dict()}
    except (ValueError, TypeError, AttributeError, KeyError, ConfigError):
        return None


def _train(
    choice: Choice,
    record: SearchRecord,
    target: UPath,
    checkpoints: UPath,
    ensemble: int,
    data: Data,
    note: Callable[[str], None],
) -> None:
    """Train on everything for as many epochs as were best; the answers go by the rule, carried
    over.

    The learning-rate schedule is that of the trial, ended early where its best epoch was. Members
    of an ensemble train on the same images, so thresholds are found on what they say together.
    """
    rule, epochs = choice.rule, choice.epochs
    super_score, sub_score = _scores(rule)
    scores: dict[str, Any] = {"super_novelty_score": super_score, "sub_novelty_score": sub_score}
    config = replace(choice.config, **scores)
    asked = pools_of_refit(data, config)
    pools = asked.whole
    if asked.shares:
        what = "images or subclasses" if asked.subclasses else "images"
        note(
            f"{_thresholds(asked.by_heads)}: by {len(asked.shares)} further heads for each frozen "
            f"one, each trained without a share of the known {what} and asked about it"
        )
    if len(pools.val):
        note(
            f"{_thresholds(asked.by_kept)}: by {len(pools.val):,} known images, a twentieth, which "
            "train nothing, as what is tuned cannot be asked about images that it has seen"
        )

    def report(metrics: Metrics) -> None:
        if epochs == 0:
            return  # the heads as they were drawn
        note(
            f"epoch {metrics['epoch']:.0f}/{epochs}  train_loss {metrics['train_loss']:.3f}"
            f"  {duration(metrics['epoch_s'])}"
        )

    if ensemble > 1:
        note(_price(config, ensemble))
    members = []
    for number in range(ensemble):
        if ensemble > 1:
            note(f"member {number + 1} of {ensemble}")
        folder = checkpoints / f"{number:02d}"
        if has_checkpoints(folder):
            note("it goes on from its checkpoint; the epochs before it are told again")
        members.append(
            train(
                replace(config, seed=(config.seed + number) % 2**31),
                data,
                report,
                pools=pools,
                folder=folder,
                cache=_cache(record),
                is_fast=record.is_fast,
                weights=Path(record.weights) if record.weights else None,
                stop_after=epochs,
                shares=asked.shares,
                judge=False,
                note=note,
            )
        )
    result = together(members)
    rule = carried_over(rule, choice.rejected, asked, result)
    save_classifier(
        target,
        config,
        data,
        pools,
        result.branches,
        result.metrics,
        rule,
        result.banks,
        self_contained=True,
        promise=choice.promise,
    )


def _thresholds(tasks: Sequence[Task]) -> str:
    return "thresholds" if len(tasks) > 1 else f"threshold of the {tasks[0]}class"


def _price(config: TrialConfig, ensemble: int) -> str:
    """Return a line that says what an ensemble costs, and what holds of it."""
    is_tuned = any(each.fine_tune != "frozen" for each in config.branches())
    asked = f"{ensemble} times the time where it is tuned" if is_tuned else "the time of one"
    return (
        f"ensemble of {ensemble}: trains {ensemble} times, predicts in {asked}; thresholds that "
        "are found anew are of all members together, what is promised is of one"
    )


def _cache(record: SearchRecord) -> Path | None:
    return Path(record.cache) if record.cache else None


def say_promise(
    choice: Choice, record: SearchRecord, target: UPath, note: Callable[[str], None]
) -> None:
    """Say what the trials promised; with the built-in data also what came of it."""
    if record.data == "synthetic":
        evaluate_built_in(record, target, choice.promise, note)
    else:
        note(f"promised: {rates_text(choice.promise, intervals_of(choice.promise))}")


def evaluate_built_in(
    record: SearchRecord, target: UPath, promise: dict[str, float], note: Callable[[str], None]
) -> None:
    """Say in two lines what was promised and what the built-in data's own test images show; write
    the evaluation and its page beside the model.
    """
    from results.report.evaluated import Asked, write_evaluation_page  # late: matplotlib

    out, classifier = target / "evaluation", Classifier.load(target)
    with folder_for_images(_cache(record)) as cache:
        images = synthetic_folder(cache)
        labels = images / TEST_CSV
        found = evaluate_images(classifier, str(images), labels, note)
        promise, told = comparable(promise, found.counts)
        write(out, found, promise)
        for line in (*promise_lines(found, promise), told):
            if line:
                note(line)
        asked = Asked(
            model=str(target), images=str(images), labels=str(labels),
            stored_size=classifier.stored_size, told=told,
        )  # fmt: skip
        try:
            page = write_evaluation_page(out, asked, found, compared(found, promise))
        except Exception as error:  # noqa: BLE001 (whatever it is, model and figures are there)
            note(f"{out / 'index.html'} is not written ({reason_of(error)})")
        else:
            note(f"wrote {page[0]}")
