"""The registered model brings its code, declares the rest, and needs nothing else."""

import contextlib
import json
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from upath import UPath

from results import model
from results.model import OUTPUTS, requirements
from search.registration import Registration
from tests.results.test_record import record
from tests.trainable.factories import make_data
from tests.trainable.test_classifier import save_by_hand
from tests.trainable.tiny import tiny_config

ROOT = Path(__file__).parents[2]

CHILD = """
import json, sys

sys.path.append(sys.argv[1])
import mlflow, numpy

model = mlflow.pyfunc.load_model(sys.argv[2])
table = model.predict(numpy.load(sys.argv[3]))
ours = [name for name in sys.modules if name.partition(".")[0] in ("results", "trainable")]
print(json.dumps([table.to_dict("list"), [sys.modules[name].__file__ for name in ours]]))
import search  # must fail: this project is not here
"""


def is_installed(name: str) -> bool:
    """Whether it is here; what an extra asks for need not be."""
    return any(metadata.distributions(name=name))


def declared_and_required(lines: list[str]) -> set[str]:
    """Return the distributions in `lines` and all that they require here, by normal name."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            below = metadata.requires(name) or [] if is_installed(name) else []
            waiting += [(Requirement(each), wanted) for each in below]
    return {name for name, _ in found if is_installed(name)}


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, make_mlflow: Callable[[Path], Path]
) -> Path:
    """The files of a registered model, as a server that deploys it gets them."""
    folder = make_mlflow(tmp_path_factory.mktemp("registered")).parent
    config = tiny_config(fine_tune="full")
    data = make_data(size=32)
    save_by_hand(folder / "refit", data, config=config)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts artifacts beside its database
        registry = Registration(record(tracking_uri=uri), is_new=True)
        registry.prepare()
        version = registry.register(0, config, UPath(folder / "refit"), data)
        client = mlflow.MlflowClient(uri)
        source = client.get_model_version_download_uri("asked", version)
        local = mlflow.artifacts.download_artifacts(
            source, tracking_uri=uri, dst_path=str(folder / "model")
        )
    return Path(local)


def call(model: Path, declared: list[str], tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Load and call the model where only `declared` and what it requires are installed."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for name in declared_and_required(declared):
        for top in {file.parts[0] for file in metadata.files(name) or ()} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):  # of several: google, nvidia
                (installed / top).symlink_to(Path(sysconfig.get_path("purelib")) / top)
    np.save(tmp_path / "images.npy", np.zeros((2, 40, 40, 3), dtype=np.uint8))
    arguments = [str(installed), str(model), str(tmp_path / "images.npy")]
    # -S: no site-packages of this environment; -I: no PYTHONPATH, no working folder.
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD, *arguments],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip


def test_registered_model_answers_with_nothing_but_what_it_declares(
    registered: Path, tmp_path: Path
) -> None:
    done = call(registered, (registered / "requirements.txt").read_text().split(), tmp_path)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'search'\n"), done.stderr
    answers, files = json.loads(done.stdout.splitlines()[-1])
    assert [*answers] == [*OUTPUTS]
    assert len(answers["superclass"]) == 2
    assert files
    assert all(Path(file).is_relative_to(registered) for file in files)


def test_declared_versions_are_those_in_use(registered: Path) -> None:
    for line in (registered / "requirements.txt").read_text().split():
        name, _, version = line.partition("==")
        assert metadata.version(name).partition("+")[0] == version


def test_what_the_model_imports_is_required_by_this_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    used = {canonicalize_name(line.partition("==")[0]) for line in requirements()}
    assert {"timm", "torch", "torchvision", "pillow", "safetensors"} <= used <= ours


def test_import_in_a_function_of_a_module_below_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/model.py").write_text("from trainable.parts import late")
    (tmp_path / "trainable/parts").mkdir(parents=True)
    (tmp_path / "trainable/parts/__init__.py").write_text("import scipy.stats as stats")
    (tmp_path / "trainable/parts/late.py").write_text(
        "import trainable.parts\ndef draw():\n    from matplotlib import pyplot"
    )
    (tmp_path / "trainable/unused.py").write_text("import plotly")
    monkeypatch.setattr(model, "CODE_PATHS", [str(tmp_path / "trainable")])
    versions = {name: metadata.version(name) for name in ("matplotlib", "scipy")}
    assert requirements() == [f"{name}=={version}" for name, version in versions.items()]
