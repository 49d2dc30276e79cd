"""A training over two hosts with a cable to cut: its short form; `make chaos` is the long one."""

from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.checkpoint import Checkpoints
from pipeline.loop import train
from tests.chaos import Chaos
from tests.chaos_plan import KINDS, Fault, plan
from tests.chaos_report import Report
from tests.hosts import Network, refusal
from tests.installation import HOSTS, Installation
from tests.processes import ProcessGroup, free_port, run_ranks
from tests.test_loop import Recorder

pytestmark = pytest.mark.timeout(900)

TOTAL_NIMG = 1200


def _fault(kind: str, nimg: int) -> Fault:
    return Fault(kind=kind, in_commit=False, nimg=nimg, lasts_s=4, target=0)


@pytest.mark.slow
@pytest.mark.ray
def test_a_training_over_two_hosts_ends_with_the_same_bits_whatever_the_network_does(
    tmp_path, capsys
):
    """Latency and loss, a cable cut, a host killed; S3 and MLflow are on a third host."""
    why_not = refusal()
    report = Report(seed=0, total_nimg=TOTAL_NIMG, hosts=why_not, wanted=2)
    faults = [_fault("node killed", 480)]
    if why_not:
        with capsys.disabled():
            print(f"\nno network namespaces ({why_not}): Ray nodes on one host, no cable is cut")
        with Installation() as installation:
            chaos = Chaos(installation, report)
            chaos.prepare()
            chaos.disturbed([_fault("worker killed", 240), *faults])
            expected = _reference(installation.folder, tmp_path)
    else:
        with Network(HOSTS) as network, Installation(network) as installation:
            chaos = Chaos(installation, report)
            chaos.prepare()
            expected = _reference(installation.folder, tmp_path)
            network.worsen("a")
            chaos.disturbed([_fault("cable cut", 240), *faults])

    assert [outcome.kind for outcome in report.outcomes][-1] == "node killed"
    assert report.found[TOTAL_NIMG] == expected
    assert report.tracking["runs"] == 1
    assert report.tracking["status"] == "FINISHED"
    assert report.tracking["repeated"] == 0


def _reference(folder: Path, to: Path) -> dict[str, str]:
    """SHA-256 of the tensors that two processes on loopback end with, without Ray."""
    overrides = [f"data.url={folder}/data", f"run_url={to}/run", f"loader.cache_dir={to}/cache"]
    run_ranks(_train, 2, str(folder / "chaos.yaml"), overrides, free_port())
    last = Checkpoints(str(to / "run")).latest()
    return {name: file.sha256 for name, file in last.files.items() if name != "state.json"}


def _train(rank: int, path: str, overrides: list[str], port: int) -> None:
    with ProcessGroup(rank, 2, port):
        train(configs.load(path, overrides), observer=Recorder())


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_has_every_kind_many_commits_and_the_order_of_the_training(seed):
    faults = plan(55, seed=seed, kinds=list(KINDS), total_nimg=33_000)
    kinds = [fault.kind for fault in faults]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 5)
    assert sum(fault.in_commit for fault in faults) >= 14, "ten of them meet one, if four do not"
    assert [fault.nimg for fault in faults] == sorted(fault.nimg for fault in faults)
    assert faults[-1].nimg < 0.9 * 33_000
    assert faults == plan(55, seed=seed, kinds=list(KINDS), total_nimg=33_000)
    assert faults != plan(55, seed=seed + 1, kinds=list(KINDS), total_nimg=33_000)
