"""`sd35 bench`, really run for a moment: what it measures is another matter. And what it refuses."""

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
from sd35.bench.matrix import _with_room
from sd35.bench.results import Cell, Plan, Result, read, write
from sd35.bench.server import Starting, arguments_of, last_words, started
from sd35.bench.session import AT_ONCE, Session, run_session
from sd35.bench.workload import mixed, read_workload
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
    """A workload that costs little."""
    (tmp_path / "small.toml").write_text(SMALL)
    return str(tmp_path / "small.toml")


def test_a_run_from_beginning_to_end(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A server is started with the settings, and with nothing of mine; it ends in a table, a file and a page."""
    monkeypatch.setenv("SD35_IMAGE_STORE", "s3://mine")
    monkeypatch.setenv("SD35_MAX_BATCH_ROWS", "4")
    assert (
        sd35_here(monkeypatch, "bench", *QUICK, "--rounds", "2", "--workload", small, "--out", str(tmp_path / "out"))
        == 0
    )
    said = capsys.readouterr()
    assert "sd35-mini on onnx/float32" in said.out
    assert "closed, 2 clients" in said.out
    result = read(tmp_path / "out" / "bench.json")
    assert result.served.settings
    assert result.served.settings["max_batch_rows"] == "4"
    assert [part.loop for part in result.parts] == ["closed", "open", "open", "open"]
    assert result.closed.all.made > 0
    assert {part.all.failed for part in result.parts} == {0}
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
    assert (quality.why_not, len(quality.shown), quality.reference_right) == (None, 2, 1.0)
    assert quality.psnr_db is None or quality.psnr_db > 40
    assert "<svg" in (tmp_path / "out" / "bench.html").read_text()


def test_a_server_that_runs_already_is_measured_as_it_is(
    url: str, small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In another dialect, at a rate of one's own, with a workload of one's own; its start is not known."""
    options = ("--dialect", "a1111", "--rate", "20", "--workload", small, "--reference", "none", "--json")
    assert sd35_here(monkeypatch, "bench", "--url", url, *QUICK, *options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])  # before it, what the double logs
    assert [part["name"] for part in found["parts"]] == ["closed, 2 clients", "open, 20/s"]
    assert found["parts"][0]["all"]["made"] > 0
    assert found["parts"][0]["row_steps_per_s"]["value"] == pytest.approx(
        4 * found["parts"][0]["images_per_s"]["value"]
    )
    assert (found["cold_start"]["ready_s"], found["quality"], found["served"]["url"]) == (None, None, url)
    assert found["memory"]["peak_bytes"] > 5e7  # of this very process, which is who listens there


