"""The files of docs/cluster are what those programs read, and a typo in them is noticed."""

import copy
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.util import prepare_config, validate_config

import search.run

FOLDER = Path(__file__).parents[1] / "docs/cluster"
SCHEMAS = Path(__file__).parent / "assets/schemas"
FILES = ["slurm.sbatch", "rayjob.yaml", "aws.yaml", "gcp.yaml", "Dockerfile"]
FREE = {"rayStartParams", "nodeSelector", "requests", "limits", "resources", "file_mounts"}
"""Whose keys are anybody's."""


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def schema(name: str) -> Any:
    return json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))


def closed(part: Any) -> Any:
    """Return a schema of Kubernetes that refuses fields it does not know, as kubectl does."""
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    refuses = {"additionalProperties": False} if isinstance(part.get("properties"), dict) else {}
    return {key: closed(value) for key, value in part.items()} | refuses


def misspelt(part: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every key of a document that is not free."""
    if isinstance(part, dict):
        for key, value in part.items():
            if not place or place[-1] not in FREE:
                yield (*place, key)
            yield from misspelt(value, (*place, key))
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from misspelt(value, (*place, number))


def with_typo(document: Any, place: tuple[Any, ...]) -> Any:
    """Return a copy with one key misspelt."""
    changed = part = copy.deepcopy(document)
    for step in place[:-1]:
        part = part[step]
    part[f"{place[-1]}x"] = part.pop(place[-1])
    return changed


def test_rayjob_is_one_and_no_typo_passes() -> None:
    job = Draft202012Validator(closed(schema("kuberay-rayjob")))
    document = read("rayjob.yaml")
    assert [error.message for error in job.iter_errors(document)] == []
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    places = [each for each in misspelt(document) if each[0] != "metadata" or len(each) == 1]
    assert len(places) > 60
    assert [each for each in places if job.is_valid(with_typo(document, each))] == []


def test_rayjob_asks_for_a_token_and_opens_nothing() -> None:
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (group,) = cluster["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_file_of_the_cluster_launcher_is_one_by_the_schema_of_ray(name: str) -> None:
    document = read(f"{name}.yaml")
    config = prepare_config(copy.deepcopy(document))
    validate_config(config)
    assert config["available_node_types"].keys() == {"head", "spot"}
    assert "RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])
    for key in document:
        with pytest.raises(Exception, match=f"{key}|[Cc]onfig|provider|required"):
            validate_config(prepare_config(with_typo(document, (key,))))


def test_machines_of_aws_are_such_as_its_api_takes() -> None:
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape
    counts = {"MinCount": 1, "MaxCount": 1}  # Ray's
    for machine in read("aws.yaml")["available_node_types"].values():
        node, check = machine["node_config"], botocore.validate.ParamValidator().validate
        assert check(node | counts, shape).generate_report() == ""
        for place in misspelt(node):
            assert check(with_typo(node, place) | counts, shape).has_errors(), place
    assert node["InstanceMarketOptions"]["MarketType"] == "spot"


def test_machines_of_gcp_are_such_as_its_api_takes() -> None:
    instance = Draft202012Validator(schema("gcp-instance"))
    for machine in read("gcp.yaml")["available_node_types"].values():
        node = machine["node_config"]
        assert [error.message for error in instance.iter_errors(node)] == []
        places = list(misspelt(node))
        assert [each for each in places if instance.is_valid(with_typo(node, each))] == []
    assert node["scheduling"]["provisioningModel"] == "SPOT"


def test_batch_script_for_slurm_asks_for_its_signal_in_time_and_is_taken_by_bash() -> None:
    script = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    asked = re.findall(r"^#SBATCH --(\S+)$", script.read_text(), re.MULTILINE)
    assert {"requeue", "signal=B:TERM@60", "open-mode=append"} <= {*asked}


STUBS = {
    "srun": 'for word; do case $word in --output=*) echo "Ray runtime started" > '
    '"$(echo "${word#*=}" | sed s/%N/node/)";; esac; done',
    "noveltune": 'exit "$CODE"',
    "squeue": "echo RUNNING",
    "scancel": "",
    "sleep": f"exec {shutil.which('sleep')} 0.05",
    "scontrol": 'echo "$@" >> said',
}


@pytest.mark.parametrize(
    ("code", "is_requeued"), [(0, False), (1, False), (2, False), (130, True), (143, True)]
)
def test_batch_script_for_slurm_is_put_back_when_stopped_and_after_no_mistake(
    code: int, is_requeued: bool, tmp_path: Path
) -> None:
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURMD_NODENAME": "node", "CODE": str(code)}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(FOLDER / "slurm.sbatch")], cwd=tmp_path, env=os.environ | job | {"PATH": path}
    )
    assert done.returncode == code
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == "requeue 7\n" * is_requeued


def searches(name: str) -> list[list[str]]:
    """Return the searches that a file starts or tells to start, as words."""
    text = (FOLDER / name).read_text()
    if name == "rayjob.yaml":
        text = read(name)["spec"]["entrypoint"]
    text = re.sub(r"\\\n#? +", "", text)
    passed = re.search(r"slurm\.sbatch +(--.*)", text)
    text = text.replace('"$@"', passed[1] if passed else "")
    text = re.sub(r'"\$\{\w+:-(\S+?)\}"', r"\1", text)
    return [shlex.split(each) for each in re.findall(r"noveltune (search --[^'&\n]*)", text)]


@pytest.mark.parametrize("name", FILES)
def test_search_of_a_file_is_taken_and_says_where_all_is_kept(name: str) -> None:
    (words,) = searches(name)
    asked = search.run._options(search.run._parser().parse_args(words[1:]))
    assert asked["resume"]
    assert all(asked[each] for each in ("space", "name", "storage", "study", "tracking_uri"))


@pytest.mark.parametrize("name", FILES)
def test_file_says_what_must_never_be_exposed(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert "Must never be exposed: " in text
    assert not re.search(r"://[^/\s]*:[^@/\s]*@", text), "a password in a URL"
