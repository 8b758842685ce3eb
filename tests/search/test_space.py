"""A space file is checked before anything starts, and --set holds for every trial."""

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from upath import UPath

import search.space.file
from search.space.file import DRY_TRIALS, SpaceError
from search.space.space import Space, load_space
from search.space.suggestions import described
from trainable.config import TASKS, TrialConfig
from trainable.novelty.bank import all_of_features

SPACES = Path(__file__).parents[2] / "spaces"
FILES = sorted(path.name for path in SPACES.glob("*.py") if path.name != "__init__.py")

HEADER = '"""Does it load?"""\nNUM_TRIALS = 3\nEPOCHS = 2\n'
EMPTY = "def space(trial):\n    return {}\n"
CONDITIONAL = """
def space(trial):
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config = {"architecture": architecture, "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True)}
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.1, 1.0)
    else:
        config["super_lr"] = trial.suggest_float("super_lr", 1e-4, 1e-2)
        config["sub_lr"] = trial.suggest_float("sub_lr", 1e-4, 1e-2)
    return config
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Where a test puts its space file."""
    return tmp_path / "asked.py"


def load(asked: Path, text: str, **options: Any) -> Space:
    asked.write_text(text)
    return load_space(UPath(asked), **options)


def one_sample(space: Space, seed: int = 0) -> tuple[TrialConfig, optuna.Trial]:
    """Return the configuration of one random trial, and the trial."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return space.configure(trial), trial


# --- The files of this repository ----------------------------------------------------------------


def test_every_space_file_is_under_test() -> None:
    assert {"full_ablation.py", "paper.py", "smoke.py"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_space_file_of_the_repository_loads_and_gives_valid_configurations(name: str) -> None:
    space = load_space(UPath(SPACES / name))
    dry = 0 if space.function is None else DRY_TRIALS
    assert len(space.samples) == len(space.baselines) + dry
    assert space.num_trials >= len(space.baselines)
    assert space.question.endswith("?")
    for config in space.samples:
        assert TrialConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", FILES)
def test_space_file_of_the_repository_says_its_command_and_cost(name: str) -> None:
    source = load_space(UPath(SPACES / name)).source.decode()
    assert f"python -m search.run --space spaces/{name}" in source
    assert re.search(r"^Cost: ", source, re.MULTILINE)


def test_paper_space_is_five_configurations_for_each_of_three_seeds() -> None:
    space = load_space(UPath(SPACES / "paper.py"))
    assert space.function is None
    assert space.num_trials == len(space.baselines) == 15
    seeds = [baseline["seed"] for baseline in space.baselines]
    assert Counter(seeds) == {0: 5, 1: 5, 2: 5}
    assert seeds[:5] == [0] * 5
    one_seed = [{**baseline, "seed": 0} for baseline in space.baselines]
    assert one_seed[:5] == one_seed[5:10] == one_seed[10:]


def paper_configurations(space: Space) -> list[dict[str, Any]]:
    """Return what the paper's five configurations differ in."""
    keys = ("architecture", "novel_images", "fine_tune", "lr", "sub_head")
    return [{key: baseline[key] for key in keys} for baseline in space.baselines[:5]]


def test_paper_and_full_ablation_start_with_the_papers_five_configurations() -> None:
    a = {
        "architecture": "two_heads",
        "novel_images": 5000,
        "fine_tune": "full",
        "lr": 1e-4,
        "sub_head": None,
    }
    b = a | {"architecture": "two_models"}
    expected = [
        a,
        b,
        b | {"novel_images": 1000},
        b | {"fine_tune": "frozen", "lr": 1e-2},
        b | {"sub_head": "cosine"},
    ]
    for name in ("paper.py", "full_ablation.py"):
        space = load_space(UPath(SPACES / name))
        assert paper_configurations(space) == expected
        assert (space.baselines[0]["alpha"], space.baselines[0]["temperature"]) == (0.1, 1.0)


@pytest.mark.parametrize(
    "name", ["frozen_heads.py", "full_ablation.py", "thresholds.py", "backbones.py"]
)
def test_frozen_superclass_branches_may_be_told_by_features_and_bounds(name: str) -> None:
    """Thresholds found on borrowed images find hardly any superclass that was left out."""
    samples = load_space(UPath(SPACES / name)).samples
    frozen = [each for each in samples if each.of("super", "fine_tune") == "frozen"]
    scores = {each.of("super", "novelty_score") for each in frozen}
    assert scores & set(all_of_features())
    assert scores - set(all_of_features())
    for task in ("super", "sub"):
        assert any(getattr(each, f"known_rejection_{task}") is not None for each in samples)


