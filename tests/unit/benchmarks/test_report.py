import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.figures import Figure

MACHINE = {"cores": "2", "memory": "24 GiB", "kernel": "Linux 6.1, x86_64", "python": "3.11.2"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return tmp_path


def test_an_area_measured_again_replaces_itself_and_keeps_the_others(folder: Path) -> None:
    report.write([Figure("cost", "CPU", "headway", 6.0, "x", 5.0)], MACHINE, "5 rounds", "2030-01-01")
    report.write([Figure("latency", "p50 added", "headway", 0.51, "ms", 1.0)], MACHINE, "5 rounds", "2030-01-02")
    report.write([Figure("cost", "CPU", "headway", 4.5, "x", 5.0, "less")], MACHINE, "5 rounds", "2030-01-03")
    page = (folder / "RESULTS.md").read_text()
    assert "| CPU | headway | 4.50 x | 5 x | pass | less |" in page
    assert "| p50 added | headway | 0.51 ms | 1 ms | pass |  |" in page
    assert "miss" not in page
    assert "2030-01-03, 5 rounds. Machine: 2 cores, 24 GiB, Linux 6.1, x86_64, Python 3.11.2." in page
    assert list(json.loads((folder / "results.json").read_text())) == ["cost", "latency"]


def test_a_void_area_is_said_out_loud() -> None:
    console = Console(file=io.StringIO(), width=160)
    report.show(console, [Figure("cost", "CPU", "headway", 6.0, "x", 5.0)], {"latency": "49 of 50 recorded"})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "miss" in text
    assert "VOID latency: 49 of 50 recorded" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "speed"], "'speed' is none of cost, latency, streaming, memory"),
        (["--url", "http://example.com:80/v1", "--process-id", "1"], "--url takes a loopback address"),
        (["--url", "http://127.0.0.1:8080/v1"], "--process-id beside it"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert complaint in capsys.readouterr().err
