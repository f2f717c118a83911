"""`sd35 serve` as a process: its output and logs, and how it ends."""

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
from sd35.api.terminal import STOPPING
from sd35.checkpoints.graphs.compiled import compiled_graphs
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import InvalidSetting
from sd35.images.png import read_png
from sd35.images.record import from_text
from tests.support.server_process import JSON, SD35, TIMEOUT_S, Served, serving

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
STOP_LINE = "Stop with Ctrl-C: running images are finished first. A second Ctrl-C ends at once.\n"
LONG = json.dumps({"prompt": "a cat", "steps": 150, "guidance_scale": 0})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of the shared server."""
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def served(log: Path) -> Iterator[Served]:
    """A server for tests that do not change it."""
    with serving(log) as served:
        yield served


def test_console_output_says_how_to_use_and_how_to_stop_the_server(tmp_path: Path):
    """The printed curl command generates an image. Ctrl-C prints that running images are finished."""
    with serving(tmp_path / "log", "--log-format", "console") as served:
        assert served.process.stdout
        lines = [line.strip() for line in iter(served.process.stdout.readline, STOP_LINE)]
        assert any(line.startswith("Model           sd35-mini, revision ") for line in lines)
        assert any(line.startswith("Memory ") and "planned at the peak" in line for line in lines)
        command = shlex.split(next(line for line in lines if line.startswith("curl ")))
        assert command[:5] == ["curl", "-f", "-X", "POST", f"http://127.0.0.1:{served.port}/v1/txt2img"]
        if shutil.which("curl"):
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=TIMEOUT_S)
            assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(TIMEOUT_S) == 0
        assert served.process.stdout.read() == f"{STOPPING}\n"


def test_a_program_gets_one_line_when_the_server_is_ready(tmp_path: Path):
    """With JSON logs and no terminal, stdout only has the address."""
    with serving(tmp_path / "log") as served:
        assert served.process.stdout
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(TIMEOUT_S) == 0
        assert served.process.stdout.read() == ""


def test_a_request_for_a_megapixel_is_generated_smaller_and_enlarged(served: Served):
    """By the embedded model. The response has the generated size."""
    connection = served.connect()
    body = json.dumps({"prompt": "a cat", "width": 1024, "height": 1024, "steps": 1})
    connection.request("POST", "/v1/txt2img", body, JSON)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["x-sd35-generated-size"] == "128x128"
    assert int.from_bytes(response.read()[16:20]) == 1024
    connection.close()


def test_internals_of_migrations_are_not_logged(served: Served, log: Path):
    assert served.process.poll() is None
    assert "ready" in log.read_text()
    assert not any(words in log.read_text() for words in ("SQLiteImpl", "Running upgrade", "transactional DDL"))


def test_every_request_is_logged_as_json_with_its_id(served: Served, log: Path):
    """The lines of a request and of its image have the request's ID and trace. No line has the prompt."""
    connection = served.connect()
    body = json.dumps({"prompt": "a secret", "width": 64, "height": 64, "steps": 1})
    connection.request("POST", "/v1/txt2img", body, {**JSON, "x-request-id": "find-me", **TRACE})
    response = connection.getresponse()
    response.read()
    connection.request("GET", "/healthz")  # a line is written after its response, but before the next response
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


def test_control_characters_of_a_path_are_escaped_in_the_console_log(tmp_path: Path):
    """A terminal would obey them."""
    log = tmp_path / "stderr"
    with serving(log, "--log-format", "console") as served:
        connection = served.connect()
        connection.request("GET", "/%1b%5d0;title%07%1b%5b2J%c2%9b31m")
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (404, True)
        connection.request("GET", "/healthz")  # a line is written after its response, but before the next response
        connection.getresponse().read()
        connection.close()
    text = re.sub(r"\x1b\[[0-9]+m", "", log.read_text())  # structlog's own colours
    assert "\\x1b]0;title\\x07\\x1b[2J\\x9b31m" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_the_duration_of_the_start_is_logged_by_phase(served: Served, log: Path):
    """`/metrics` has the same values."""
    (line,) = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "ready"]
    assert line["models"] == ["sd35-mini: onnx, float32"]
    phases = {name: line[f"{name}_s"] for name in ("import", "plan", "compile", "warm")}
    assert 0 < sum(phases.values()) <= line["after_s"] + 0.02  # the age of a process has a resolution of 10 ms
    connection = served.connect()
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    metrics = response.read().decode()
    connection.close()
    assert (response.status, response.headers["content-type"].split(";")[0]) == (200, "text/plain")
    assert "sd35_ready 1.0\n" in metrics
    for name, took_s in phases.items():
        assert f'sd35_startup_seconds{{phase="{name}"}} {took_s}\n' in metrics


