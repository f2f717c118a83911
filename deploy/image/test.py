"""Builds the image `cpu`, and tests it as its user with a read-only root: `make image-test`.

The image runs in docker or podman. With buildah alone, it is mounted read-only in a new mount namespace, and its
command runs by chroot, as the image's user and as process 1 of a new process namespace. This is like a container,
except for the network and limits, and needs root.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
IMAGE = "sd35:cpu"
BASE = "docker.io/library/debian:bookworm-slim"  # as in the Dockerfile
BOOTSTRAPPED = "localhost/bookworm-minbase:latest"
MAX_MB = 750  # without the base image; includes the user interface
READY_S, PULL_S, BUILD_S, RESPONSE_S = 60, 60, 1200, 60
CURL = re.compile(r"^\$ (curl -X POST http://127\.0\.0\.1:8000/v1/txt2img .*?-o out\.png)$", re.MULTILINE | re.DOTALL)
LONG = {"prompt": "a cat", "width": 256, "height": 256, "steps": 150}


def run(command: Sequence[str], timeout_s: float = BUILD_S, **options: Any) -> str:  # noqa: ANN401  Popen's
    """Run a command and return its output."""
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.PIPE, text=True, **options)
    return str(done.stdout).strip()


class Image:
    """The built image: its configuration, and its layers as (size in bytes, digest, command)."""

    def __init__(self, engine: str, scratch: Path) -> None:
        self.engine, archive = engine, scratch / "image.tar"
        if engine == "buildah":
            run(["buildah", "push", "--quiet", IMAGE, f"docker-archive:{archive}:{IMAGE}"])
        else:
            run([engine, "save", "--output", str(archive), IMAGE])
        with tarfile.open(archive) as tar:
            (manifest,) = json.loads(_read(tar, "manifest.json"))
            document = json.loads(_read(tar, manifest["Config"]))
            sizes = [tar.getmember(name).size for name in manifest["Layers"]]
        archive.unlink()
        self.config: dict[str, Any] = document["config"]
        commands = [each.get("created_by", "") for each in document["history"] if not each.get("empty_layer")]
        self.layers = list(zip(sizes, document["rootfs"]["diff_ids"], commands, strict=True))

    def report(self) -> None:
        """Print the layers and check their total size. The first layer is the base image."""
        for size, digest, command in self.layers:
            made_by = command.partition("/bin/sh -c ")[2] or "the base image"
            print(f"{size / 1e6:8.1f} MB  {digest[7:19]}  {' '.join(made_by.split())[:90]}")
        total_mb = sum(size for size, *_ in self.layers[1:]) / 1e6
        print(f"{total_mb:8.1f} MB  without the base image")
        assert total_mb <= MAX_MB, f"the layers have {total_mb:.1f} MB; allowed: at most {MAX_MB}"

    @contextlib.contextmanager
    def runner(self, cache: Path) -> Iterator["Runner"]:
        """Yield a runner of the image with a read-only root and the folder `cache` mounted."""
        if self.engine != "buildah":
            command = [self.engine, "run", "--rm", "--init=false", "--read-only", "--network=host"]
            yield Runner(command, self.engine, cache)
            return
        container = run(["buildah", "from", IMAGE])
        try:
            yield Chroot(Path(run(["buildah", "mount", container])), self.config, cache)
        finally:
            run(["buildah", "rm", container])


class Runner:
    """Runs the image's command in docker or podman."""

    def __init__(self, command: list[str], engine: str, cache: Path) -> None:
        self.cache = cache
        self._command, self._engine, self._count = command, engine, 0

    @property
    def _name(self) -> str:
        return f"sd35-image-test-{self._count}"

    def start(self, port: int, stderr: int | None = None) -> "subprocess.Popen[str]":
        """Start the image's command."""
        self._count += 1
        flags = [f"--name={self._name}", f"--volume={self.cache}:/cache", f"--env=SD35_PORT={port}"]
        return subprocess.Popen([*self._command, *flags, IMAGE], text=True, stderr=stderr)

    def terminate(self, _: "subprocess.Popen[str]") -> None:
        """Send SIGTERM, as `docker stop` does."""
        run([self._engine, "kill", "--signal=TERM", self._name])

    def remove(self, process: "subprocess.Popen[str]") -> None:
        """Stop and remove the container, if it still exists."""
        subprocess.run([self._engine, "rm", "--force", self._name], check=False)
        process.wait(READY_S)

    def check(self, _: int, command: Sequence[str]) -> int:
        """Run another command in the running container and return its exit code."""
        return subprocess.run([self._engine, "exec", self._name, *command], check=False).returncode


