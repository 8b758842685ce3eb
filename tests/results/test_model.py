"""The registered model brings its code, declares the rest, needs nothing else, and is served."""

import base64
import contextlib
import csv
import json
import os
import re
import shlex
import sys
import sysconfig
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from upath import UPath

from results import model
from results.model import OUTPUTS, requirements
from results.predict import main as predict
from search.registration import Registration
from tests.commands import DEADLINE_S, ROOT, Command, Done, run
from tests.made_data import make_data
from tests.made_searches import record
from tests.trainable.test_classifier import save_by_hand
from tests.trainable.tiny import tiny_config

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
def folder(tmp_path_factory: pytest.TempPathFactory, make_mlflow: Callable[[Path], Path]) -> Path:
    """A folder with an MLflow database that has a model `asked`, and its files in `model`."""
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
        registry.crown(version)
        client = mlflow.MlflowClient(uri)
        source = client.get_model_version_download_uri("asked", version)
        (folder / "model").mkdir()
        mlflow.artifacts.download_artifacts(
            source, tracking_uri=uri, dst_path=str(folder / "model")
        )
    return folder


@pytest.fixture(scope="module")
def registered(folder: Path) -> Path:
    """The files of the registered model, as a server that deploys it gets them."""
    return next((folder / "model").rglob("MLmodel")).parent


def call(model: Path, declared: list[str], tmp_path: Path) -> Done:
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
    return run(tmp_path, "-I", "-S", "-c", CHILD, *arguments)


@pytest.mark.slow
def test_registered_model_answers_with_nothing_but_what_it_declares(
    registered: Path, tmp_path: Path
) -> None:
    done = call(registered, (registered / "requirements.txt").read_text().split(), tmp_path)
    assert done.err.endswith("ModuleNotFoundError: No module named 'search'\n"), done
    answers, files = json.loads(done.last_line)
    assert [*answers] == [*OUTPUTS]
    assert len(answers["superclass"]) == 2
    assert files
    assert all(Path(file).is_relative_to(registered) for file in files)


@pytest.mark.slow
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


# --- Served --------------------------------------------------------------------------------------


def blocks_of_page(language: str) -> list[str]:
    """Return the code blocks of the page on serving."""
    page = (ROOT / "docs/serving.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of a server, started by the command of the page on serving."""
    (line,) = [each for each in blocks_of_page("bash") if each.startswith("mlflow models serve")]
    words = shlex.split(line.replace("NAME", "asked").replace("5001", "0"))
    environment: dict[str, Any] = {
        # No port for MLflow to pass on, and 0 from the environment: any that is free.
        "UVICORN_PORT": "0", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": f"{DEADLINE_S:.0f}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    with Command(folder, "-m", *words, **environment) as server:

        def address() -> re.Match[str] | None:
            return re.search(r"running on (http://127\.0\.0\.1:\d+)\D", server.done().err)

        server.wait_for(address)
        yield address()[1]


def ask(server: str, images: Any, key: str = "inputs") -> tuple[int, dict[str, Any]]:
    """Send a request; return the status and the answer."""
    request = urllib.request.Request(
        f"{server}/invocations",
        json.dumps({key: images}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def printed(folder: Path, program: str, code: str) -> str:
    """Run what the page says to type; return what it prints."""
    done = run(folder, "-c", code, program=program)
    assert done.code == 0, done
    return done.out


@pytest.mark.slow
def test_served_model_answers_as_predict_does(server: str, folder: Path, tmp_path: Path) -> None:
    shapes = [(40, 60), (32, 32, 3), (90, 50, 4)]
    pixels = [np.random.default_rng(i).integers(0, 256, s, "u1") for i, s in enumerate(shapes)]
    for i, (image, suffix) in enumerate(zip(pixels, ("png", "jpg", "png"), strict=True)):
        Image.fromarray(image).save(tmp_path / f"{i}.{suffix}")
    files = sorted(tmp_path.iterdir())
    texts = [base64.b64encode(file.read_bytes()).decode() for file in files]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        out = folder / "out.csv"
        model = ["--model", "models:/asked@champion", "--tracking-uri", "sqlite:///mlflow.db"]
        assert predict([*model, "--images", str(tmp_path), "--out", str(out), "--scores"]) == 0
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))

    status, answer = ask(server, texts)
    assert status == 200
    told = answer["predictions"]
    assert [[*each] for each in told] == [[*OUTPUTS]] * 3
    for row, each in zip(rows, told, strict=True):
        names = ("superclass_index", "subclass_index", "superclass", "subclass")
        assert [str(each[name]) for name in names] == [row[name] for name in names]
        for name in ("super_score", "sub_score"):
            assert np.float32(each[name]) == np.float32(row[name])
        assert each["is_super_novel"] is (each["superclass"] == "novel")
        assert each["is_sub_novel"] is (each["subclass"] == "novel")
    arrays = [pixels[0].tolist(), texts[1], pixels[2].tolist()]
    for key in ("inputs", "instances"):
        assert ask(server, arrays, key) == (200, answer)
    records = [{"image": text} for text in texts]
    assert ask(server, records, "dataframe_records") == (200, answer)

    (folder / "robin.jpg").write_bytes(files[1].read_bytes())
    typed = [each for each in blocks_of_page("bash") if "curl" in each] + blocks_of_page("python")
    curl, python = (each.replace("http://127.0.0.1:5001", server) for each in typed)
    assert json.loads(printed(folder, "bash", curl)) == {"predictions": told[1:2]}
    assert printed(folder, sys.executable, python) == f"{told[1:2]}\n"


@pytest.mark.slow
def test_served_model_says_which_image_is_broken_and_why(server: str) -> None:
    cut = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(9)).decode()
    status, answer = ask(server, [[[0] * 40] * 40, cut, "robin.jpg"])
    assert status == 400
    assert answer["message"].startswith(
        "2 of 3 images cannot be read (the first is image 0): image 1: cannot identify its format; "
        "image 2: a text must be the bytes of an image file as base64, but got 'robin.jpg'"
    )
    nothings: list[Any] = [[], None, {"image": [cut]}, 7]
    for nothing in nothings:
        assert ask(server, nothing)[0] == 400
