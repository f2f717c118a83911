"""`sd35 bench`, run for a moment with the embedded model, and the options that it refuses."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sd35.backends.registry import BACKENDS
from sd35.bench.load.workload import mixed_workload, read_workload
from sd35.bench.matrix import _with_admission_limit
from sd35.bench.results import Cell, Plan, Result, read, write
from sd35.bench.server import StartingServer, error_line, serve_arguments, serve_command, start_server
from sd35.bench.session import CONCURRENCY, Session, run_session
from sd35.errors import MeasuringFailed
from sd35.settings import load_settings
from tests.cli.test_commands import SD35, TIMEOUT_S, sd35_here

QUICK = ("--rounds", "1", "--seconds", "0.3", "--warm-up", "0.1", "--clients", "2", "--judged", "2")
SMALL = """
name = "small"
[[classes]]
name = "k"
steps = [2]
guidance = [4.5]
sizes = ["64x64"]
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A workload of small images with few steps."""
    (tmp_path / "small.toml").write_text(SMALL)
    return str(tmp_path / "small.toml")


def test_a_run_prints_a_table_and_writes_a_result_and_a_page(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The server is started with the settings but without the user's storage, and every figure is reported."""
    monkeypatch.setenv("SD35_IMAGE_STORE", "s3://mine")
    monkeypatch.setenv("SD35_MAX_BATCH_ROWS", "4")
    assert (
        sd35_here(monkeypatch, "bench", *QUICK, "--rounds", "2", "--workload", small, "--out", str(tmp_path / "out"))
        == 0
    )
    printed = capsys.readouterr()
    assert "sd35-mini on onnx/float32" in printed.out
    assert "closed, 2 clients" in printed.out
    result = read(tmp_path / "out" / "bench.json")
    assert result.server.settings
    assert result.server.settings["max_batch_rows"] == "4"
    assert [load.loop for load in result.loads] == ["closed", "open", "open", "open"]
    assert result.closed.all.completed > 0
    assert {load.all.failed for load in result.loads} == {0}
    assert result.closed.row_steps_per_s
    assert result.closed.images_per_s.half_width is not None
    cold, quality = result.cold_start, result.quality
    assert cold.ready_s
    assert 0 < sum(cold.phases_s.values()) <= cold.ready_s + 0.02
    assert result.memory.peak_bytes
    assert result.memory.peak_bytes > 5e7
    assert result.batches
    assert result.batches.batches == sum(result.batches.occupancy.values())
    assert quality
    assert (quality.skip_reason, len(quality.examples), quality.reference_correct_share) == (None, 2, 1.0)
    assert quality.psnr_db is None or quality.psnr_db > 40
    assert "<svg" in (tmp_path / "out" / "bench.html").read_text()


