"""Configurations: presets, overrides, and one sentence for everything that can be wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import config as configs
from pipeline.options import ConfigError
from tests.processes import free_port

GIVEN = ["data.url=data", "run_url=run"]
ROOT = Path(__file__).parents[1]


def test_the_number_of_workers_never_chooses_the_schedule():
    eight, two = (configs.load("ffhq-256", [*GIVEN, f"workers={n}"]) for n in (8, 2))
    assert eight.schedule == two.schedule
    assert eight.digest == two.digest


def test_overrides_reach_every_depth_and_take_numbers_as_yaml_writes_them():
    overrides = [
        "workers=4",
        "loss.r1_gamma=5",
        "schedule.batch.64=16",
        "schedule.lr={128: 1e-3}",
        "seed=7",
    ]
    config = configs.load("ffhq-256", [*GIVEN, *overrides])
    assert config.loss.r1_gamma == 5
    assert config.schedule.batch == {64: 16}
    assert config.schedule.lr == {128: 0.001}
    assert config.seed == 7


def test_a_preset_is_its_base_and_what_differs(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"base": "ffhq-256", "name": "mine"}))
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"base": "base", "schedule": {"fade_kimg": 300}})
    )
    config = configs.load(str(tmp_path / "mine.yaml"), GIVEN)
    assert config.name == "mine"
    assert config.schedule.fade_kimg == 300
    assert config.schedule.table == "official-8"


def test_bases_that_go_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    with pytest.raises(ConfigError, match="its own base"):
        configs.load(str(tmp_path / "a.yaml"))


def test_networks_without_blocks_are_not_compiled():
    with pytest.raises(ConfigError, match="kind dcgan have no blocks to compile"):
        configs.load("dcgan", [*GIVEN, "step.speed=compile"])


def test_what_changes_speed_alone_is_no_part_of_the_identity():
    same = [
        "workers=2",
        "step.micro_batch=4",
        "step.speed=compile",
        "loader.threads=9",
        "commit_kimg=1",
    ]
    assert (
        configs.load("ffhq-256", GIVEN).digest == configs.load("ffhq-256", [*GIVEN, *same]).digest
    )
    other = configs.load("ffhq-256", [*GIVEN, "loss.r1_gamma=5", "seed=1"])
    assert configs.differences(other.identity(), configs.load("ffhq-256", GIVEN).identity()) == {
        "loss.r1_gamma": (5.0, 10.0),
        "seed": (1, 0),
    }


def test_the_training_commands_of_the_readme_are_valid():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"pipeline/train\.py --config (\S+)((?: +[\w.]+=\S+)+)", text)
    assert len(commands) == 3
    for preset, overrides in commands:
        assert configs.load(preset, overrides.split()).name == preset


WRONG = [
    ("schedule.resolutoin=64", "unknown option schedule.resolutoin"),
    ("shedule.fade_kimg=1", r"unknown option shedule; did you mean schedule\?"),
    ("network.G.resolution=64", "unknown option network.G.resolution"),
    ("loss.r1_gamma=much", "loss.r1_gamma is 'much'; .*number"),
    ("loss.r1_gamma=-1", "loss.r1_gamma is -1.0; choose a number from 0 up"),
    ("loss.adversarial=lsgan", "loss.adversarial is 'lsgan'; .*wgan"),
    ("workers=0", "workers is 0; choose at least 1"),
    ("workers=16", "at 64 px a batch of 32 .*use at most 8 workers .*schedule.batch"),
    ("schedule.batch.64=30", "30 images does not consist of .* groups of 4; choose 28 or 32"),
    ("step.micro_batch=3", "splits a minibatch-stddev group of 4; choose a multiple of 4"),
    ("network.resolution=100", "resolution.* is 100; it must be a power of two"),
    ("schedule.first_resolution=512", "schedule.first_resolution is 512, above the 256 px"),
    ("schedule.table=official-3", "schedule.table is 'official-3'; .*official-8"),
    ("seed=-1", "seed is -1; choose from 0"),
    ("commit_kimg=0", "commit_kimg is 0.0; choose a positive number"),
    ("commit_kimg=.nan", "commit_kimg is nan; choose a positive number"),
    ("loss.r1_gamma=.nan", "loss.r1_gamma is nan; choose a number from 0 up"),
    ("loss.wgan_gp_target=0", "loss.wgan_gp_target is 0.0; choose 1, or above 0"),
    ("loss.r1_interval=0", "loss.r1_interval is 0; choose 1 or more"),
    ("loss.path_decay=0", r"loss.path_decay is 0.0; it must lie in \(0, 1\]"),
    ("step.average_half_life_kimg=.nan", "step.average_half_life_kimg is nan; choose 0 or more"),
    ("step.average_decay=1", r"step.average_decay is 1.0; it must lie in \[0, 1\)"),
    ("step.speed=fast", "step.speed is 'fast'; .*'max'"),
    ("step.precision=int8", "step.precision is 'int8'; .*'float16'"),
    ("network.G.mapping_lr_multiplier=.inf", "network.G.mapping_lr_multiplier is inf; .*finite"),
    ("checkpoint.keep_every_kimg=.nan", "checkpoint.keep_every_kimg is nan; choose 0"),
    ("optimizer.epsilon=.nan", "optimizer.epsilon is nan; it must be above 0"),
    ("workers=true", "workers is True; it takes a number"),
    ("name=5", "name is 5; .*valid string: set another with name=…"),
    ("run_url=''", "run_url is empty; name a folder or URL"),
    ("data.url=''", "data.url is empty; name the folder or URL"),
    ("accept_changes=[los.r1_gamma]", r"accept_changes names los.r1_gamma.*mean loss.r1_gamma\?"),
    ("network.kind=biggan", "network.kind is 'biggan'; .*'stylegan'"),
    ("network.G.use_styles=false", "network.G.const_input is on and G.use_styles off"),
    ("network.resolution=48", "^network.resolution is 48; it must be a power of two"),
    ("checkpoint.keep_last=0", "checkpoint.keep_last is 0; keep at least 1 checkpoint"),
    ("evaluation.metrics=[fdi]", "evaluation.metrics"),
    ("tracking.uri=ftp://host", "ftp://host"),
    ("loss=5", "loss is 5; it takes options"),
    ("loss.r1_gamma", "write dotted.key=value"),
    ("loss.r1_gamma.x=1", "r1_gamma"),
    ("name={", "is not YAML"),
    ("name=faces.v2", "^name is 'faces.v2', which cannot name a registered model; use letters"),
    ("registry.name=a/b", "^registry.name is 'a/b', which cannot name a registered model"),
    ("registry.alias=v1", "^registry.alias is 'v1', which MLflow keeps for itself"),
    ("registry.alias=bad alias", "^registry.alias is 'bad alias'; use letters"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_option_ends_with_one_sentence_that_names_it(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configs.load("ffhq-256", [*GIVEN, override])
    assert "\n" not in str(caught.value)


def test_the_name_of_a_run_is_free_where_the_registry_has_one_of_its_own():
    config = configs.load("ffhq-256", [*GIVEN, "name=faces.v2", "registry.name=faces"])
    assert (config.name, config.registry.name) == ("faces.v2", "faces")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("G.architecture=growing", "network.D.architecture=growing or network.G.archi.*=skip"),
        ("D.architecture=growing", "network.G.architecture=growing or network.D.archi.*=residual"),
    ],
)
def test_networks_of_which_one_alone_grows_are_refused(override: str, remedy: str):
    with pytest.raises(ConfigError, match=f"both must grow or neither: set {remedy}"):
        configs.load(["stylegan2-f", "small"], [*GIVEN, f"network.{override}"])


def test_styles_are_not_mixed_where_there_are_none():
    with pytest.raises(ConfigError, match=r"^step.mixing_prob is 0.5, .* kind gan has no styles"):
        configs.load("gan", [*GIVEN, "step.mixing_prob=0.5"])


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match=r"data.url is missing; set it .* data.url=…"):
        configs.load("ffhq-256", ["run_url=run"])


def test_a_config_that_does_not_exist_is_answered_with_the_presets():
    with pytest.raises(ConfigError, match=r"nowhere.yaml is neither a file nor a preset.*demo"):
        configs.load("nowhere.yaml")


def _train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The user's command with an environment that knows nothing of this project."""
    return subprocess.run(
        [sys.executable, str(ROOT / "pipeline" / "train.py"), *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_dry_run_from_anywhere_shows_config_schedule_and_networks(tmp_path):
    done = _train("--config", "ffhq-1024", "data.url=x", "--dry-run", "run_url=y", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("r1_gamma: 10.0", "table: official-8", "G: 26,219,627 parameters", "1024 px"):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_request_ends_the_command_line_with_code_2_and_one_line(tmp_path):
    done = _train("--config", "demo", "schedule.fade=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option schedule.fade; did you mean")
    assert len(done.stderr.strip().splitlines()) == 1


def test_data_that_are_not_there_end_the_command_before_anything_starts(tmp_path):
    done = _train("--config", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no data set" in done.stderr
    assert "python -m data_prep shard" in done.stderr


def test_a_store_that_cannot_be_reached_is_named_at_the_start(tmp_path):
    dead = f"http://127.0.0.1:{free_port()}"
    done = _train(
        *("--config", "demo", "data.url=s3://bucket/data"),
        cwd=tmp_path,
        AWS_ENDPOINT_URL=dead,
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        AWS_DEFAULT_REGION="us-east-1",
    )
    assert done.returncode == 1
    assert "s3://bucket/data" in done.stderr
    assert dead in done.stderr


def test_a_tracking_server_that_cannot_be_reached_is_named_at_the_start(tiny_data, tmp_path):
    dead = f"http://127.0.0.1:{free_port()}"
    options = [f"data.url={tiny_data}", "run_url=run", f"tracking.uri={dead}"]
    done = _train("--config", "demo", "network.resolution=16", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert dead in done.stderr
