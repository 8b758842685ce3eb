"""docs/extending.md as it is written: own parts, on two nodes and without their files."""

import json
import re
import shlex
from pathlib import Path

import pytest
from ray._private.services import node_ip_address_from_perspective  # type: ignore[attr-defined]

from tests import commands
from tests.clusters import ray_cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S))
(SHELL,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
PREDICTS = """
import sys, mlflow, numpy
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/mine/1")
print(model.predict(numpy.zeros((3, 40, 40, 3), "uint8")).to_json())
"""


def run(folder: Path, *arguments: str, code: int = 0, path: str = str(ROOT)) -> str:
    """Run Python in `folder`; return both outputs."""
    done = commands.run(folder, *arguments, PYTHONPATH=path)
    assert done.code == code, done
    return done.out + done.err


def test_page_of_own_parts_runs_as_it_is_written(tmp_path: Path, data: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    search, resume, refit = (["-m", *shlex.split(line)] for line in SHELL.splitlines())
    small = ["--data", str(data), "--novel", str(data / "novel_images"),
             "--cache", str(tmp_path / "cache")]  # fmt: skip
    host = node_ip_address_from_perspective()
    with ray_cluster(num_cpus=1, node_ip_address=host) as cluster:
        cluster.add_node(num_cpus=1)
        there = ["--address", cluster.address, "--json"]
        run(tmp_path, *search, *small, *there)
        for name in FILES:  # the search has what it needs of them
            (tmp_path / name).rename(tmp_path / f"{name}.before")
        text = run(tmp_path, *resume, *there)
    summary = json.loads(text[text.rindex('\n{"name"') :].splitlines()[1])
    assert summary["trials"] == {"COMPLETE": 3}
    run(tmp_path, *refit)
    for name in FILES:
        assert not (tmp_path / name).exists()
    answers = json.loads(run(tmp_path, "-c", PREDICTS, path="").splitlines()[-1])
    assert len(answers["subclass"]) == 3
    run(tmp_path, "-m", "results.report", "--name", "mine")

    for name in FILES:
        (tmp_path / f"{name}.before").rename(tmp_path / name)
    (tmp_path / "my_score.py").write_text(FILES["my_score.py"].replace("amin", "amax"))
    refused = run(tmp_path, *resume, "--space", "my_space.py", code=2)
    assert "PARTS: my_score.py has changed: the finished trials would not be" in refused