def test_a_running_server_is_measured_without_a_cold_start(
    url: str, small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Another dialect, rate and workload can be chosen; the start of the server is unknown."""
    options = ("--dialect", "a1111", "--rate", "20", "--workload", small, "--reference", "none", "--json")
    assert sd35_here(monkeypatch, "bench", "--url", url, *QUICK, *options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])  # after the log lines of the fake service
    assert [load["name"] for load in found["loads"]] == ["closed, 2 clients", "open, 20/s"]
    assert found["loads"][0]["all"]["completed"] > 0
    assert found["loads"][0]["row_steps_per_s"]["value"] == pytest.approx(
        4 * found["loads"][0]["images_per_s"]["value"]
    )
    assert (found["cold_start"]["ready_s"], found["quality"], found["server"]["url"]) == (None, None, url)
    assert found["memory"]["peak_bytes"] > 5e7  # of this process, which runs the fake service


def test_a_matrix_lists_the_figures_of_what_runs_and_the_reasons_for_the_rest(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A combination that is not compiled yet is listed with the command that compiles it."""
    chosen = {name: BACKENDS[name] for name in ("onnx", "tensorrt")}
    monkeypatch.setattr("sd35.bench.matrix.BACKENDS", chosen)
    quick = (*QUICK, "--workload", small, "--reference", "none", "--cache-dir", str(tmp_path), "--batch", "8")
    assert sd35_here(monkeypatch, "bench", "--matrix", *quick, "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert found["settings"]["max_in_flight"] == "11"  # for a batch of eight rows
    assert "backend" not in found["settings"]
    cells = found["cells"]
    ran = [(cell["backend"], cell["precision"], cell["batch_rows"]) for cell in cells if not cell["skip_reason"]]
    assert ran == [("onnx", "float32", 8)]
    reasons = {f"{cell['backend']}/{cell['precision']}": cell["skip_reason"] for cell in cells if cell["skip_reason"]}
    assert re.search(
        r"the fp8 graphs of sd35-mini \(\S+/compiled/sd35-mini-\w+\) .* build them with: sd35 c", reasons["onnx/fp8"]
    )
    assert any(name.startswith("tensorrt/") for name in reasons)
    assert re.search(r"^onnx/float32 +8 +[\d.]+ +1.00 ", capsys.readouterr().out, re.MULTILINE)
    assert "build them with: sd35 compile" in (tmp_path / "matrix.html").read_text()


def test_a_server_with_a_slow_first_image_is_not_measured(url: str):
    """The rounds would take too long."""
    plan = Plan(clients=1, rounds=1, seconds=1, warmup_s=1, quality_images=0, max_first_image_s=0)
    session = Session(load_settings(), mixed_workload(), plan, url=url)
    with pytest.raises(MeasuringFailed, match=r"the first image took [\d.]+ s; allowed: 0 s, the value of --seconds\."):
        run_session(session, lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--dialect", "soap"), "--dialect: got 'soap'; allowed: sd35, openai, a1111, stability, plain"),
        (("--rate", "-1"), "--rate: got -1; allowed: a number above 0"),
        (("--rate", "nan"), "--rate: got nan"),
        (("--seconds", "0"), "--seconds: got 0; allowed: a number above 0"),
        (
            ("--url", "127.0.0.1:8000"),
            "--url: got '127.0.0.1:8000'; allowed: an http or https address, such as http://",
        ),
        (("--url", "http://127.0.0.1:9"), "--url: http://127.0.0.1:9 cannot be reached"),
        (("--reference", "best"), "--reference: got 'best'; allowed: onnx, openvino, diffusers, tensorrt, none"),
        (("--workload", "missing.toml"), "--workload: missing.toml cannot be read"),
        (("--out", __file__), "test_command.py cannot be written to"),
        (("--out", "/proc/report"), "--out: /proc/report cannot be written to"),
        (("--rate", "3", "--rate", "3"), "--rate: got 3 twice; allowed: each rate once"),
        (("--url", "http://me:secret@127.0.0.1:9"), "--url: contains a user name or password"),
        (("--url", "http://127.0.0.1:port"), "--url: got 'http://127.0.0.1:port'; allowed: an http or https address"),
        (("--url", "http://a\u200bb"), r"--url: got 'http://a\u200bb'; allowed: an http or https address"),
        (("--url", "http://127.0.0.1:9", "--precision", "fp8"), "allowed only without --url"),
        (("--batch", "4"), "--batch: allowed only with --matrix"),
        (("--matrix", "--rate", "3"), "--matrix: allowed only without --rate"),
        (("--matrix", "--url", "http://127.0.0.1:9"), "--matrix: allowed only without --url"),
        (("--dialect", "stability", "--url", "http://127.0.0.1:9"), "cannot be reached"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], error: str
):
    """Before anything is started, the error names the option, its value and what is allowed."""
    assert sd35_here(monkeypatch, "bench", *QUICK, *arguments) in {1, 2}
    printed = capsys.readouterr()
    assert error in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("key", ["sd35_\u200bkey", "sd35_\xe9", "sd35_a b", "sd35_\x01"])
def test_a_key_that_cannot_be_sent_in_a_header_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
):
    """The error names the variable but not the key, and the server receives no request."""
    monkeypatch.setenv("BENCH_API_KEY", key)
    assert sd35_here(monkeypatch, "bench", "--url", "http://127.0.0.1:9") == 2
    message = "sd35: BENCH_API_KEY: got a key with characters that a header cannot contain; allowed: visible ASCII"
    assert capsys.readouterr().err == f"{message} characters\n"


def test_a_matrix_admits_the_concurrent_images_of_the_comparison():
    """One client and batches of one row would otherwise admit fewer images than are generated at once."""
    plan = Plan(clients=1, rounds=1, seconds=1, warmup_s=1, quality_images=1)
    cell = Cell(backend="onnx", precision="float32", batch_rows=1)
    limited = _with_admission_limit(Session(load_settings(), mixed_workload(), plan), [cell])
    assert limited.settings.max_in_flight > CONCURRENCY


def test_each_run_against_a_running_server_has_its_own_seeds(monkeypatch: pytest.MonkeyPatch):
    """A second run would otherwise measure the server's stored images. A server started for the run has none."""
    sessions: list[Session] = []

    def stop(session: Session, _: object) -> None:
        sessions.append(session)
        raise MeasuringFailed("enough")

    monkeypatch.setattr("sd35.cli.commands.bench.run_session", stop)
    for target in (("--url", "http://127.0.0.1:9"), ("--url", "http://127.0.0.1:9"), ()):
        assert sd35_here(monkeypatch, "bench", *target, "--reference", "none") == 1
    first, second, own = (session.plan.seed_offset for session in sessions)
    assert len({first, second}) == 2
    assert own == 0


def test_a_failed_comparison_of_images_keeps_the_loads(url: str, small: str, monkeypatch: pytest.MonkeyPatch):
    """The result gives the reason in place of the comparison."""

    def fails(*_: object) -> None:
        raise MeasuringFailed("no image")

    monkeypatch.setattr("sd35.bench.session._generate_images_to_compare", fails)
    plan = Plan(clients=1, rounds=1, seconds=0.2, warmup_s=0.1, quality_images=1)
    result = run_session(Session(load_settings(), read_workload(Path(small)), plan, url=url), lambda *_: None)
    assert result.closed.all.completed
    assert result.quality
    assert result.quality.skip_reason == "no image"


def test_a_server_that_ends_during_the_measurement_is_reported_with_its_error(tmp_path: Path):
    """The message has the last line of its log."""
    (tmp_path / "log").write_text("out of memory\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(MeasuringFailed, match="the server ended during the measurement: out of memory"):
        StartingServer(process, tmp_path / "log", "http://127.0.0.1:1", 0.0).check_running()


def test_comparing_prints_a_table_or_json_and_refuses_other_files(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A file without a format is not a result."""
    file = tmp_path / "a.json"
    write(result, file)
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(file)) == 0
    assert "images/s" in capsys.readouterr().out
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(file), "--json") == 0
    assert {row["ratio"] for row in json.loads(capsys.readouterr().out)["rows"]} == {1.0}
    (tmp_path / "b.json").write_text("{}")
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(tmp_path / "b.json")) == 2
    assert "b.json: format: got None" in capsys.readouterr().err


def test_terminating_a_run_stops_its_server(small: str):
    """SIGTERM during a run leaves no process behind."""
    with subprocess.Popen([*SD35, "bench", *QUICK, "--seconds", "60", "--workload", small]) as running:
        bench = psutil.Process(running.pid)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (children := bench.children()):
            assert running.poll() is None
            assert time.monotonic() < deadline_s
        running.terminate()
        assert running.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(children[0].pid)


def test_the_settings_that_shape_figures_are_passed_to_the_server_as_flags():
    """Settings of storage are left out."""
    settings = {
        "backend": "diffusers", "reproducible": True, "ram": "8GiB", "checkpoints": "sd35-mini,other", "threads": "3",
        "cache_dir": "/var/graphs", "image_store": "s3://mine", "database": "postgresql://me@db/mine",
    }  # fmt: skip
    arguments = serve_arguments(load_settings(settings))
    assert arguments == [
        "--checkpoint", "sd35-mini", "--checkpoint", "other", "--backend", "diffusers", "--ram", "8589934592",
        "--threads", "3", "--reproducible", "--cache-dir", "/var/graphs",
    ]  # fmt: skip


def test_a_server_that_does_not_start_is_reported_with_its_error():
    """The error line of `sd35` is part of the message."""
    with start_server(serve_command(["--checkpoint", "nowhere"])) as starting, pytest.raises(MeasuringFailed) as raised:
        starting.wait_until_ready()
    assert "the server did not start: " in str(raised.value)
    assert "nowhere" in str(raised.value)
    assert starting.process.poll() is not None


def test_the_error_line_is_the_last_one_of_sd35(tmp_path: Path):
    """Without one, it is the last line of the log."""
    log = tmp_path / "log"
    for content, line in (("a\nsd35: why\n{}\n", "why"), ("a\nb\n", "b"), ("", "no output")):
        log.write_text(content)
        assert error_line(log) == line
