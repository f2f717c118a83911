"""`sd35 serve` as a process: it says where it is, serves the model, logs, and ends as it is told."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sd35.api.http_server import listen
from sd35.checkpoints.graphs.compiled import compiled_graphs
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import InvalidSetting
from sd35.images.png import read_png
from sd35.images.record import from_text
from tests.support.server_process import JSON, SD35, TIMEOUT_S, Served, serving

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
LONG = json.dumps({"prompt": "a cat", "steps": 150, "guidance_scale": 0})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared server logs."""
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def served(log: Path) -> Iterator[Served]:
    """A server shared by the tests that leave it as it was."""
    with serving(log) as served:
        yield served


def test_the_printed_curl_line_makes_an_image(served: Served, tmp_path: Path):
    """A person can copy the line, and out.png is there."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    command = shlex.split(served.curl)
    assert command[:4] == ["curl", "-X", "POST", f"http://127.0.0.1:{served.port}/v1/txt2img"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=TIMEOUT_S)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_client_written_for_a_megapixel_is_served(served: Served):
    """1024x1024 is drawn smaller and enlarged by the embedded model, and says so."""
    connection = served.connect()
    body = json.dumps({"prompt": "a cat", "width": 1024, "height": 1024, "steps": 1})
    connection.request("POST", "/v1/txt2img", body, JSON)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["x-sd35-generated-size"] == "128x128"
    assert int.from_bytes(response.read()[16:20]) == 1024
    connection.close()


def test_every_request_is_logged_as_json_with_its_id(served: Served, log: Path):
    """Each line of the log is JSON; a request's and its image's have its id and trace; none has a prompt."""
    connection = served.connect()
    body = json.dumps({"prompt": "a secret", "width": 64, "height": 64, "steps": 1})
    connection.request("POST", "/v1/txt2img", body, {**JSON, "x-request-id": "find-me", **TRACE})
    response = connection.getresponse()
    response.read()
    connection.request("GET", "/healthz")  # the line is written after the answer, but before the next one
    connection.getresponse().read()
    connection.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    image, line = [line for line in lines if line.get("request_id") == "find-me"]
    assert (line["event"], line["status"], line["path"]) == ("request", 200, "/v1/txt2img")
    assert line["digest"] == image["digest"] == response.headers["x-sd35-digest"]
    assert {line["trace_id"], image["trace_id"]} == {TRACE["traceparent"][3:35]}
    stages = ("queue", "encode", "denoise", "decode", "png", "store")
    assert line["took_ms"] >= sum(image[f"{stage}_ms"] for stage in stages) - len(stages) * 0.1
    assert "a secret" not in log.read_text()


def test_a_path_does_not_steer_the_terminal(tmp_path: Path):
    """Its control characters come to the console's log as escapes."""
    log = tmp_path / "stderr"
    with serving(log, "--log-format", "console") as served:
        connection = served.connect()
        connection.request("GET", "/%1b%5d0;title%07%1b%5b2J%c2%9b31m")
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (404, True)
        connection.request("GET", "/healthz")  # the line is written after the answer, but before the next one
        connection.getresponse().read()
        connection.close()
    said = re.sub(r"\x1b\[[0-9]+m", "", log.read_text())  # structlog's own colours
    assert "\\x1b]0;title\\x07\\x1b[2J\\x9b31m" in said
    assert not {"\x1b", "\x07", "\x9b"} & set(said)