def test_full_ablation_meets_every_question_of_the_paper() -> None:
    space = load_space(UPath(SPACES / "full_ablation.py"))
    sampled = space.samples[len(space.baselines) :]
    assert {config.architecture for config in sampled} == {"two_heads", "two_models"}
    assert {config.novel_images for config in sampled} == {0, 1000, 5000}
    for task in ("super", "sub"):
        assert {config.of(task, "head") for config in sampled} == {"linear", "cosine"}
        taus = [getattr(config, f"tau_{task}") for config in sampled]
        assert None in taus
        assert len(set(taus)) > 5
    for architecture in ("two_heads", "two_models"):
        of_it = [config for config in sampled if config.architecture == architecture]
        for task in TASKS:
            modes = {config.of(task, "fine_tune") for config in of_it}
            assert {mode.rstrip("0123456789") for mode in modes} == {"full", "frozen", "last_"}
            assert len({config.of(task, "lr") for config in of_it}) > 5
    two_models = [config for config in sampled if config.architecture == "two_models"]
    assert any(c.of("super", "fine_tune") != c.of("sub", "fine_tune") for c in two_models)
    two_heads = [config for config in sampled if config.architecture == "two_heads"]
    assert len({config.alpha for config in two_heads}) > 5
    assert len({config.temperature for config in two_heads}) > 5
    assert {"alpha", "temperature", "tau_super", "tau_sub"} <= set(space.distributions)


# --- Mistakes ------------------------------------------------------------------------------------


def test_unknown_key_names_file_key_and_nearest(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + "def space(trial):\n    return {'alhpa': 0.1}\n")
    assert str(raised.value) == f"{asked}: unknown key 'alhpa' (did you mean 'alpha'?)"


def test_key_met_in_one_branch_of_the_space_only_is_checked(asked: Path) -> None:
    text = HEADER + CONDITIONAL.replace('config["sub_lr"]', 'config["sub_lrr"]')
    with pytest.raises(SpaceError, match=r"unknown key 'sub_lrr' \(did you mean 'sub_lr'\?\)"):
        load(asked, text)


def test_key_that_is_not_a_string_is_an_unknown_key(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py: unknown key 1"):
        load(asked, HEADER + "def space(trial):\n    return {1: 0.1}\n")


def test_value_out_of_range_names_file_rule_and_value(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + "def space(trial):\n    return {'alpha': -1.0}\n")
    assert str(raised.value) == f"{asked}: `0 <= alpha <= 1000` must hold, but got -1.0"


def test_nan_is_out_of_range(asked: Path) -> None:
    with pytest.raises(SpaceError, match="alpha <= 1000` must hold, but got nan"):
        load(asked, HEADER + "def space(trial):\n    return {'alpha': float('nan')}\n")


def test_space_that_raises_names_file_line_and_error(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + "\n\ndef space(trial):\n    raise KeyError('lr')\n")
    assert str(raised.value) == f"{asked}: space() raised KeyError in line 7: 'lr'"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("suggest_float('lr', 1.0, 0.5)", r"ValueError in line 7: `low <= high` must hold"),
        ("suggest_flot('lr', 0.5, 1.0)", r"AttributeError in line 7: .*suggest_flot"),
    ],
)
def test_wrong_call_of_optuna_names_the_line_of_the_space_file(
    asked: Path, call: str, reason: str
) -> None:
    with pytest.raises(SpaceError, match=reason):
        load(asked, HEADER + f"\n\ndef space(trial):\n    return {{'lr': trial.{call}}}\n")


