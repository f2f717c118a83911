"""`make image-test`: builds `cpu`, runs it as its user with a read-only root, and tries what the README says.

With docker or podman the image runs in them. Where only buildah is there, the image is mounted read-only in a mount
namespace of its own and entered by chroot as its user, its command being process 1 of a process namespace: but for
network and limits as in a container. That takes root.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
IMAGE = "sd35:cpu"
BASE = "docker.io/library/debian:bookworm-slim"  # as in the Dockerfile
BOOTSTRAPPED = "localhost/bookworm-minbase:latest"
MOST_MB = 750  # beyond the base; the page for people is in it
READY_S, PULL_S, BUILD_S, ANSWER_S = 60, 60, 1200, 60
CURL = re.compile(r"^\$ (curl -X POST http://127\.0\.0\.1:8000/v1/txt2img .*?-o out\.png)$", re.MULTILINE | re.DOTALL)
LONG = {"prompt": "a cat", "width": 256, "height": 256, "steps": 150}


def run(command: Sequence[str], timeout_s: float = BUILD_S, **options: Any) -> str:  # noqa: ANN401  Popen's
    """What a command prints."""
    print("+", shlex.join(command), flush=True)
    printed: str = subprocess.run(
        command, check=True, timeout=timeout_s, stdout=subprocess.PIPE, text=True, **options
    ).stdout
    return printed.strip()


class Image:
    """The built image: what its configuration says, and its layers as (bytes, digest, what made it)."""

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
        made_by = [each.get("created_by", "") for each in document["history"] if not each.get("empty_layer")]
        self.layers = list(zip(sizes, document["rootfs"]["diff_ids"], made_by, strict=True))

    def report(self) -> None:
        """Print the layers. The base's is the first."""
        for size, digest, made_by in self.layers:
            what = made_by.partition("/bin/sh -c ")[2] or "the base"
            print(f"{size / 1e6:8.1f} MB  {digest[7:19]}  {' '.join(what.split())[:90]}")
        beyond_mb = sum(size for size, *_ in self.layers[1:]) / 1e6
        print(f"{beyond_mb:8.1f} MB  beyond the base")
        assert beyond_mb <= MOST_MB, f"at most {MOST_MB} MB"

    @contextlib.contextmanager
    def runner(self, cache: Path) -> Iterator["Runner"]:
        """What runs it, with a read-only root and `cache` mounted."""
        if self.engine != "buildah":
            yield Runner(
                [self.engine, "run", "--rm", "--init=false", "--read-only", "--network=host"], self.engine, cache
            )
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
        self._command, self._engine, self._names = command, engine, 0

    def start(self, port: int, stderr: int | None = None) -> "subprocess.Popen[str]":
        """The image's command."""
        self._names += 1
        named = [f"--name=sd35-image-test-{self._names}", f"--volume={self.cache}:/cache", f"--env=SD35_PORT={port}"]
        return subprocess.Popen([*self._command, *named, IMAGE], text=True, stderr=stderr)

    def terminate(self, _: "subprocess.Popen[str]") -> None:
        """What `docker stop` sends."""
        run([self._engine, "kill", "--signal=TERM", f"sd35-image-test-{self._names}"])

    def remove(self, process: "subprocess.Popen[str]") -> None:
        """Whatever happened, leave nothing that runs."""
        subprocess.run([self._engine, "rm", "--force", f"sd35-image-test-{self._names}"], check=False)
        process.wait(READY_S)

    def check(self, _: int, command: Sequence[str]) -> int:
        """The exit code of another command in the container that runs."""
        return subprocess.run(
            [self._engine, "exec", f"sd35-image-test-{self._names}", *command], check=False
        ).returncode


