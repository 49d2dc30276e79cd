"""What all commands have in common."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("data_prep", "pipeline", "stylegan")
    for path in (ROOT / package).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text() or path.name == "__main__.py"
)


def test_all_commands_are_found():
    assert {"data_prep.__main__", "pipeline.demo", "pipeline.train"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_asked_for_help_a_command_prints_it_and_does_nothing_else(
    command, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    main = importlib.import_module(command).main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: python ")
    assert len(shown.out.splitlines()) > 8, "says what it is for"
    assert not shown.err
    assert list(tmp_path.iterdir()) == []