def test_space_that_prunes_is_refused(asked: Path) -> None:
    text = HEADER + "import optuna\ndef space(trial):\n    raise optuna.TrialPruned\n"
    with pytest.raises(SpaceError, match=r"asked\.py: space\(\) raised TrialPruned in line 6"):
        load(asked, text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEADER + "while True:\n    pass\n", id="in the file"),
        pytest.param(HEADER + "def space(trial):\n    while True:\n        pass\n", id="in space"),
        pytest.param(
            HEADER + "while True:\n    try:\n        while True:\n            pass\n"
            "    except Exception:\n        pass\n",
            id="and catches what stops it",
        ),
    ],
)
def test_file_that_loops_is_stopped(
    asked: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(search.space.file, "TIME_LIMIT_S", 0.2)
    with pytest.raises(
        SpaceError, match=r"asked\.py: running it and 40 dry trials took over 0\.2 s"
    ):
        load(asked, text)


@pytest.mark.parametrize("returned", ["None", "[1]", "'lr'"])
def test_space_that_returns_no_dict_is_refused(asked: Path, returned: str) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py: space\(\) must return a dict of config keys"):
        load(asked, HEADER + f"def space(trial):\n    return {returned}\n")


def test_missing_num_trials_is_refused(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"NUM_TRIALS is missing: add NUM_TRIALS = N .* --trials"):
        load(asked, EMPTY)
    assert load(asked, EMPTY, num_trials=4).num_trials == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NUM_TRIALS = 0\n", "at least one trial must be asked for, but got 0"),
        ("NUM_TRIALS = 2.5\n", "NUM_TRIALS must be a whole number of 0 or more, but got 2.5"),
        ("NUM_TRIALS = True\n", "NUM_TRIALS must be a whole number of 0 or more, but got True"),
        ("NUM_TRIALS = 2\nEPOCHS = '9'\n", "EPOCHS must be a whole number of 0 or more, but got"),
        ("NUM_TRIALS = 2\nEPOCHS = -1\n", "EPOCHS must be a whole number of 0 or more, but got -1"),
    ],
)
def test_counts_must_be_whole_numbers(asked: Path, text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        load(asked, text + EMPTY)


def test_unknown_metric_names_the_nearest(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + "METRIC = 'unseen_supr'\n" + EMPTY)
    assert str(raised.value) == (
        f"{asked}: unknown METRIC 'unseen_supr' (did you mean 'unseen_super'?)"
    )


@pytest.mark.parametrize("metric", ["()", "('score', 'score')", "3", "None", "('score', [])"])
def test_metric_that_is_no_name_and_no_tuple_of_names_is_refused(asked: Path, metric: str) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py: .*METRIC"):
        load(asked, HEADER + f"METRIC = {metric}\n" + EMPTY)


def test_missing_file_is_named(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load_space(UPath(asked))
    assert str(raised.value) == f"--space {asked}: cannot be read (No such file or directory)"


def test_folder_is_no_space_file(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"cannot be read \(Is a directory\)"):
        load_space(UPath(tmp_path))


def test_file_that_is_not_text_is_refused(asked: Path) -> None:
    asked.write_bytes(b"\xff\xfe\x00NUM_TRIALS")
    with pytest.raises(SpaceError, match=r"--space .*asked\.py: not a text file"):
        load_space(UPath(asked))


def test_syntax_error_names_file_and_line(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py, line 4: SyntaxError: expected ':'"):
        load(asked, HEADER + "def space(trial)\n    return {}\n")


def test_file_that_raises_names_file_and_line(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py, line 4: ZeroDivisionError"):
        load(asked, HEADER + "NUM_TRIALS = 1 // 0\n" + EMPTY)


def test_file_with_neither_space_nor_baselines_is_refused(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"it needs a function space\(trial\), BASELINES, or both"):
        load(asked, HEADER)


def test_space_that_is_no_function_is_refused(asked: Path) -> None:
    with pytest.raises(SpaceError, match="`space` must be a function of an Optuna trial"):
        load(asked, HEADER + "space = {}\n")


@pytest.mark.parametrize("baselines", ["{'alpha': 0.1}", "[1]", "[{}, None]", "'A'"])
def test_baselines_must_be_a_list_of_dicts(asked: Path, baselines: str) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py: BASELINES must be a list of dicts"):
        load(asked, HEADER + f"BASELINES = {baselines}\n" + EMPTY)


def test_baseline_with_a_bad_key_names_its_number_and_the_nearest_key(asked: Path) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + "BASELINES = [{}, {'batch_sise': 8}]\n" + EMPTY)
    assert str(raised.value) == (
        f"{asked}: BASELINES[1]: unknown key 'batch_sise' (did you mean 'batch_size'?)"
    )


# --- What a file may leave out, and what the command line changes --------------------------------


def test_question_is_the_first_line_of_the_docstring(asked: Path) -> None:
    text = '"""\nWhich one?\n\nMore.\n"""\nNUM_TRIALS = 1\n' + EMPTY
    assert load(asked, text).question == "Which one?"


@pytest.mark.parametrize("docstring", ["", '""" """\n'])
def test_file_without_a_question_is_called_by_its_name(asked: Path, docstring: str) -> None:
    assert load(asked, docstring + "NUM_TRIALS = 1\n" + EMPTY).question == "asked"


def test_file_of_baselines_alone_needs_no_number_of_trials(asked: Path) -> None:
    space = load(asked, "BASELINES = [{'alpha': 0.1}, {'alpha': 0.2}]\n")
    assert space.num_trials == 2
    assert [config.alpha for config in space.samples] == [0.1, 0.2]
    assert space.distributions == {}
    assert space.parameters_of(space.baselines[0]) is None


def test_file_of_baselines_alone_runs_no_more_trials_than_it_has(asked: Path) -> None:
    text = "BASELINES = [{'alpha': 0.1}, {'alpha': 0.2}]\n"
    assert load(asked, text, num_trials=9).num_trials == 2
    assert load(asked, text, num_trials=1).num_trials == 1


def test_baselines_are_completed_with_defaults(asked: Path) -> None:
    space = load(asked, HEADER + "BASELINES = [{'alpha': 0.5}]\n" + EMPTY, seed=7)
    assert space.baselines == (TrialConfig(alpha=0.5, epochs=2, seed=7).to_dict(),)


def test_tuple_of_metrics_makes_several_objectives(asked: Path) -> None:
    text = HEADER + "METRIC = ('seen_sub', 'unseen_sub')\n" + EMPTY
    assert load(asked, text).metrics == ("seen_sub", "unseen_sub")


def test_command_line_overrides_trials_epochs_metric_and_seed(asked: Path) -> None:
    text = HEADER + "def space(trial):\n    return {'epochs': 9}\n"
    space = load(asked, text, num_trials=8, epochs=5, metric=["ce_sub"], seed=3)
    assert (space.num_trials, space.metrics) == (8, ("ce_sub",))
    assert {(config.epochs, config.seed) for config in space.samples} == {(5, 3)}


def test_seed_of_the_command_line_lies_under_what_the_file_says(asked: Path) -> None:
    text = HEADER + "BASELINES = [{'seed': 1}, {}]\ndef space(trial):\n    return {'seed': 2}\n"
    space = load(asked, text, seed=9)
    assert [config.seed for config in space.samples[:3]] == [1, 9, 2]


def test_ranges_of_what_was_suggested_read_as_a_person_writes_them(asked: Path) -> None:
    ranges = load(asked, HEADER + CONDITIONAL).distributions
    assert described(ranges["architecture"]) == "two_heads, two_models"
    assert described(ranges["lr"]) == "0.0001 to 0.01, log scale"
    assert described(ranges["alpha"]) == "0.1 to 1"


def test_same_file_is_sampled_the_same_way_every_time(asked: Path) -> None:
    assert load(asked, HEADER + CONDITIONAL).samples == load_space(UPath(asked)).samples


# --- Fixed keys ----------------------------------------------------------------------------------


def test_fixed_key_holds_for_baselines_and_sampled_trials_and_is_not_sampled(asked: Path) -> None:
    text = HEADER + "BASELINES = [{'alpha': 0.7, 'temperature': 2.0}]\n" + CONDITIONAL
    space = load(asked, text, fixed={"architecture": "two_heads", "alpha": 0.25})
    assert {config.alpha for config in space.samples} == {0.25}
    assert {config.architecture for config in space.samples} == {"two_heads"}
    assert set(space.distributions) == {"lr"}
    config, trial = one_sample(space)
    assert trial.params == {"lr": config.lr}


def test_fixed_key_that_the_space_never_mentions_is_set(asked: Path) -> None:
    space = load(asked, HEADER + CONDITIONAL, fixed={"batch_size": 16})
    assert {config.batch_size for config in space.samples} == {16}


def test_fixing_lr_overrides_the_lr_of_each_branch(asked: Path) -> None:
    text = HEADER + "BASELINES = [{'architecture': 'two_models', 'super_lr': 1e-3}]\n" + CONDITIONAL
    space = load(asked, text, fixed={"lr": 5e-3})
    assert {(c.of("super", "lr"), c.of("sub", "lr")) for c in space.samples} == {(5e-3, 5e-3)}
    assert {"lr", "super_lr", "sub_lr"}.isdisjoint(space.distributions)


def test_fixing_the_lr_of_one_branch_leaves_the_other(asked: Path) -> None:
    fixed = {"architecture": "two_models", "super_lr": 5e-3}
    space = load(asked, HEADER + CONDITIONAL, fixed=fixed)
    assert {config.of("super", "lr") for config in space.samples} == {5e-3}
    assert len({config.of("sub", "lr") for config in space.samples}) == DRY_TRIALS
    assert set(space.distributions) == {"lr", "sub_lr"}


def test_baselines_that_a_fixed_key_makes_equal_are_tried_once(asked: Path) -> None:
    text = HEADER + "BASELINES = [{'alpha': 0.1}, {'alpha': 0.2}, {'lr': 1e-3}]\n" + EMPTY
    space = load(asked, text, fixed={"alpha": 0.3})
    assert [baseline["lr"] for baseline in space.baselines] == [1e-4, 1e-3]


def test_fixed_value_out_of_range_is_refused(asked: Path) -> None:
    with pytest.raises(SpaceError, match="alpha <= 1000` must hold, but got -1"):
        load(asked, HEADER + EMPTY, fixed={"alpha": -1})


# --- Baselines inside and outside the space ------------------------------------------------------

INSIDE = {"architecture": "two_heads", "lr": 1e-3, "alpha": 0.5}


@pytest.mark.parametrize(
    ("baseline", "parameters"),
    [
        (INSIDE, INSIDE),
        (
            {"architecture": "two_models", "lr": 1e-3, "super_lr": 2e-3, "sub_lr": 3e-3},
            {"architecture": "two_models", "lr": 1e-3, "super_lr": 2e-3, "sub_lr": 3e-3},
        ),
    ],
)
def test_parameters_of_a_baseline_inside_the_space_give_it_back(
    asked: Path, baseline: dict[str, Any], parameters: dict[str, Any]
) -> None:
    space = load(asked, HEADER + f"BASELINES = [{baseline}]\n" + CONDITIONAL)
    found = space.parameters_of(space.baselines[0])
    assert found == parameters
    assert found is not None
    again = space.configure(optuna.trial.FixedTrial(found))  # type: ignore[arg-type]
    assert again.to_dict() == space.baselines[0]


@pytest.mark.parametrize(
    "baseline",
    [
        pytest.param(INSIDE | {"alpha": 2.0}, id="out of range"),
        pytest.param(INSIDE | {"lr": 1e-5}, id="out of a log range"),
        pytest.param(INSIDE | {"batch_size": 8}, id="a key that the space never returns"),
        pytest.param({"architecture": "two_models", "lr": 1e-3}, id="a key that it leaves out"),
    ],
)
def test_baseline_outside_the_space_has_no_parameters(
    asked: Path, baseline: dict[str, Any]
) -> None:
    space = load(asked, HEADER + f"BASELINES = [{baseline}]\n" + CONDITIONAL)
    assert space.parameters_of(space.baselines[0]) is None


def test_baseline_with_another_choice_has_no_parameters(asked: Path) -> None:
    text = CONDITIONAL.replace('["two_heads", "two_models"]', '["two_models"]')
    space = load(asked, HEADER + f"BASELINES = [{INSIDE}]\n" + text)
    assert space.parameters_of(space.baselines[0]) is None


def test_parameters_of_a_baseline_leave_out_what_is_fixed(asked: Path) -> None:
    text = HEADER + f"BASELINES = [{INSIDE}]\n" + CONDITIONAL
    space = load(asked, text, fixed={"alpha": 0.5})
    assert space.parameters_of(space.baselines[0]) == {"architecture": "two_heads", "lr": 1e-3}


# --- What the study could not keep ---------------------------------------------------------------

CHOICES = (
    HEADER
    + """
import enum, pathlib
import numpy as np
class Size(enum.IntEnum):
    SMALL = 32
SIZES = {sizes}
def space(trial):
    trial.suggest_categorical("size", SIZES)
    return {{}}
"""
)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ("[(32, 32), (32, 48)]", r"choice \(32, 32\) of 'size' is a tuple, .* as JSON"),
        ("[[32], [48]]", "is a list"),
        ("[np.float64(0.5), 1.0]", "is a float64"),
        ("[np.int64(5), 1]", "is a int64"),
        ("[np.bool_(True), False]", "is a bool"),
        ("[{1: 2}, {3: 4}]", "is a dict"),
        ("[Size.SMALL, 64]", "is a Size"),
        ("[pathlib.Path('a'), 'b']", "is a PosixPath"),
        ("[b'a', 'b']", "is a bytes"),
        ("[{1}, 'b']", "is a set"),
        ("[0.5, float('nan')]", "choice nan of 'size' is not finite"),
        ("[0.5, float('inf')]", "choice inf of 'size' is not finite"),
        ("[0, False]", "choices 0 and False of 'size' are equal"),
        ("[1, 1.0]", "choices 1 and 1.0 of 'size' are equal"),
    ],
)
def test_choices_that_the_study_would_give_back_as_others_are_refused(
    asked: Path, sizes: str, reason: str
) -> None:
    with pytest.raises(SpaceError, match=rf"space\(\) raised TypeError in line 11: .*{reason}"):
        load(asked, CHOICES.format(sizes=sizes))


def test_choices_of_json_come_back_as_they_were(asked: Path, tmp_path: Path) -> None:
    choices = [None, True, 3, 0.5, "text"]
    space = load(asked, CHOICES.format(sizes=f"tuple({choices})"))
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 's.db'}")
    space.configure(study.ask())
    (trial,) = study.get_trials()
    kept = trial.distributions["size"].choices  # type: ignore[attr-defined]
    assert [(type(c), c) for c in kept] == [(type(c), c) for c in choices]