def test_a_matrix_tells_what_runs_and_why_the_rest_does_not(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Of a table of backends that has one that runs here; what is not compiled is said with its remedy."""
    chosen = {name: BACKENDS[name] for name in ("onnx", "tensorrt")}
    monkeypatch.setattr("sd35.bench.matrix.BACKENDS", chosen)
    quick = (*QUICK, "--workload", small, "--reference", "none", "--cache-dir", str(tmp_path), "--batch", "8")
    assert sd35_here(monkeypatch, "bench", "--matrix", *quick, "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert found["settings"]["max_in_flight"] == "11"  # for a batch of eight rows
    assert "backend" not in found["settings"]
    cells = found["cells"]
    ran = [(cell["backend"], cell["precision"], cell["batch"]) for cell in cells if not cell["why_not"]]
    assert ran == [("onnx", "float32", 8)]
    reasons = {f"{cell['backend']}/{cell['precision']}": cell["why_not"] for cell in cells if cell["why_not"]}
    assert re.search(
        r"the fp8 graphs of sd35-mini \(\S+/compiled/sd35-mini-\w+\) .* build with: sd35 c", reasons["onnx/fp8"]
    )
    assert any(name.startswith("tensorrt/") for name in reasons)
    assert re.search(r"^onnx/float32 +8 +[\d.]+ +1.00 ", capsys.readouterr().out, re.MULTILINE)
    assert "build with: sd35 compile" in (tmp_path / "matrix.html").read_text()


def test_a_matrix_passes_over_what_is_too_slow(url: str):
    """Where the first image takes longer than may be, for the rounds would take for ever."""
    plan = Plan(clients=1, rounds=1, seconds=1, warm_s=1, judged=0, most_first_s=0)
    session = Session(load_settings(), mixed(), plan, url=url)
    with pytest.raises(MeasuringFailed, match=r"its first image took [\d.]+ s; allowed: 0; raise --seconds$"):
        run_session(session, lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dialect", "soap"), "--dialect: got 'soap'; allowed: sd35, openai, a1111, stability, plain"),
        (("--rate", "-1"), "--rate: got -1; allowed: a number above 0"),
        (("--rate", "nan"), "--rate: got nan"),
        (("--seconds", "0"), "--seconds: got 0; allowed: a number above 0"),
        (("--url", "127.0.0.1:8000"), "--url: got '127.0.0.1:8000'; allowed: an address such as http://"),
        (("--url", "http://127.0.0.1:9"), "--url: http://127.0.0.1:9 cannot be reached"),
        (("--reference", "best"), "--reference: got 'best'; allowed: onnx, openvino, diffusers, tensorrt, none"),
        (("--workload", "missing.toml"), "--workload: missing.toml cannot be read"),
        (("--out", __file__), "test_command.py cannot be written to"),
        (("--out", "/proc/report"), "--out: /proc/report cannot be written to"),
        (("--rate", "3", "--rate", "3"), "--rate: got 3 twice; allowed: each once"),
        (("--url", "http://me:secret@127.0.0.1:9"), "--url: holds a password"),
        (("--url", "http://127.0.0.1:port"), "--url: got 'http://127.0.0.1:port'; allowed: an address"),
        (("--url", "http://a\u200bb"), r"--url: got 'http://a\u200bb'; allowed: an address"),
        (("--url", "http://127.0.0.1:9", "--precision", "fp8"), "allowed: without --url"),
        (("--batch", "4"), "--batch: is of the matrix; allowed: with --matrix"),
        (("--matrix", "--rate", "3"), "--matrix: measures a closed loop; allowed: without --rate"),
        (("--matrix", "--url", "http://127.0.0.1:9"), "--matrix: starts its own servers"),
        (("--dialect", "stability", "--url", "http://127.0.0.1:9"), "cannot be reached"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
):
    """Before anything is started: the field, what came, what is allowed."""
    assert sd35_here(monkeypatch, "bench", *QUICK, *arguments) in {1, 2}
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("key", ["sd35_\u200bkey", "sd35_\xe9", "sd35_a b", "sd35_\x01"])
def test_a_key_that_no_header_can_carry_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
):
    """The variable is named and the key is not shown, before the server is asked for anything."""
    monkeypatch.setenv("BENCH_API_KEY", key)
    assert sd35_here(monkeypatch, "bench", "--url", "http://127.0.0.1:9") == 2
    said = "sd35: BENCH_API_KEY: got a key that no header can carry; allowed: visible ASCII characters\n"
    assert capsys.readouterr().err == said


def test_a_matrix_leaves_room_for_the_images_to_compare():
    """More are drawn at once than one client and a batch of one row would ask for, and none is to be refused."""
    plan = Plan(clients=1, rounds=1, seconds=1, warm_s=1, judged=1)
    cell = Cell(backend="onnx", precision="float32", batch=1)
    assert _with_room(Session(load_settings(), mixed(), plan), [cell]).settings.max_in_flight > AT_ONCE


def test_each_run_against_a_running_server_requests_new_images(monkeypatch: pytest.MonkeyPatch):
    """A second run would otherwise measure the server's stored images. A server started for the run has none."""
    sessions: list[Session] = []

    def stop(session: Session, _: object) -> None:
        sessions.append(session)
        raise MeasuringFailed("enough")

    monkeypatch.setattr("sd35.cli.commands.bench.run_session", stop)
    for target in (("--url", "http://127.0.0.1:9"), ("--url", "http://127.0.0.1:9"), ()):
        assert sd35_here(monkeypatch, "bench", *target, "--reference", "none") == 1
    first, second, own = (session.plan.salt for session in sessions)
    assert len({first, second}) == 2
    assert own == 0


def test_loads_are_kept_where_the_images_to_compare_fail(url: str, small: str, monkeypatch: pytest.MonkeyPatch):
    """A server that breaks after them is told of beside their figures."""

    def fails(*_: object) -> None:
        raise MeasuringFailed("no image")

    monkeypatch.setattr("sd35.bench.session._draw", fails)
    plan = Plan(clients=1, rounds=1, seconds=0.2, warm_s=0.1, judged=1)
    result = run_session(Session(load_settings(), read_workload(Path(small)), plan, url=url), lambda *_: None)
    assert result.closed.all.made
    assert result.quality
    assert result.quality.why_not == "no image"


def test_a_server_that_ends_in_the_middle_is_told_with_its_last_words(tmp_path: Path):
    """Whatever else failed by that."""
    (tmp_path / "log").write_text("out of memory\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(MeasuringFailed, match="the server ended while it was measured: out of memory"):
        Starting(process, tmp_path / "log", 1, 0.0).check_runs()


def test_comparing_prints_a_table_and_tells_what_is_no_result(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Also as JSON."""
    file = tmp_path / "a.json"
    write(result, file)
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(file)) == 0
    assert "images/s" in capsys.readouterr().out
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(file), "--json") == 0
    assert {line["ratio"] for line in json.loads(capsys.readouterr().out)["lines"]} == {1.0}
    (tmp_path / "b.json").write_text("{}")
    assert sd35_here(monkeypatch, "bench", "compare", str(file), str(tmp_path / "b.json")) == 2
    assert "b.json: format: got None" in capsys.readouterr().err


def test_who_ends_a_run_ends_its_server(small: str):
    """SIGTERM in the middle of it leaves no process behind."""
    with subprocess.Popen([*SD35, "bench", *QUICK, "--seconds", "60", "--workload", small]) as running:
        bench = psutil.Process(running.pid)
        until_s = time.monotonic() + TIMEOUT_S
        while not (children := bench.children()):
            assert running.poll() is None
            assert time.monotonic() < until_s
        running.terminate()
        assert running.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(children[0].pid)


def test_a_server_is_given_the_settings_that_shape_its_figures():
    """As flags, which a server reads as the same settings; where it keeps things is not among them."""
    given = {
        "backend": "diffusers", "reproducible": True, "ram": "8GiB", "checkpoints": "sd35-mini,other", "threads": "3",
        "cache_dir": "/var/graphs", "store": "s3://mine", "database": "postgresql://me@db/mine",
    }  # fmt: skip
    arguments = arguments_of(load_settings(given))
    assert arguments == [
        "--checkpoint", "sd35-mini", "--checkpoint", "other", "--backend", "diffusers", "--ram", "8589934592",
        "--threads", "3", "--reproducible", "--cache-dir", "/var/graphs",
    ]  # fmt: skip


def test_a_server_that_does_not_start_is_told_in_its_own_words():
    """The line in which it says why."""
    with started(["--checkpoint", "nowhere"]) as starting, pytest.raises(MeasuringFailed) as raised:
        starting.until_ready()
    assert "the server did not start: " in str(raised.value)
    assert "nowhere" in str(raised.value)
    assert starting.process.poll() is not None


def test_last_words_are_the_commands_own(tmp_path: Path):
    """Or, where it has none, what was said last."""
    log = tmp_path / "log"
    for content, words in (("a\nsd35: why\n{}\n", "why"), ("a\nb\n", "b"), ("", "it said nothing")):
        log.write_text(content)
        assert last_words(log) == words
