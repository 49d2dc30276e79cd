"""What is made sure of before a training starts, by the driver and by the bare worker.

config = absolute(config)
manifest = preflight(config)  # reads only
with claimed(config):         # its folder can be written, and nobody else trains there
    ...
"""

import dataclasses
import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from data_prep import ray_start, storage
from data_prep.manifest import DigestError, Manifest
from pipeline import config as configs
from pipeline.beginning import new_state, refuse_changes
from pipeline.checkpoint import Checkpoints
from pipeline.config import TrainConfig
from pipeline.minibatches import total_nimg_of
from pipeline.options import ConfigError, refuse_secret
from pipeline.tracking import default_uri

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"


def preflight(config: TrainConfig) -> Manifest:
    """Everything that can be known to be wrong without writing anything; the data's manifest.

    Raises:
        ConfigError: Data, earlier checkpoints or weights to begin with do not fit.
        DigestError: They are damaged.
        StorageError: A store does not answer.
    """
    for url in filter(None, (config.data.url, config.run_url, config.init_from)):
        storage.check_reachable(url)
    try:
        manifest = Manifest.load(config.data.url)
    except storage.MissingError as err:
        raise ConfigError(
            f"data.url {config.data.url} holds no data set ({err}); make one with "
            f"`python -m data_prep shard SOURCE {config.data.url} --resolution "
            f"{config.network.resolution}`"
        ) from err
    config.check_data(manifest)
    _refuse_other_networks(config)
    latest = Checkpoints(config.run_url).load_latest(set())
    if latest is None:
        if config.init_from:
            _check_start(config)
        return manifest
    checkpoint, _, scalars = latest
    refuse_changes(config, scalars, manifest, checkpoint.url)
    if checkpoint.nimg > total_nimg_of(config):
        logger.warning(
            "%s is at %d images, past schedule.total_kimg=%g: nothing is left to train",
            config.run_url,
            checkpoint.nimg,
            config.schedule.total_kimg,
        )
    return manifest


@contextmanager
def claimed(config: TrainConfig) -> Iterator[None]:
    """Keep other trainings of this machine out of the run, and write its config.yaml.

    Raises:
        ConfigError: The run's folder cannot be written, or another process trains there.
        StorageError: The same of a store.
    """
    path = local_folder(config) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as err:
        option = "run_url" if storage.is_local(config.run_url) else "loader.cache_dir"
        raise ConfigError(
            f"{option}: {path.parent} cannot be written ({err}); check rights and space there, or "
            f"choose another"
        ) from err
    with lock:
        _lock(lock, config.run_url)
        url = storage.join(config.run_url, "config.yaml")
        storage.write_atomic(url, configs.to_yaml(config).encode())
        yield


def absolute(config: TrainConfig) -> TrainConfig:
    """Local paths made absolute: workers have other working directories.

    Raises:
        ConfigError: In a submitted job, whose folder is deleted, there are relative ones.
    """
    return dataclasses.replace(
        config,
        run_url=_absolute("run_url", config.run_url),
        init_from=_absolute("init_from", config.init_from),
        data=dataclasses.replace(config.data, url=_absolute("data.url", config.data.url)),
        tracking=dataclasses.replace(
            config.tracking, uri=_absolute_uri("tracking.uri", config.tracking.uri)
        ),
    )


def tracking_uri(config: TrainConfig) -> str:
    """Where MLflow is: the option, else MLFLOW_TRACKING_URI, else a file in the run's folder."""
    if config.tracking.uri:
        return config.tracking.uri
    if uri := os.environ.get("MLFLOW_TRACKING_URI", ""):
        refuse_secret("MLFLOW_TRACKING_URI", uri)
        return _absolute_uri("MLFLOW_TRACKING_URI", uri)
    if storage.is_local(config.run_url):
        return default_uri(storage.local_path(config.run_url))
    raise ConfigError(
        f"tracking.uri is empty and run_url {config.run_url} is no local folder for its default, a "
        f"SQLite file; set tracking.uri=http://HOST:PORT or MLFLOW_TRACKING_URI"
    )


def local_folder(config: TrainConfig) -> Path:
    """Of this machine, for what belongs to the run: its own, or one in the cache."""
    if storage.is_local(config.run_url):
        return storage.local_path(config.run_url)
    name = hashlib.sha256(config.run_url.encode()).hexdigest()[:16]
    return config.loader.cache_dir.expanduser() / "runs" / name


def _refuse_other_networks(config: TrainConfig) -> None:
    wanted = [key for key in config.accept_changes if key.startswith("network.")]
    if wanted:
        raise ConfigError(
            f"accept_changes has {', '.join(wanted)}, but a run keeps its networks; begin another "
            f"one under another run_url, with init_from if the weights fit"
        )


def _check_start(config: TrainConfig) -> None:
    """Do what the workers will do with init_from."""
    place = f"init_from {config.init_from}"
    try:
        tensors, _ = Checkpoints.load(config.init_from, {"G", "D", "Gs"})
        state = new_state(config, torch.device("cpu"))
        state.load(tensors, state.scalars())
    except storage.MissingError as err:
        raise ConfigError(
            f"{place} is no checkpoint ({err}); give the folder of one, such as "
            f"RUN_URL/checkpoints/000-000000064000"
        ) from err
    except DigestError:
        raise
    except ValueError as err:
        raise ConfigError(f"a run cannot begin with {place}: {err}") from err


def _lock(lock: IO[str], run_url: str) -> None:
    """Lock a file until it is closed, and write into it who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        lock.seek(0)
        raise ConfigError(
            f"run_url {run_url} is being trained already, by {lock.read().strip() or 'a process'}; "
            f"wait for its end, stop it, or choose another run_url"
        ) from err
    except OSError as err:
        logger.warning("%s cannot be locked against a second training: %s", run_url, err)
        return
    lock.truncate(0)
    lock.write(f"process {os.getpid()} of {socket.gethostname()}\n")
    lock.flush()


def _absolute(option: str, url: str) -> str:
    try:
        return ray_start.absolute(option, url)
    except ValueError as err:
        raise ConfigError(str(err)) from err


def _absolute_uri(option: str, uri: str) -> str:
    """A tracking URI whose SQLite file does not depend on the working directory."""
    if not uri.startswith(_SQLITE):
        return uri
    return _SQLITE + _absolute(option, uri.removeprefix(_SQLITE))