def test_a_start_is_broken_down_by_phase(served: Served, log: Path):
    """One line of the log says what the start took, in all and by phase; /metrics has the same, for Prometheus."""
    (line,) = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "ready"]
    phases = {name: line[f"{name}_s"] for name in ("import", "plan", "compile", "warm")}
    assert 0 < sum(phases.values()) <= line["after_s"] + 0.02  # a process's age is known to a hundredth
    connection = served.connect()
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert (response.status, response.headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert "sd35_ready 1.0\n" in text
    for name, took_s in phases.items():
        assert f'sd35_startup_seconds{{phase="{name}"}} {took_s}\n' in text


def test_a_server_that_does_not_fit_refuses_to_start():
    """Exit code 1, no server, and on stderr the plan's table: each part, and every way that was considered."""
    command = [*SD35, "serve", "--port", "0", "--ram", "100MB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "sd35: sd35-mini cannot be placed here" in result.stderr
    assert "Nothing fits: at the least" in result.stderr
    assert re.search(r"^encoders +\d+ MiB +\S+ MiB +does not fit$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr


def test_who_opens_it_to_all_without_keys_is_warned():
    """On the terminal and in the log, before anything is loaded, where it listens beyond this machine."""
    host = "0.0.0.0"  # noqa: S104  it ends before it serves anyone
    command = [*SD35, "serve", "--host", host, "--port", "0", "--log-format", "json", "--ram", "100MB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.stdout.startswith("WARNING: whoever reaches 0.0.0.0 may use this service: there are no API keys.")
    line = json.loads(result.stderr.splitlines()[0])
    assert (line["level"], line["event"]) == ("warning", "open to everyone: there are no API keys")


def test_nobody_is_believed_where_a_request_comes_from(served: Served, log: Path):
    """Without a trusted proxy, not even this machine: the log has the address of the connection."""
    connection = served.connect()
    headers = {"x-forwarded-for": "203.0.113.7", "x-request-id": "forwarded"}
    connection.request("GET", "/v1/models", headers=headers)
    connection.getresponse().read()
    connection.request("GET", "/healthz")  # as above
    connection.getresponse().read()
    connection.close()
    lines = map(json.loads, log.read_text().splitlines())
    assert [line["client"] for line in lines if line.get("request_id") == "forwarded"] == ["127.0.0.1"]


def test_the_head_of_a_request_is_bounded(served: Served):
    """The server that is started is the one that has bounds."""
    connection = served.connect()
    connection.request("GET", "/" + "a" * 10_000)
    assert connection.getresponse().status == 414
    connection.close()


def test_auto_that_finds_nothing_serves_the_embedded_model_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Aloud: in the log, to who started it, and on the model's card."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    log = tmp_path / "log"
    with serving(log, "--checkpoint", "auto") as served:
        assert served.process.stdout
        served.process.stdout.readline()
        assert served.process.stdout.readline().startswith("WARNING: this is sd35-mini: it stands in for SD3.5: ")
        connection = served.connect()
        connection.request("GET", "/v1/models")
        (card,) = json.loads(connection.getresponse().read())["data"]
        connection.close()
    assert card["id"] == "sd35-mini"
    assert "HF_TOKEN" in card["substitute_reason"]
    warnings = [entry for line in log.read_text().splitlines() if (entry := json.loads(line))["level"] == "warning"]
    assert [entry["checkpoint"] for entry in warnings if entry["event"] == "auto found no SD3.5"] == ["sd35-mini"]


def test_sigterm_finishes_the_running_image_and_exits_with_0(tmp_path: Path):
    """The client gets its image although the signal came while it was made."""
    with serving(tmp_path / "log") as served:
        painting = served.connect()
        painting.request("POST", "/v1/txt2img", LONG, JSON)
        _in_the_making(served)
        served.process.send_signal(signal.SIGTERM)
        response = painting.getresponse()
        assert (response.status, response.read()[:4]) == (200, b"\x89PNG")
        painting.close()
        assert served.process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("output", ["closed pipe", "full pipe", "full disk"])
def test_output_that_cannot_be_written_fails_no_work(tmp_path: Path, stream: str, output: str):
    """Images and jobs are made, and SIGTERM ends the process, whatever becomes of its standard output and error."""
    with _unwritable(output) as unwritable, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        stdout, stderr = (unwritable if stream == name else subprocess.DEVNULL for name in ("stdout", "stderr"))
        command = [*SD35, "serve", "--port", str(port), "--data-dir", str(tmp_path), "--ui", "off"]
        with subprocess.Popen(command, stdout=stdout, stderr=stderr) as process:
            try:
                _ready(port, process)
                assert _asked(port, "POST", "/v1/txt2img", {"prompt": "a cat", "steps": 1})[0] == 200
                _, job = _asked(port, "POST", "/v1/jobs", {"prompt": "a dog", "steps": 1})
                until_s = time.monotonic() + TIMEOUT_S
                while job["status"] in {"queued", "running"} and time.monotonic() < until_s:
                    _, job = _asked(port, "GET", f"/v1/jobs/{job['id']}")
                assert job["status"] == "succeeded"
                process.send_signal(signal.SIGTERM)
                assert process.wait(TIMEOUT_S) == 0
            finally:
                process.kill()


@contextmanager
def _unwritable(output: str) -> Iterator[int]:
    """A file descriptor that takes no output."""
    if output == "full disk":
        with Path("/dev/full").open("wb") as full:
            yield full.fileno()
        return
    read_end, write_end = os.pipe()
    if output == "closed pipe":
        os.close(read_end)
    else:
        os.set_blocking(write_end, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.set_blocking(write_end, True)
    yield write_end
    os.close(write_end)
    if output != "closed pipe":
        os.close(read_end)


def _ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until a server that cannot say so is ready."""
    status = 0
    while status != 200:
        assert process.poll() is None
        with suppress(ConnectionRefusedError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
            connection.close()


def _asked(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """The status and the content of an answer: JSON, or else bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request(method, path, None if body is None else json.dumps(body), JSON)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.headers["content-type"] == "application/json"
    return response.status, json.loads(content) if is_json else content


def test_a_second_signal_ends_at_once(tmp_path: Path):
    """Who does not want to wait for the image signals again."""
    with serving(tmp_path / "log") as served:
        painting = served.connect()
        painting.request("POST", "/v1/txt2img", LONG, JSON)
        _in_the_making(served)
        served.process.send_signal(signal.SIGINT)
        _closing(served)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(TIMEOUT_S) == 128 + signal.SIGINT
        with pytest.raises((http.client.HTTPException, OSError)):
            painting.getresponse()
        painting.close()


def test_a_fallback_answers_until_a_real_build_is_done(compiled: Path, tmp_path: Path):
    """Of BF16 one graph is lacking: float32 answers until a child has built it, BF16 ever after; no request fails."""
    cache = tmp_path / "cache"
    shutil.copytree(compiled, cache)
    shutil.rmtree(compiled_graphs(cache, open_checkpoint(EMBEDDED), "bf16").path("text_encoder").parent)
    asked = ["--precision", "bfloat16", "--fallback", "onnx/float32", "--cache-dir", str(cache), "--threads", "1"]
    profiles: list[str] = []
    with serving(tmp_path / "log", *asked) as served:
        connection = served.connect()
        while profiles[-2:] != ["onnx/bfloat16"] * 2:
            body = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "seed": len(profiles)}
            connection.request("POST", "/v1/txt2img", json.dumps(body), JSON)
            response = connection.getresponse()
            assert response.status == 200
            profiles.append(from_text(read_png(response.read())[1]).request.profile)
            assert "building failed" not in (tmp_path / "log").read_text()
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["precision"] == "bfloat16"
        connection.close()
    assert list(dict.fromkeys(profiles)) == ["onnx/float32", "onnx/bfloat16"]
    assert profiles == sorted(profiles, reverse=True)


def test_sigterm_while_building_leaves_no_child(tmp_path: Path):
    """The child ends, the image in flight is finished, and the service exits with 0."""
    asked = ["--precision", "bfloat16", "--fallback", "onnx/float32", "--cache-dir", str(tmp_path / "cache")]
    log = tmp_path / "log"
    with serving(log, *asked) as served:
        while not (found := re.search(r'"pid": (\d+)', log.read_text())):
            _accepted(served)
        painting = served.connect()
        painting.request("POST", "/v1/txt2img", LONG, JSON)
        _in_the_making(served)
        served.process.send_signal(signal.SIGTERM)
        assert painting.getresponse().read().startswith(b"\x89PNG")
        painting.close()
        assert served.process.wait(TIMEOUT_S) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)
    assert "building failed" not in log.read_text()


def test_a_fallback_that_is_no_backend_is_refused_at_once():
    """The error names the setting and what there is."""
    command = [*SD35, "serve", "--port", "0", "--fallback", "onxx"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 2
    assert result.stderr == "sd35: fallback: got 'onxx'; allowed: onnx, openvino, diffusers, tensorrt\n"


def _accepted(served: Served) -> None:
    """Until the server has read what was sent before: it answers another connection's question after it."""
    connection = served.connect()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    connection.close()


def _in_the_making(served: Served) -> None:
    """Until an image is: who was refused before has lost nothing."""
    connection, images = served.connect(), 0.0
    while not images:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        images = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sd35_engine_images{"))
    connection.close()


def _closing(served: Served) -> None:
    """Until the server says that it closes."""
    connection, status = served.connect(), 200
    while status == 200:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        response.read()
        status = response.status
    connection.close()


def test_a_taken_port_is_one_clear_line():
    """The error names address and flag, before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [*SD35, "serve", "--port", port], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use; see --host, --port" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "\u200b..", "a..b"])
def test_an_impossible_host_is_an_error(host: str):
    """What Python refuses to encode, and what nobody knows, are each one error that names --host."""
    with pytest.raises(InvalidSetting, match=r"^(--host: got|cannot listen on .* see --host)"):
        listen(host, 0)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path):
    """Found out only while loading: one line, exit code 1, no server that is never ready."""
    from sd35.checkpoints.open import open_checkpoint
    from sd35.settings import load_settings

    source = open_checkpoint(load_settings().checkpoints[0]).directory
    broken = tmp_path / "broken"
    shutil.copytree(source, broken, symlinks=True)
    for graph in broken.rglob("*.onnx"):
        graph.write_bytes(b"no graph")
    command = [*SD35, "serve", "--port", "0", "--checkpoint", str(broken)]
    result = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 1
    assert "model.onnx cannot be loaded" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