class Chroot(Runner):
    """Runs the image's command on its mounted root."""

    _ENTER = """
        mount --bind "$ROOT" "$ROOT"; mount --bind "$CACHE" "$ROOT/cache"
        mount -t proc proc "$ROOT/proc"; mount --bind /dev "$ROOT/dev"; mount -o remount,bind,ro "$ROOT"
        cd "$ROOT"; exec chroot --userspec="$WHO" . /usr/bin/env -i -C /cache "$@"
    """

    def __init__(self, root: Path, config: dict[str, Any], cache: Path) -> None:
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", self._ENTER, "sh"]
        super().__init__(enter, "buildah", cache)
        self._config = config
        self._environment = {**os.environ, "ROOT": str(root), "WHO": config["User"]}

    def start(self, port: int, stderr: int | None = None) -> "subprocess.Popen[str]":
        """The image's command."""
        return self._popen(port, [*self._config["Entrypoint"], *self._config["Cmd"]], stderr)

    def _popen(self, port: int, command: Sequence[str], stderr: int | None = None) -> "subprocess.Popen[str]":
        variables = [*self._config["Env"], f"SD35_PORT={port}"]
        environment = {**self._environment, "CACHE": str(self.cache)}
        return subprocess.Popen([*self._command, *variables, *command], text=True, env=environment, stderr=stderr)

    def terminate(self, process: "subprocess.Popen[str]") -> None:
        """To process 1 of the namespace, which is the child of what made it."""
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        os.kill(int(child), signal.SIGTERM)

    def remove(self, process: "subprocess.Popen[str]") -> None:
        """With it, process 1 of the namespace is killed, and then all others."""
        process.kill()
        process.wait(READY_S)

    def check(self, port: int, command: Sequence[str]) -> int:
        """The exit code of another command beside the one that runs."""
        return self._popen(port, command).wait(READY_S)


def base_image(engine: str, scratch: Path) -> str:
    """The registry's where that is reached; else made here of Debian's packages."""
    if given := os.environ.get("BASE_IMAGE"):
        return given
    with contextlib.suppress(subprocess.SubprocessError):
        run([engine, "pull", "--quiet", BASE], PULL_S)
        return BASE
    print("No registry is reached: the base is bootstrapped.")
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