@pytest.mark.parametrize("name", ["3", "None", "''", "'x' * 513"])
def test_name_of_a_parameter_that_cannot_be_kept_is_refused(asked: Path, name: str) -> None:
    text = HEADER + f"def space(trial):\n    return {{'lr': trial.suggest_float({name}, 0.1, 1)}}\n"
    with pytest.raises(SpaceError, match="a parameter's name must be a text of 1 to 512"):
        load(asked, text)


@pytest.mark.parametrize(
    ("call", "low", "high"),
    [
        ("suggest_float(name='lr', low=0.1, high=0.2)", 0.1, 0.2),
        ("suggest_float('lr', high=0.2, low=0.1, log=True)", 0.1, 0.2),
        ("suggest_float('lr', 0.1, 0.2, step=0.05)", 0.1, 0.2),
        ("suggest_categorical(name='lr', choices=(0.1, 0.2))", 0.1, 0.2),
        ("suggest_categorical('lr', choices=iter([0.1, 0.2]))", 0.1, 0.2),
        ("suggest_int(name='lr', low=1, high=2)", 1, 2),
        ("suggest_int('lr', 1, 2, step=1, log=False)", 1, 2),
    ],
)
@pytest.mark.parametrize("is_fixed", [False, True])
def test_every_way_that_optuna_is_called_works_fixed_or_not(
    asked: Path, call: str, low: float, high: float, is_fixed: bool
) -> None:
    text = HEADER + f"def space(trial):\n    return {{'lr': trial.{call}}}\n"
    space = load(asked, text, fixed={"lr": 0.15} if is_fixed else {})
    found = {config.lr for config in space.samples}
    assert found == {0.15} if is_fixed else all(low <= lr <= high for lr in found)
    assert len(space.distributions) == (0 if is_fixed else 1)


