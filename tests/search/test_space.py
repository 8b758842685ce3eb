"""A space file is checked before anything starts, and --set holds for every trial."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

import search.space
from search.space import DRY_TRIALS, Space, SpaceError, describe, load_space
from trainable.config import TrialConfig

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
    return load_space(asked, **options)


def one_sample(space: Space, seed: int = 0) -> tuple[TrialConfig, optuna.Trial]:
    """Return the configuration of one random trial, and the trial."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return space.configure(trial), trial


# --- The files of this repository ----------------------------------------------------------------


def test_every_space_file_is_under_test() -> None:
    assert {"full_ablation.py", "paper.py", "smoke.py"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_space_file_of_the_repository_loads_and_gives_valid_configurations(name: str) -> None:
    space = load_space(SPACES / name)
    dry = 0 if space.function is None else DRY_TRIALS
    assert len(space.samples) == len(space.baselines) + dry
    assert space.num_trials >= len(space.baselines)
    assert space.question.endswith("?")
    for config in space.samples:
        assert TrialConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", FILES)
def test_space_file_of_the_repository_says_its_command_and_cost(name: str) -> None:
    source = load_space(SPACES / name).source
    assert f"python -m search.run --space spaces/{name}" in source
    assert re.search(r"^Cost: ", source, re.MULTILINE)


def test_paper_space_is_five_configurations_for_each_of_three_seeds() -> None:
    space = load_space(SPACES / "paper.py")
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
        space = load_space(SPACES / name)
        assert paper_configurations(space) == expected
        assert (space.baselines[0]["alpha"], space.baselines[0]["temperature"]) == (0.1, 1.0)


def test_full_ablation_meets_every_question_of_the_paper() -> None:
    space = load_space(SPACES / "full_ablation.py")
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
        for task in ("super", "sub"):
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
    ],
)
def test_file_that_loops_is_stopped(
    asked: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(search.space, "TIME_LIMIT_S", 0.2)
    with pytest.raises(
        SpaceError, match=r"asked\.py: running it and 40 dry trials took over 0\.2 s"
    ):
        load(asked, text)


@pytest.mark.parametrize("returned", ["None", "[1]", "'lr'"])
def test_space_that_returns_no_dict_is_refused(asked: Path, returned: str) -> None:
    with pytest.raises(SpaceError, match=r"asked\.py: space\(\) must return a dict of config keys"):
        load(asked, HEADER + f"def space(trial):\n    return {returned}\n")


def test_missing_num_trials_is_refused(asked: Path) -> None:
    with pytest.raises(SpaceError, match="NUM_TRIALS must be a whole number of 0 or more"):
        load(asked, EMPTY)


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
        load_space(asked)
    assert str(raised.value) == f"--space {asked}: cannot be read (No such file or directory)"


def test_folder_is_no_space_file(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"cannot be read \(Is a directory\)"):
        load_space(tmp_path)


def test_file_that_is_not_text_is_refused(asked: Path) -> None:
    asked.write_bytes(b"\xff\xfe\x00NUM_TRIALS")
    with pytest.raises(SpaceError, match=r"--space .*asked\.py: not a text file"):
        load_space(asked)


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
    assert describe(ranges["architecture"]) == "two_heads, two_models"
    assert describe(ranges["lr"]) == "0.0001 to 0.01, log scale"
    assert describe(ranges["alpha"]) == "0.1 to 1"


def test_same_file_is_sampled_the_same_way_every_time(asked: Path) -> None:
    assert load(asked, HEADER + CONDITIONAL).samples == load_space(asked).samples


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