class Chroot(Runner):
    """Runs the image's command on its mounted root."""

    _ENTER = """
        mount --bind "$ROOT" "$ROOT"; mount --bind "$CACHE" "$ROOT/cache"
        mount -t proc proc "$ROOT/proc"; mount --bind /dev "$ROOT/dev"; mount -o remount,bind,ro "$ROOT"
        cd "$ROOT"; exec chroot --userspec="$IMAGE_USER" . /usr/bin/env -i -C /cache "$@"
    """

    def __init__(self, root: Path, config: dict[str, Any], cache: Path) -> None:
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", self._ENTER, "sh"]
        super().__init__(enter, "buildah", cache)
        self._config = config
        self._environment = {**os.environ, "ROOT": str(root), "IMAGE_USER": config["User"]}

    def start(self, port: int, stderr: int | None = None) -> "subprocess.Popen[str]":
        """Start the image's command."""
        return self._popen(port, [*self._config["Entrypoint"], *self._config["Cmd"]], stderr)

    def _popen(self, port: int, command: Sequence[str], stderr: int | None = None) -> "subprocess.Popen[str]":
        variables = [*self._config["Env"], f"SD35_PORT={port}"]
        environment = {**self._environment, "CACHE": str(self.cache)}
        return subprocess.Popen([*self._command, *variables, *command], text=True, env=environment, stderr=stderr)

    def terminate(self, process: "subprocess.Popen[str]") -> None:
        """Send SIGTERM to process 1 of the namespace, the child of `unshare`."""
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        os.kill(int(child), signal.SIGTERM)

    def remove(self, process: "subprocess.Popen[str]") -> None:
        """Kill `unshare`, which kills process 1 of the namespace and with it all others."""
        process.kill()
        process.wait(READY_S)

    def check(self, port: int, command: Sequence[str]) -> int:
        """Run another command in the image and return its exit code."""
        return self._popen(port, command).wait(READY_S)


def base_image(engine: str, scratch: Path) -> str:
    """Return the name of the base image. It is made from Debian's packages if no registry can be reached."""
    if name := os.environ.get("BASE_IMAGE"):
        return name
    with contextlib.suppress(subprocess.SubprocessError):
        run([engine, "pull", "--quiet", BASE], PULL_S)
        return BASE
    print("No registry can be reached: making a base image from Debian's packages.")
    archive = scratch / "base.tar"
    without = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("man", "locale", "doc")]
    with_copyright = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
    mirrors = [mirror] if (mirror := os.environ.get("APT_MIRROR")) else []
    run(["mmdebstrap", "--quiet", "--variant=minbase", *without, with_copyright, "bookworm", str(archive), *mirrors])
    if engine == "buildah":
        container = run(["buildah", "from", "scratch"])
        run(["buildah", "add", "--quiet", container, str(archive), "/"])
        run(["buildah", "commit", "--quiet", "--rm", container, BOOTSTRAPPED])
    else:
        run([engine, "import", str(archive), BOOTSTRAPPED])
    archive.unlink()
    return BOOTSTRAPPED


def send(port: int, path: str, body: object = None) -> tuple[int, bytes]:
    """Send a request. Return the status and the body of the response, or status 0 if nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=RESPONSE_S)
    with contextlib.closing(connection):
        try:
            encoded = None if body is None else json.dumps(body)
            connection.request("POST" if encoded else "GET", path, encoded, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""


def wait_for(state: str, process: "subprocess.Popen[str]", is_reached: Callable[[], bool]) -> None:
    """Wait until a state is reached, at most `READY_S`. Fails if the process ends before that."""
    deadline_s = time.monotonic() + READY_S
    while not is_reached():
        assert process.poll() is None, f"the command ended with {process.returncode} while waiting for: {state}"
        assert time.monotonic() < deadline_s, f"not reached within {READY_S} s: {state}"
        time.sleep(0.02)


def check_png(content: bytes, side_px: int) -> None:
    """Check the checksums of all chunks, the size, and the number of pixels of a PNG file."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n", content[:80]
    start, pixels, names = 8, b"", []
    while start < len(content):
        (length,), name = struct.unpack(">I", content[start : start + 4]), content[start + 4 : start + 8]
        end = start + 8 + length
        data, checksum = content[start + 8 : end], content[end : end + 4]
        assert zlib.crc32(name + data) == int.from_bytes(checksum, "big"), f"{name!r} is damaged"
        pixels += data if name == b"IDAT" else b""
        names.append(name)
        start = end + 4
    assert (names[0], names[-1]) == (b"IHDR", b"IEND")
    assert struct.unpack(">II", content[16:24]) == (side_px, side_px)
    assert len(zlib.decompress(pixels)) == side_px * (1 + 3 * side_px)