def test_call_without_a_name_is_blamed_on_its_line(asked: Path) -> None:
    with pytest.raises(SpaceError, match=r"TypeError in line 5: a parameter's name must be"):
        load(asked, HEADER + "def space(trial):\n    return {'lr': trial.suggest_float()}\n")


# --- A file as Python reads it -------------------------------------------------------------------


def test_modules_beside_the_file_are_found_and_kept_for_the_resume(
    asked: Path, tmp_path: Path
) -> None:
    (tmp_path / "sizes_here.py").write_text("from rates_here import LOW\nSIZE = 8\n")
    (tmp_path / "rates_here.py").write_text("LOW = 0.25\n")
    (tmp_path / "late_here.py").write_text("VALUE = 0.5\n")
    (tmp_path / "pack_here").mkdir()
    (tmp_path / "pack_here/__init__.py").write_text("from .inner import WD\n")
    (tmp_path / "pack_here/inner.py").write_text("WD = 0.125\n")
    (tmp_path / "plain_folder").mkdir()
    (tmp_path / "plain_folder/deep.py").write_text("MIXUP = 0.75\n")
    (tmp_path / "not_asked_for.py").write_text("raise RuntimeError\n")
    text = HEADER + (
        "import importlib\n"
        "from pack_here import WD\nfrom sizes_here import LOW, SIZE\n"
        "from plain_folder.deep import MIXUP\n"
        "def space(trial):\n"
        "    return {'batch_size': SIZE, 'lr': LOW, 'weight_decay': WD, 'mixup': MIXUP,\n"
        "            'alpha': importlib.import_module('late_here').VALUE}\n"
    )
    space = load(asked, text)
    expected = (8, 0.25, 0.125, 0.75, 0.5)
    kept = tmp_path / "runs" / "asked"
    space.save(UPath(kept), "space.py")
    for each in tmp_path.glob("*_here.py"):
        each.write_text("raise RuntimeError('the original was asked')\n")
    for loaded in (space, load_space(UPath(kept / "space.py"))):
        config = loaded.samples[-1]
        found = (config.batch_size, config.lr, config.weight_decay, config.mixup, config.alpha)
        assert found == expected
    (kept / "space_modules/of_an_older_start.py").touch()
    space.save(UPath(kept), "space.py")
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert names == {"space.py"} | {
        f"space_modules/{name}.py"
        for name in ("sizes_here", "rates_here", "late_here", "pack_here/__init__",
                     "pack_here/inner", "plain_folder/deep")
    }  # fmt: skip


