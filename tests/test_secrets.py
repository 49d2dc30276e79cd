"""Credentials come from the environment; a URL that carries one is refused and not repeated."""

import pytest

from pipeline import config as configs
from pipeline.options import ConfigError
from pipeline.preflight import tracking_uri
from tests.test_loop import tiny_config

WORD = "hunter2hunter2"


@pytest.mark.parametrize(
    ("option", "url", "shown"),
    [
        ("data.url", f"s3://key:{WORD}@bucket/set", "s3://key:***@bucket/set"),
        ("run_url", f"https://me:{WORD}@host/run", "https://me:***@host/run"),
        ("tracking.uri", f"http://me:{WORD}@mlflow:5000", "http://me:***@mlflow:5000"),
        ("tracking.uri", f"postgresql://:{WORD}@host/db", "postgresql://:***@host/db"),
        ("evaluation.weights", f"https://host/w?X-Amz-Signature={WORD}", "?X-Amz-Signature=***"),
        ("init_from", f"https://host/c?a=1&sig={WORD}&b=2", "?a=1&sig=***&b=2"),
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(option, url, shown):
    given = {"data.url": "data", "run_url": "run", option: url}
    with pytest.raises(ConfigError) as caught:
        configs.load("ffhq-256", [f"{key}={value}" for key, value in given.items()])
    assert f"{option} is " in str(caught.value)
    assert shown in str(caught.value)
    assert WORD not in str(caught.value)
    assert "in the environment" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a:b/c@d", "http://mlflow:5000", "https://host/w?version=3", "C:/x@y"]
)
def test_a_url_without_one_is_not(url):
    assert configs.load("ffhq-256", [f"data.url={url}", "run_url=run"]).data.url == url


def test_a_secret_in_mlflows_own_variable_is_refused_too(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{WORD}@mlflow")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is https://me:\*\*\*@mlflow"):
        tracking_uri(tiny_config("/data", tmp_path))