def try_serving(runner: Runner, image: Image, scratch: Path) -> None:
    """Check readiness, health, an image with the README's command, and the response to SIGTERM during another image."""
    port, began_s = _free_port(), time.monotonic()
    process = runner.start(port)
    try:
        wait_for("ready", process, lambda: send(port, "/readyz")[0] == 200)
        print(f"{time.monotonic() - began_s:8.2f} s   from the container's start to ready")
        kind, *health = image.config["Healthcheck"]["Test"]
        assert (kind, runner.check(port, health)) == ("CMD", 0), "HEALTHCHECK fails"
        line = CURL.search((ROOT / "README.md").read_text(encoding="utf-8"))
        assert line, "the README has no such curl command"
        run(["sh", "-c", line[1].replace(":8000", f":{port}")], RESPONSE_S, cwd=scratch)
        check_png((scratch / "out.png").read_bytes(), 1024)
        responses: list[tuple[int, bytes]] = []
        client = threading.Thread(target=lambda: responses.append(send(port, "/v1/txt2img", LONG)))
        client.start()
        running = b'sd35_engine_images{state="running"} 1.0'
        wait_for("a running image", process, lambda: running in send(port, "/metrics")[1])
        runner.terminate(process)
        client.join(RESPONSE_S)
        assert process.wait(READY_S) == 0, f"the command ended with {process.returncode}"
        ((status, content),) = responses
        assert status == 200, f"the request that was running at SIGTERM got status {status}"
        check_png(content, 256)
    finally:
        runner.remove(process)
    print("ready and healthy; generated an image; after SIGTERM, finished the running image and ended with 0")


def try_unwritable_cache(runner: Runner, folder: Path) -> None:
    """Check that a cache folder of another user gives exit code 2 and an error that names the owner."""
    folder.mkdir()
    folder.chmod(0o555)
    runner.cache, owner = folder, f"{folder.stat().st_uid}:{folder.stat().st_gid}"
    process = runner.start(_free_port(), stderr=subprocess.PIPE)
    _, output = process.communicate(timeout=READY_S)
    error = output.strip().splitlines()[-1]
    print(error)
    assert process.returncode == 2
    for words in ("data_dir: /cache/data cannot be written to", f"belongs to {owner}", "this process is 1000:1000"):
        assert words in error, words


def try_inside(runner: Runner) -> None:
    """Check that the root is read-only, that pip and compilers are missing, and that the inventory lists packages."""
    is_minimal = "! touch /x 2>/dev/null && ! command -v pip pip3 gcc cc && cd /usr/share/doc/sd35"
    names = "grep -q onnxruntime sbom.cdx.json && grep -q libc6 sbom.cdx.json && grep -q '^pillow .*: ' licences.txt"
    assert runner.check(0, ["sh", "-c", f"{is_minimal} && {names}"]) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file
    return file.read()


def main() -> None:
    """Build and test the image in a temporary directory. The image stays in the storage of docker or podman."""
    engine = run([str(HERE / "engine.sh")])
    with tempfile.TemporaryDirectory(prefix="sd35-image-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory)
        if engine == "buildah":
            os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
            driver = json.loads(run(["buildah", "info"]))["store"]["GraphDriverName"]
            configuration = scratch / "storage.conf"
            folders = f'graphroot = "{scratch}/storage"\nrunroot = "{scratch}/run"\n'
            configuration.write_text(f'[storage]\ndriver = "{driver}"\n{folders}', encoding="utf-8")
            os.environ["CONTAINERS_STORAGE_CONF"] = str(configuration)
        os.environ["BASE_IMAGE"] = base_image(engine, scratch)
        began_s = time.monotonic()
        run([str(HERE / "build.sh"), "cpu"], stderr=subprocess.STDOUT)
        print(f"{time.monotonic() - began_s:8.0f} s   to build")
        image = Image(engine, scratch)
        image.report()
        cache = scratch / "cache"
        cache.mkdir()
        scratch.chmod(0o711)  # the image's user must reach its cache
        if os.geteuid() == 0:
            os.chown(cache, 1000, 1000)
        else:
            cache.chmod(0o777)  # the image's user is not this one
        with image.runner(cache) as runner:
            try_serving(runner, image, scratch)
            if engine == "buildah":
                try_inside(runner)
            try_unwritable_cache(runner, scratch / "unwritable")
    print("All checks of the image passed.")


if __name__ == "__main__":
    main()