def answer_to(port: int, path: str, body: object = None) -> tuple[int, bytes]:
    """Status and body; 0 while nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    with contextlib.closing(connection):
        try:
            encoded = None if body is None else json.dumps(body)
            connection.request("POST" if encoded else "GET", path, encoded, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""


def wait_for(what: str, process: "subprocess.Popen[str]", is_so: Any) -> None:  # noqa: ANN401  a condition
    """Ask again and again, for a minute at most, while the process runs."""
    until_s = time.monotonic() + READY_S
    while not is_so():
        assert process.poll() is None, f"it ended with {process.returncode}, and not: {what}"
        assert time.monotonic() < until_s, f"not within {READY_S} s: {what}"
        time.sleep(0.02)


def check_png(content: bytes, side_px: int) -> None:
    """Each chunk by its checksum, and as many pixels as the head says."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n", content[:80]
    at, pixels, names = 8, b"", []
    while at < len(content):
        (length,), name = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        data, checksum = content[at + 8 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        assert zlib.crc32(name + data) == int.from_bytes(checksum, "big"), f"{name!r} is damaged"
        pixels += data if name == b"IDAT" else b""
        names.append(name)
        at += 12 + length
    assert (names[0], names[-1]) == (b"IHDR", b"IEND")
    assert struct.unpack(">II", content[16:24]) == (side_px, side_px)
    assert len(zlib.decompress(pixels)) == side_px * (1 + 3 * side_px)


def try_serving(runner: Runner, image: Image, scratch: Path) -> None:
    """Ready, healthy, an image by the README's own line, SIGTERM while another is made, a clean end."""
    port, began_s = _free_port(), time.monotonic()
    process = runner.start(port)
    try:
        wait_for("ready", process, lambda: answer_to(port, "/readyz")[0] == 200)
        print(f"{time.monotonic() - began_s:8.2f} s   from the container's start to ready")
        kind, *health = image.config["Healthcheck"]["Test"]
        assert (kind, runner.check(port, health)) == ("CMD", 0), "HEALTHCHECK says no"
        line = CURL.search((ROOT / "README.md").read_text(encoding="utf-8"))
        assert line, "the README has no curl line"
        run(["sh", "-c", line[1].replace(":8000", f":{port}")], ANSWER_S, cwd=scratch)
        check_png((scratch / "out.png").read_bytes(), 1024)
        answers: list[tuple[int, bytes]] = []
        asking = threading.Thread(target=lambda: answers.append(answer_to(port, "/v1/txt2img", LONG)))
        asking.start()
        running = b'sd35_engine_images{state="running"} 1.0'
        wait_for("an image in the making", process, lambda: running in answer_to(port, "/metrics")[1])
        runner.terminate(process)
        asking.join(ANSWER_S)
        assert process.wait(READY_S) == 0, f"it ended with {process.returncode}"
        ((status, content),) = answers
        assert status == 200, f"the image that was being made at SIGTERM was answered with {status}"
        check_png(content, 256)
    finally:
        runner.remove(process)
    print("served, healthy, an image; at SIGTERM the running one was finished, and the end was clean")


def try_foreign_folder(runner: Runner, folder: Path) -> None:
    """A mounted folder of someone else's: one line that says so, and exit code 2."""
    folder.mkdir()
    folder.chmod(0o555)
    runner.cache, owner = folder, f"{folder.stat().st_uid}:{folder.stat().st_gid}"
    process = runner.start(_free_port(), stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=READY_S)
    last = said.strip().splitlines()[-1]
    print(last)
    assert process.returncode == 2
    for words in ("data_dir: /cache/data cannot be written to", f"belongs to {owner}", "this process is 1000:1000"):
        assert words in last, words


def try_inside(runner: Runner) -> None:
    """The root cannot be written to; there is neither pip nor a compiler; what is installed is written down."""
    is_so = "! touch /x 2>/dev/null && ! command -v pip pip3 gcc cc && cd /usr/share/doc/sd35"
    names = "grep -q onnxruntime sbom.cdx.json && grep -q libc6 sbom.cdx.json && grep -q '^pillow .*: ' licences.txt"
    assert runner.check(0, ["sh", "-c", f"{is_so} && {names}"]) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file
    return file.read()


def main() -> None:
    """All of it, in a scratch directory that is removed; the image stays where docker or podman keep theirs."""
    engine = run([str(HERE / "engine.sh")])
    with tempfile.TemporaryDirectory(prefix="sd35-image-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory)
        if engine == "buildah":
            os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
            driver = json.loads(run(["buildah", "info"]))["store"]["GraphDriverName"]
            configuration = scratch / "storage.conf"
            places = f'graphroot = "{scratch}/storage"\nrunroot = "{scratch}/run"\n'
            configuration.write_text(f'[storage]\ndriver = "{driver}"\n{places}', encoding="utf-8")
            os.environ["CONTAINERS_STORAGE_CONF"] = str(configuration)
        os.environ["BASE_IMAGE"] = base_image(engine, scratch)
        began_s = time.monotonic()
        run([str(HERE / "build.sh"), "cpu"], stderr=subprocess.STDOUT)
        print(f"{time.monotonic() - began_s:8.0f} s   to build")
        image = Image(engine, scratch)
        image.report()
        cache = scratch / "cache"
        cache.mkdir()
        scratch.chmod(0o711)  # who runs in there has to get to its cache
        if os.geteuid() == 0:
            os.chown(cache, 1000, 1000)
        else:
            cache.chmod(0o777)  # the image's user is another one then
        with image.runner(cache) as runner:
            try_serving(runner, image, scratch)
            if engine == "buildah":
                try_inside(runner)
            try_foreign_folder(runner, scratch / "foreign")
    print("The image is as it should be.")


if __name__ == "__main__":
    main()