def test_a_model_that_does_not_fit_ends_the_server_with_1():
    """The error has the plan's table of placements."""
    command = [*SD35, "serve", "--port", "0", "--ram", "100MB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "sd35: sd35-mini does not fit in memory; `sd35 plan` shows alternatives" in result.stderr
    assert "Does not fit. The smallest placement is offload " in result.stderr
    assert re.search(r"^encoders +\d+ MiB +\S+ MiB +does not fit$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr


def test_a_public_address_without_keys_is_a_warning():
    """On stdout and in the log, before anything is loaded."""
    host = "0.0.0.0"  # noqa: S104  it ends before it serves requests
    command = [*SD35, "serve", "--host", host, "--port", "0", "--log-format", "json", "--ram", "100MB"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.stdout.startswith("WARNING: there are no API keys, so anyone who can reach 0.0.0.0 may use this ")
    line = json.loads(result.stderr.splitlines()[0])
    assert (line["level"], line["event"]) == ("warning", "open to everyone: there are no API keys")


def test_forwarded_addresses_are_ignored_without_a_trusted_proxy(served: Served, log: Path):
    """Even from this machine: the log has the address of the connection."""
    connection = served.connect()
    headers = {"x-forwarded-for": "203.0.113.7", "x-request-id": "forwarded"}
    connection.request("GET", "/v1/models", headers=headers)
    connection.getresponse().read()
    connection.request("GET", "/healthz")  # as above
    connection.getresponse().read()
    connection.close()
    lines = map(json.loads, log.read_text().splitlines())
    assert [line["client"] for line in lines if line.get("request_id") == "forwarded"] == ["127.0.0.1"]


def test_the_size_of_a_requests_head_is_limited(served: Served):
    connection = served.connect()
    connection.request("GET", "/" + "a" * 10_000)
    assert connection.getresponse().status == 414
    connection.close()


def test_auto_without_sd35_serves_the_embedded_model_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On stdout, in the log, and in `/v1/models`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    log = tmp_path / "log"
    with serving(log, "--checkpoint", "auto") as served:
        assert served.process.stdout
        assert served.process.stdout.readline().startswith("WARNING: serving sd35-mini instead of SD3.5: no weights ")
        connection = served.connect()
        connection.request("GET", "/v1/models")
        (card,) = json.loads(connection.getresponse().read())["data"]
        connection.close()
    assert card["id"] == "sd35-mini"
    assert "HF_TOKEN" in card["substitute_reason"]
    warnings = [entry for line in log.read_text().splitlines() if (entry := json.loads(line))["level"] == "warning"]
    assert [entry["checkpoint"] for entry in warnings if entry["event"] == "auto found no SD3.5"] == ["sd35-mini"]


def test_sigterm_finishes_the_running_image_and_exits_with_0(tmp_path: Path):
    with serving(tmp_path / "log") as served:
        client = served.connect()
        client.request("POST", "/v1/txt2img", LONG, JSON)
        _wait_until_in_flight(served)
        served.process.send_signal(signal.SIGTERM)
        response = client.getresponse()
        assert (response.status, response.read()[:4]) == (200, b"\x89PNG")
        client.close()
        assert served.process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("output", ["closed pipe", "full pipe", "full disk"])
def test_output_that_cannot_be_written_does_not_end_images_or_jobs(tmp_path: Path, stream: str, output: str):
    """Nor a shutdown by SIGTERM."""
    with _unwritable(output) as unwritable, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        stdout, stderr = (unwritable if stream == name else subprocess.DEVNULL for name in ("stdout", "stderr"))
        command = [*SD35, "serve", "--port", str(port), "--data-dir", str(tmp_path), "--ui", "off"]
        with subprocess.Popen(command, stdout=stdout, stderr=stderr) as process:
            try:
                _wait_until_ready(port, process)
                assert _request(port, "POST", "/v1/txt2img", {"prompt": "a cat", "steps": 1})[0] == 200
                _, job = _request(port, "POST", "/v1/jobs", {"prompt": "a dog", "steps": 1})
                until_s = time.monotonic() + TIMEOUT_S
                while job["status"] in {"queued", "running"} and time.monotonic() < until_s:
                    _, job = _request(port, "GET", f"/v1/jobs/{job['id']}")
                assert job["status"] == "succeeded"
                process.send_signal(signal.SIGTERM)
                assert process.wait(TIMEOUT_S) == 0
            finally:
                process.kill()


@contextmanager
def _unwritable(output: str) -> Iterator[int]:
    """Open a file descriptor that accepts no output."""
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


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait for a server that cannot print that it is ready."""
    status = 0
    while status != 200:
        assert process.poll() is None
        with suppress(ConnectionRefusedError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
            connection.close()


def _request(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Return the status and the content of a response: parsed JSON, or bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request(method, path, None if body is None else json.dumps(body), JSON)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.headers["content-type"] == "application/json"
    return response.status, json.loads(content) if is_json else content


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path):
    """Without finishing the image."""
    with serving(tmp_path / "log") as served:
        client = served.connect()
        client.request("POST", "/v1/txt2img", LONG, JSON)
        _wait_until_in_flight(served)
        served.process.send_signal(signal.SIGINT)
        _wait_until_closing(served)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(TIMEOUT_S) == 128 + signal.SIGINT
        with pytest.raises((http.client.HTTPException, OSError)):
            client.getresponse()
        client.close()


def test_a_fallback_serves_until_the_build_has_ended(compiled: Path, tmp_path: Path):
    """One BF16 graph is missing. float32 serves until a child process has built it. No request fails."""
    cache = tmp_path / "cache"
    shutil.copytree(compiled, cache)
    shutil.rmtree(compiled_graphs(cache, open_checkpoint(EMBEDDED), "bf16").path("text_encoder").parent)
    flags = ["--precision", "bfloat16", "--fallback", "onnx/float32", "--cache-dir", str(cache), "--threads", "1"]
    profiles: list[str] = []
    with serving(tmp_path / "log", *flags) as served:
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


def test_sigterm_during_a_build_ends_the_child_process(tmp_path: Path):
    """The image in flight is finished, and the server exits with 0."""
    flags = ["--precision", "bfloat16", "--fallback", "onnx/float32", "--cache-dir", str(tmp_path / "cache")]
    log = tmp_path / "log"
    with serving(log, *flags) as served:
        while not (found := re.search(r'"pid": (\d+)', log.read_text())):
            _wait_until_read(served)
        client = served.connect()
        client.request("POST", "/v1/txt2img", LONG, JSON)
        _wait_until_in_flight(served)
        served.process.send_signal(signal.SIGTERM)
        assert client.getresponse().read().startswith(b"\x89PNG")
        client.close()
        assert served.process.wait(TIMEOUT_S) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)
    assert "building failed" not in log.read_text()


def test_an_unknown_fallback_is_refused_at_once():
    command = [*SD35, "serve", "--port", "0", "--fallback", "onxx"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 2
    assert result.stderr == "sd35: fallback: got 'onxx'; allowed: onnx, openvino, diffusers, tensorrt\n"


def _wait_until_read(served: Served) -> None:
    """Wait until the server has read what other connections sent: it then answers this one."""
    connection = served.connect()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    connection.close()


def _wait_until_in_flight(served: Served) -> None:
    """Wait until an image is in flight."""
    connection, images = served.connect(), 0.0
    while not images:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        images = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sd35_engine_images{"))
    connection.close()


def _wait_until_closing(served: Served) -> None:
    """Wait until the server reports that it closes."""
    connection, status = served.connect(), 200
    while status == 200:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        response.read()
        status = response.status
    connection.close()


def test_an_address_in_use_is_an_error_of_one_line():
    """With the address and the flag, before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [*SD35, "serve", "--port", port], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use); choose another " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "\u200b..", "a..b"])
def test_an_impossible_host_is_an_error(host: str):
    """A name that Python refuses to encode, or an unknown name. The error names --host."""
    with pytest.raises(InvalidSetting, match=r"^(--host: got|cannot listen on .* choose another --host)"):
        listen(host, 0)


def test_a_model_that_cannot_be_loaded_ends_the_server_with_1(tmp_path: Path):
    """The error is one line, without a traceback."""
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
