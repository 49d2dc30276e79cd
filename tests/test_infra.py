"""The files of infra/, each checked by what can check it without Docker and Kubernetes."""

import copy
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import ray.scripts.scripts
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from pipeline import config as configs
from pipeline import train
from tests import kubernetes_schema

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
MANIFESTS = {
    path.name: list(YAML(typ="safe").load_all(path))  # refuses a key given twice
    for path in sorted(INFRA.glob("*.yaml"))
    if path.name != "compose.yaml"
}
SECRET = re.compile("SECRET|PASSWORD|TOKEN$|KEY")
QUANTITIES = {"cpu", "memory", "nvidia.com/gpu"}


@pytest.fixture(scope="module")
def validators():
    if not kubernetes_schema.FOLDER.is_dir():
        pytest.skip(f"no folder {kubernetes_schema.FOLDER} (KUBERAY_CRDS) with KubeRay's schemas")
    return kubernetes_schema.validators()


@pytest.fixture(scope="module")
def documents(validators):
    """Each document with the operator's schema for it."""
    return [
        (validators[document["apiVersion"], document["kind"]], document)
        for found in MANIFESTS.values()
        for document in found
    ]


def test_every_kubernetes_document_is_what_the_operator_defines(documents):
    assert len(documents) == 2
    for validator, document in documents:
        assert kubernetes_schema.errors(validator, document) == []


def test_a_misspelt_key_or_a_value_of_another_type_is_refused_wherever_it_stands(documents):
    """Every key of every mapping, but of the maps whose keys are the user's."""
    for validator, document in documents:
        free = set(kubernetes_schema.free_maps(validator.schema, document))
        assert {place.rsplit(".", 1)[-1] for place in free} == {
            *("annotations", "limits", "rayStartParams", "requests"),
        }
        tried = 0
        for place, path, key in _keys(document):
            if place in free:
                continue
            for change in (_misspelt, _retyped):
                wrong = copy.deepcopy(document)
                change(_at(wrong, path), key)
                assert not validator.is_valid(wrong), (place, key, change)
                tried += 1
        assert tried > 250


def _keys(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield _place(path), path, key
            yield from _keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _keys(inner, (*path, index))


def _place(path):
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _at(value, path):
    for part in path:
        value = value[part]
    return value


def _misspelt(mapping, key):
    mapping[f"{key}x"] = mapping.pop(key)


def _retyped(mapping, key):
    mapping[key] = 1.5 if isinstance(mapping[key], list | dict | str | bool) else [mapping[key]]


def test_maps_whose_keys_are_ours_to_choose_hold_options_of_ray_and_known_resources():
    (cluster,) = MANIFESTS["raycluster.yaml"]
    for group in _groups(cluster["spec"]):
        arguments = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        ray.scripts.scripts.start.make_context("ray start", arguments)
        for container in group["template"]["spec"]["containers"]:
            for amounts in container["resources"].values():
                assert set(amounts) <= QUANTITIES


def test_a_job_brings_the_cluster_of_the_other_manifest():
    (cluster,), (job,) = MANIFESTS["raycluster.yaml"], MANIFESTS["rayjob.yaml"]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_pods_are_unprivileged_and_have_longer_to_end_than_a_commit_takes():
    (cluster,) = MANIFESTS["raycluster.yaml"]
    wait_s = int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", _dockerfile())[1])
    for group in _groups(cluster["spec"]):
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= wait_s + 30
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
    for name, service in COMPOSE["services"].items():
        if name.startswith("ray-"):
            assert int(service["stop_grace_period"].removesuffix("s")) >= wait_s + 30


def _groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_no_file_holds_a_secret_and_compose_publishes_on_loopback_alone():
    (cluster,) = MANIFESTS["raycluster.yaml"]
    for group in _groups(cluster["spec"]):
        for container in group["template"]["spec"]["containers"]:
            assert not [entry for entry in container["env"] if SECRET.search(entry["name"])]
            assert {*container["envFrom"][0]} == {"secretRef"}
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name) or "@" in value:
                assert re.search(r"\$\{\w+:\?}", value), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_compose_is_what_its_specification_says():
    _run(
        *("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
        str(INFRA / "compose.yaml"),
    )


@pytest.mark.filterwarnings("ignore")  # of MLflow's command line
def test_the_programs_that_compose_starts_know_their_options():
    import mlflow.cli

    known = subprocess.run(
        [_tool("weed"), "mini", "-h"], capture_output=True, text=True, check=False
    ).stderr
    for name, service in COMPOSE["services"].items():
        match service.get("command"):
            case ["ray", "start", *arguments]:
                ray.scripts.scripts.start.make_context("ray start", list(arguments))
            case ["mlflow", "server", *arguments]:
                server = mlflow.cli.cli.get_command(click.Context(mlflow.cli.cli), "server")
                server.make_context("mlflow server", list(arguments))
            case ["weed", "mini", *arguments]:
                for argument in arguments:
                    assert f"  {argument.partition('=')[0]}" in known
            case other:
                assert (name, other) == ("postgres", None)


def test_commands_of_the_manifests_and_their_comments_are_the_projects():
    commands = {command for path in INFRA.iterdir() for command in _train_commands(path)}
    assert len(commands) >= 2
    for arguments in commands:
        options = train.parser().parse_intermixed_args(arguments)
        configs.load(options.config, options.overrides)


def _train_commands(path):
    """Arguments of each `python pipeline/train.py …`, to the end of the paragraph."""
    text = re.sub(r"\\?\n[# ]+ {3,}", " ", path.read_text())
    for line in re.findall(r"python pipeline/train\.py +(.*)", text):
        if "--config" in line:
            yield tuple(shlex.split(line))


def test_dockerfile_and_shell_scripts_pass_their_linters():
    _run(_tool("hadolint"), str(INFRA / "Dockerfile"), python=False)
    scripts = [ROOT / ".ci" / "run", *INFRA.glob("*.sh")]
    _run(_tool("shellcheck"), *map(str, scripts), python=False)


def test_the_image_runs_as_a_user_and_holds_no_cuda_compiler():
    text = _dockerfile()
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["1000"]
    assert "nvcc" not in re.sub("^#.*", "", text, flags=re.MULTILINE)
    assert "devel" not in text
    for path in re.findall(r"^COPY (?:--\S+ )?(\S+)", text, re.MULTILINE):
        assert (ROOT / path).exists()


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_the_images_take_the_pinned_versions_and_verify_every_file_by_its_hash(build):
    pins = _pins((ROOT / "constraints.txt").read_text())
    text = (INFRA / f"requirements-{build}.txt").read_text()
    locked = _pins(text)
    stale = {n: v for n, v in locked.items() if n in pins and v.partition("+")[0] != pins[n]}
    assert not stale, "run `make lock`"
    assert locked["torch"] == pins["torch"] + ("+cpu" if build == "cpu" else "")
    assert any(name.startswith("nvidia-") for name in locked) is (build == "gpu")

    # Everything the project needs is there.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["stack"], *extras["lmdb"]):
        requirement = Requirement(line)
        version = locked.get(canonicalize_name(requirement.name), "0")
        assert requirement.specifier.contains(version), f"{line}: run `make lock`"
    entries = re.split(r"\n(?=\S)", text)
    for entry in entries:
        assert "--hash=sha256:" in entry or entry.startswith("#")


def _pins(text):
    lines = re.findall(r"^([\w.-]+)==([^\s\\;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def _dockerfile():
    return (INFRA / "Dockerfile").read_text()


def _tool(name):
    return str(Path(sys.executable).with_name(name))


def _run(*command, python=True):
    command = (sys.executable, *command) if python else command
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
