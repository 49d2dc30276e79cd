"""What may get better is tried again, what cannot is not, and it is said which it was."""

import threading
from pathlib import Path

import pytest
import ray.exceptions
import torch
from ray.train import ControllerError, WorkerGroupError

from data_prep import storage
from data_prep.manifest import DigestError
from pipeline.checkpoint import Checkpoints
from pipeline.supervisor import TrainingFailedError, judge, supervise
from tests.services import BUCKET, start_s3_server
from tests.test_loop import tiny_config


def _workers_raised(*errors):
    return WorkerGroupError("…", dict(enumerate(errors)))


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (_workers_raised(RuntimeError("peer gone"), TypeError("no")), "lasting", "TypeError: no"),
        (_workers_raised(DigestError("G is damaged")), "lasting", "DigestError: G is damaged"),
        (ControllerError(AssertionError("ours")), "lasting", "AssertionError: ours"),
        (
            _workers_raised(torch.OutOfMemoryError("CUDA out of memory")),
            "lasting",
            "OutOfMemoryError: CUDA out of memory",
        ),
        (
            ControllerError(storage.StorageError("cannot read s3://x: refused")),
            "store",
            "a store failed: StorageError: cannot read s3://x: refused",
        ),
        (OSError("cannot write"), "store", "a store failed: OSError: cannot write"),
        (
            _workers_raised(RuntimeError("gloo\nConnection closed by peer [10.0.0.2]")),
            "passing",
            "the workers failed: RuntimeError: Connection closed by peer [10.0.0.2]",
        ),
        (ray.exceptions.ActorDiedError(), "passing", "the controller of the workers died"),
        (
            ControllerError(RuntimeError("init_process_group failed")),
            "passing",
            "the workers could not be run: RuntimeError: init_process_group failed",
        ),
    ],
)
def test_failures_are_told_apart(error, kind, reason):
    verdict = judge(error)
    assert verdict.reason == reason
    assert (verdict.lasting, verdict.store) == (kind == "lasting", kind == "store")


class Workers:
    def __init__(self, *outcomes):
        self.stopping = threading.Event()
        self.outcomes = list(outcomes)
        self.said: list[str] = []
        self.failure = ""

    def lasting(self) -> str:
        return self.failure

    def fit(self) -> int:
        outcome = self.outcomes.pop(0)
        if callable(outcome):
            outcome = outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def supervise(self, config) -> int:
        return supervise(self.fit, config, self, say=self.said.append)


def _config(run: Path, **changes):
    options = {"max_failures": 3, "first_wait_s": 0, **changes}
    return tiny_config(str(run / "data"), run, ray=options)


def test_passing_failures_are_tried_again_until_there_have_been_too_many(tmp_path):
    died = ray.exceptions.ActorDiedError()
    workers = Workers(died, died, 720)
    assert workers.supervise(_config(tmp_path)) == 720
    assert (
        workers.said
        == ["the controller of the workers died; that may pass: the workers start again in 0 s"] * 2
    )

    workers = Workers(died, died, died, 720)
    with pytest.raises(
        TrainingFailedError, match=r"died; 3 failures \(ray\.max_failures\) without"
    ):
        workers.supervise(_config(tmp_path))
    assert workers.outcomes == [720]


def test_a_new_checkpoint_between_failures_makes_the_count_begin_anew(tmp_path):
    def progress_and_die(nimg):
        saved = Checkpoints(str(tmp_path))
        saved.save({"G.x": torch.zeros(1)}, {}, nimg=nimg, attempt=0).result()
        return _workers_raised(RuntimeError("a neighbour is gone"))

    steps = [lambda nimg=nimg: progress_and_die(nimg) for nimg in range(1, 7)]
    assert Workers(*steps, 720).supervise(_config(tmp_path)) == 720

    spent = _workers_raised(RuntimeError("a neighbour is gone"))
    with pytest.raises(TrainingFailedError, match="run the same command again"):
        Workers(spent, 720).supervise(_config(tmp_path))  # Ray has restarted them three times


@pytest.mark.parametrize("said", ["", "the data do not fit"])
def test_lasting_failures_end_the_run_at_once(said, tmp_path):
    workers = Workers(_workers_raised(KeyError("Gs")), 720)
    workers.failure = said
    with pytest.raises(TrainingFailedError, match=said or "starting again would not mend that"):
        workers.supervise(_config(tmp_path))
    assert not workers.said


def test_a_group_that_was_preempted_starts_again_and_one_that_was_stopped_does_not(tmp_path):
    workers = Workers(336, 720)
    assert workers.supervise(_config(tmp_path)) == 720
    assert "a node is taken away" in workers.said[0]

    workers = Workers(336, 720)
    workers.stopping.set()
    assert workers.supervise(_config(tmp_path)) == 336


def test_a_store_that_is_away_is_waited_for_and_costs_no_failure(tmp_path, monkeypatch):
    server = start_s3_server(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)

    def outage():
        server.pause()
        threading.Timer(3, server.resume).start()
        return storage.StorageError("cannot read s3://x: refused")

    config = tiny_config(
        f"s3://{BUCKET}/data", f"s3://{BUCKET}/run", ray={"max_failures": 1, "first_wait_s": 0}
    )
    monkeypatch.setattr("pipeline.supervisor._LOOK_S", 0.5)
    workers = Workers(outage, 720)
    try:
        assert workers.supervise(config) == 720
    finally:
        server.stop()
    away, again = workers.said
    assert away.startswith("a store failed: StorageError: cannot read s3://x: refused; that may")
    assert away.endswith("the training goes on when the store answers")
    assert again.startswith("the store answers again, after ")


def test_a_store_that_stays_away_ends_the_run_after_its_patience(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("pipeline.supervisor._LOOK_S", 0.2)
    config = tiny_config("s3://x/data", "s3://x/run", checkpoint={"patience_s": 0})
    monkeypatch.setattr("pipeline.supervisor._newest", lambda config: "")
    with pytest.raises(TrainingFailedError, match=r"waited for 0 s \(checkpoint\.patience_s\)"):
        Workers(storage.StorageError("refused"), 720).supervise(config)