def test_files_in_two_folders_have_their_own_module_of_one_name(tmp_path: Path) -> None:
    spaces = []
    text = HEADER + (
        "from common_here import SIZE\ndef space(trial):\n"
        "    import common_here\n    return {'batch_size': common_here.SIZE}\n"
    )
    for size in (8, 16):
        (tmp_path / str(size)).mkdir()
        (tmp_path / f"{size}/common_here.py").write_text(f"SIZE = {size}\n")
        (tmp_path / f"{size}/asked.py").write_text(text)
        spaces.append(load_space(UPath(tmp_path / f"{size}/asked.py")))
    assert [one_sample(space)[0].batch_size for space in spaces] == [8, 16]


@pytest.mark.parametrize("name", ["random", "types", "trainable", "optuna", "wave"])
def test_module_beside_the_file_that_another_hides_is_named(
    asked: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("SIZE = 8\n")
    with pytest.raises(SpaceError, match=rf"asked\.py, line 4: `{name}` is the name of .*another"):
        load(asked, HEADER + f"import {name}\n" + EMPTY)
    assert load(asked, HEADER + EMPTY).num_trials == 3, "nobody asked for it"


def test_other_threads_and_later_imports_do_not_see_what_lies_beside(
    asked: Path, tmp_path: Path
) -> None:
    (tmp_path / "beside_only.py").write_text("SIZE = 8\n")
    load(asked, HEADER + EMPTY)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("beside_only")


def test_mistake_in_a_module_beside_is_blamed_on_it(asked: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_here.py").write_text("SIZE = (\n")
    with pytest.raises(SpaceError, match=r"broken_here\.py, line 1: SyntaxError"):
        load(asked, HEADER + "import broken_here\n" + EMPTY)
    with pytest.raises(SpaceError, match=r"asked\.py, line 4: ModuleNotFoundError: .*'absent_here"):
        load(asked, HEADER + "import absent_here\n" + EMPTY)


@pytest.mark.parametrize(
    ("start", "encoding"),
    [("", "utf-8-sig"), ("# -*- coding: latin-1 -*-\n", "latin-1"), ("", "utf-8"),
     ("# coding: cp1252\n", "cp1252")],
)  # fmt: skip
def test_encoding_is_the_one_that_python_reads_and_is_kept(
    asked: Path, tmp_path: Path, start: str, encoding: str
) -> None:
    text = f'{start}"""Größe?"""\nNUM_TRIALS = 1\n{EMPTY}'
    asked.write_bytes(text.encode(encoding))
    load_space(UPath(asked)).save(UPath(tmp_path / "kept"), "space.py")
    for file in (asked, tmp_path / "kept/space.py"):
        assert load_space(UPath(file)).question == "Größe?"


@pytest.mark.parametrize("text", ["# coding: nonsense\n", "\0"])
def test_text_that_python_cannot_read_is_refused(asked: Path, text: str) -> None:
    with pytest.raises(SpaceError, match="not a text file"):
        load(asked, text + HEADER + EMPTY)


def test_postponed_annotations_and_dataclasses_work(asked: Path) -> None:
    text = (
        "from __future__ import annotations\nimport dataclasses, typing\n" + HEADER +
        "@dataclasses.dataclass\nclass Range:\n    low: float\n    kind: typing.ClassVar[int] = 1\n"
        "def space(trial: Undefined) -> dict[str, float]:\n"
        "    assert typing.get_type_hints(Range)['low'] is float\n"
        "    return {'lr': Range(0.5).low}\n"
    )  # fmt: skip
    assert load(asked, text).samples[-1].lr == 0.5


def test_annotations_are_not_postponed_for_a_file_that_does_not_ask(asked: Path) -> None:
    with pytest.raises(SpaceError, match="NameError: name 'Undefined'"):
        load(asked, HEADER + "def space(trial: Undefined):\n    return {}\n")


@pytest.mark.parametrize("where", ["file", "space"])
@pytest.mark.parametrize("kind", ["SystemExit", "BaseException", "GeneratorExit"])
def test_file_that_exits_is_a_mistake_of_the_file(asked: Path, where: str, kind: str) -> None:
    stop = f"raise {kind}('enough')"
    text = f"{stop}\n{EMPTY}" if where == "file" else f"def space(trial):\n    {stop}\n"
    with pytest.raises(SpaceError, match=rf"{kind}.*: enough"):
        load(asked, HEADER + text)


# --- Names that nothing reads --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BASELINE", "BASELINES"), ("BASE_LINES", "BASELINES"), ("BASLINES", "BASELINES"),
        ("METRICS", "METRIC"), ("METRC", "METRIC"), ("MTERIC", "METRIC"),
        ("EPOCH", "EPOCHS"), ("NUM_EPOCHS", "EPOCHS"), ("N_EPOCHS", "EPOCHS"),
        ("MAX_EPOCHS", "EPOCHS"), ("NUM_TRIAL", "NUM_TRIALS"), ("TRIALS", "NUM_TRIALS"),
        ("N_TRIALS", "NUM_TRIALS"), ("NTRIALS", "NUM_TRIALS"), ("NUMTRIALS", "NUM_TRIALS"),
        ("PART", "PARTS"), ("SAMPLERS", "SAMPLER"), ("PRUNERS", "PRUNER"),
        ("CONSTRAINT", "CONSTRAINTS"),
    ],
)  # fmt: skip
def test_name_near_one_of_ours_is_an_error(asked: Path, name: str, meant: str) -> None:
    with pytest.raises(SpaceError, match=rf"nothing reads {name} \(did you mean {meant}\?\)"):
        load(asked, f"{name} = [{{'lr': 0.1}}]\n{EMPTY}", num_trials=3)


@pytest.mark.parametrize("name", ["baselines", "epochs", "Metric", "num_trials"])
def test_name_in_other_case_is_an_error_unless_ours_is_there(asked: Path, name: str) -> None:
    with pytest.raises(SpaceError, match=rf"nothing reads {name} \(did you mean {name.upper()}"):
        load(asked, f"{name} = 3\n{EMPTY}", num_trials=3)
    text = f"{name} = 3\nNUM_TRIALS = EPOCHS = 3\nMETRIC = 'score'\nBASELINES = []\n"
    assert load(asked, text + EMPTY).num_trials == 3


@pytest.mark.parametrize("name", ["SAMPLER", "PRUNER", "CONSTRAINTS"])
def test_planned_name_is_refused_and_not_ignored(asked: Path, name: str) -> None:
    with pytest.raises(SpaceError, match=f"{name} is not supported yet: leave it out"):
        load(asked, HEADER + f"{name} = None\n" + EMPTY)


def test_names_that_are_unlike_ours_are_free(asked: Path) -> None:
    names = ("BASELINE_LR", "FINE_TUNE", "LRS", "BACKBONES", "SIZES", "PATHS", "HEADS", "SEEDS",
             "MIN_LR", "METRIC_WEIGHTS", "SMALL", "A", "ALL", "TAU", "SCORES")  # fmt: skip
    text = "".join(f"{name} = 1\n" for name in names)
    assert load(asked, HEADER + text + EMPTY).num_trials == 3


# --- Parameters and metrics that do nothing ------------------------------------------------------


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter is looked at, on a slow machine too."""
    monkeypatch.setattr("search.space.dry_trials.UNUSED_LIMIT_S", 600.0)


@pytest.mark.usefixtures("unhurried")
def test_parameter_that_no_configuration_depends_on_is_named(asked: Path) -> None:
    text = (
        HEADER
        + """
def space(trial):
    trial.suggest_float("forgotten", 0.0, 1.0)
    mode = trial.suggest_categorical("mode", ["a", "b"])
    config = {"alpha": 0.5 if trial.suggest_float("coin", 0, 1) < 0.95 else 0.25}
    if mode == "a":
        config["lr"] = trial.suggest_float("rate", 0.1, 1.0)
        trial.suggest_int("overwritten", 1, 3)
    trial.suggest_categorical("single", ["only"])
    return config
"""
    )
    assert load(asked, text).unused == ("forgotten", "overwritten")


@pytest.mark.usefixtures("unhurried")
def test_parameter_that_a_fixed_key_overrides_is_named(asked: Path) -> None:
    text = HEADER + "def space(trial):\n    return {'lr': trial.suggest_float('rate', 0.1, 1.0)}\n"
    assert load(asked, text).unused == ()
    assert load(asked, text, fixed={"lr": 0.5}).unused == ("rate",)


@pytest.mark.parametrize("name", FILES)
def test_space_file_of_the_repository_suggests_nothing_in_vain(name: str) -> None:
    assert load_space(UPath(SPACES / name)).unused == ()


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("unseen_sub_second", "second_pseudo_novel_fraction"),
        ("auroc_sub_second", "second_pseudo_novel_fraction"),
        ("unseen_sub_near", "pseudo_novel_fraction"),
    ],
)
def test_metric_that_no_trial_can_have_is_refused(asked: Path, metric: str, key: str) -> None:
    without, with_it = {key: 0.0}, {key: 0.15}
    text = HEADER + EMPTY
    with pytest.raises(SpaceError, match=rf"^--metric {metric} .* where `{key}` is above 0"):
        load(asked, text, metric=[metric], fixed=without)
    assert load(asked, text, metric=[metric], fixed=with_it).metrics == (metric,)
    with pytest.raises(SpaceError, match=rf"asked\.py: METRIC {metric} "):
        load(asked, text + f"METRIC = 'score', '{metric}'\n", fixed=without)


def test_metric_over_left_out_superclasses_is_refused_where_none_is(asked: Path) -> None:
    metric = ["unseen_super_left_out"]
    with pytest.raises(SpaceError, match=r"--metric unseen_super_left_out .* `left_out` is none"):
        load(asked, HEADER + EMPTY, metric=metric, fixed={"left_out": "none"})
    assert load(asked, HEADER + EMPTY, metric=metric).metrics == ("unseen_super_left_out",)


# --- What is to blame ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {"metric": ["accuracy"]}, "unknown --metric 'accuracy'"),
        ("", {"metric": ["score", "score"]}, "--metric must name one metric"),
        ("BASELINES = [{}]\n", {"fixed": {"lr": "fast"}},
         "--set lr=fast: `lr` must be float, but got 'fast'"),
        ("", {"fixed": {"lr": -1.0}}, "--set lr=-1.0: `1e-08 <= lr <= 10` must hold, but got -1.0"),
        ("BASELINES = [{}]\n", {"fixed": {"batch_size": 8, "couple_novel": "no"}},
         "--set couple_novel=no: `couple_novel` must be bool, but got 'no'"),
        ("BASELINES = [{}]\n", {"epochs": 100_000},
         "--epochs 100000: `0 <= epochs <= 99999` must hold, but got 100000"),
        ("BASELINES = [{}]\n", {"seed": 2**31},
         "--seed: `0 <= seed <= 2.14748e+09` must hold, but got 2147483648"),
    ],
)  # fmt: skip
def test_mistake_of_the_command_line_is_blamed_on_it(
    asked: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpaceError) as raised:
        load(asked, HEADER + text + EMPTY, **options)
    assert str(raised.value).startswith(message)


def test_mistake_of_the_file_is_blamed_on_it_beside_a_good_setting(asked: Path) -> None:
    text = HEADER + "BASELINES = [{}, {'lr': 'fast'}]\n" + EMPTY
    with pytest.raises(SpaceError, match=r"asked\.py: BASELINES\[1\]: `lr` must be float"):
        load(asked, text, fixed={"alpha": 0.5})
    text = HEADER.replace("EPOCHS = 2", "EPOCHS = 100000") + "BASELINES = [{}]\n" + EMPTY
    with pytest.raises(SpaceError, match=r"asked\.py: EPOCHS: `0 <= epochs <= 99999` must hold"):
        load(asked, text)


def test_setting_of_a_suggested_parameter_is_blamed_on_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "space.py"
    file.write_text(
        "NUM_TRIALS = 1\n"
        "def space(trial):\n"
        "    return {'lr': trial.suggest_float('lr', 1e-4, 1e-2)}\n"
    )
    with pytest.raises(SpaceError, match=r"^--set lr=fast: `lr` must be float"):
        load_space(UPath(file), fixed={"lr": "fast"})
