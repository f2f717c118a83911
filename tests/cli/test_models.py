"""`sd35 models`, `pull`, `verify` and `remove`, with the embedded checkpoint on a small hub."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub.utils import close_session

from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.cli.main import main
from tests.support.hub_server import Hub, Repository, serving, use

TIMEOUT_S = 300
REVISION = "3" * 40
TOKEN = "hf_mine"  # noqa: S105  a token of the test's server
GENERATE = ("generate", "a cat", "--steps", "1", "--width", "64", "--height", "64", "--json")
# Runs commands, given as JSON, one after the other, and prints their exit codes.
SCRIPT = """
import json, sys
from sd35.cli import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print("exit", end.code)
"""
# Ends the command when it connects to an address or looks up a name.
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise SystemExit(f"a socket was opened: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


class Output(NamedTuple):
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Output]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with the files of the embedded checkpoint, gated."""
    directory = open_checkpoint(EMBEDDED).directory
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    contents = {name: path.read_bytes() for name, path in files.items()}
    with serving() as hub:
        hub.tokens = {TOKEN}
        hub.repositories["me/mini"] = Repository(contents, REVISION, readers={TOKEN})
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A function that runs a command in this process, with one registered checkpoint and an empty cache."""
    use(hub, tmp_path, monkeypatch)
    hub.asked.clear()
    (tmp_path / "mine.toml").write_text(f'[mini]\nrepository = "me/mini"\nrevision = "{REVISION}"\n')
    monkeypatch.setenv("SD35_REGISTRY", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: str) -> Output:
        monkeypatch.setattr(sys, "argv", ["sd35", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Output(int(end.value.code or 0), *capsys.readouterr())

    yield run
    close_session()


def state_of(run: Run, name: str) -> dict[str, object]:
    """Return the entry of a checkpoint in `sd35 models --json`."""
    return next(each for each in json.loads(run("models", "--json").out) if each["name"] == name)


def test_pull_downloads_once_and_remove_frees_the_space(run: Run, hub: Hub):
    """A second pull requests no file."""
    assert state_of(run, "mini")["on_disk"] == "no"
    pulled = run("pull", "mini")
    assert (pulled.code, pulled.err) == (0, "")  # no progress bar, because it is not a terminal
    assert pulled.out.startswith("mini: downloading 24 of 24 files, 0.03 GB (licence: ")
    directory = str(state_of(run, "mini")["directory"])
    assert f"mini: ready in {directory}\n" in pulled.out
    assert open_checkpoint(directory).revision == open_checkpoint(EMBEDDED).revision
    hub.asked.clear()
    assert run("pull", "mini") == (0, f"mini: on disk in {directory}\n", "")
    assert hub.asked == []
    assert run("remove", "mini") == (0, "mini: removed, 0.03 GB freed\n", "")
    assert state_of(run, "mini")["on_disk"] == "no"
    assert run("remove", "mini").err.startswith("sd35: mini is not on disk")


def test_models_lists_all_checkpoints_with_their_size_and_licence(run: Run):
    """The embedded one, the SD3.5 models, and those of the user's registry."""
    medium = state_of(run, "sd3.5-medium")
    assert (medium["on_disk"], medium["steps"], medium["stored_bytes"]) == ("no", 40, 0)
    output = run("models").out
    assert "sd35-mini  part of the package; Apache-2.0" in output
    assert "sd3.5-large  not on disk, 27.62 GB; Stability AI Community License" in output
    assert "mini  not on disk, unknown size" in output


def test_verify_discards_a_damaged_file_and_pull_downloads_it_again(run: Run):
    run("pull", "mini")
    file = Path(str(state_of(run, "mini")["directory"])) / "vae/config.json"
    content = file.read_bytes()
    file.resolve().write_bytes(content.replace(b"1", b"2"))
    found = run("verify", "mini")
    assert found.code == 1
    assert "mini: vae/config.json is damaged\n" in found.out
    assert "sd35 verify mini --discard" in found.out
    discarded = run("verify", "mini", "--discard")
    assert (discarded.code, file.exists()) == (1, False)
    assert "sd35 pull mini" in discarded.out
    assert "downloading 1 of 24 files" in run("pull", "mini").out
    assert file.read_bytes() == content
    assert run("verify", "mini") == (0, "mini: intact files: 24\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pull", "nothing"), 2, "NAME: got 'nothing'; allowed: sd3.5-large, sd3.5-large-turbo, sd3.5-medium, mini"),
        (("remove", EMBEDDED), 2, "NAME: got 'sd35-mini', which is part of the sd35 package; allowed: sd3.5-large, "),
        (("verify", "sd3.5-large"), 1, "sd3.5-large is not on disk; download it with: sd35 pull sd3.5-large"),
        (("pull", "sd3.5-large"), 1, "has no repository stabilityai/stable-diffusion-3.5-large"),
        (("generate", "a cat", "--checkpoint", "sd3.5-large"), 1, "download it with: sd35 pull sd3.5-large"),
        (("models", "--registry", "nowhere.toml"), 2, "registry: nowhere.toml cannot be read"),
    ],
)
def test_an_error_of_the_user_is_one_line(run: Run, arguments: tuple[str, ...], code: int, message: str):
    """On stderr, with what to do."""
    output = run(*arguments)
    assert (output.code, output.out, output.err.count("\n")) == (code, "", 1)
    assert message in output.err


def test_ctrl_c_during_a_pull_says_how_to_resume_it(run: Run, monkeypatch: pytest.MonkeyPatch):
    """The exit code is the shell's for an interrupt."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sd35.checkpoints.hub.download.fetch", interrupted)
    output = run("pull", "mini")
    assert output.code == 130
    assert output.err == "sd35: interrupted; `sd35 pull mini` resumes the download\n"


def processes(home: Path, before: str, *commands: tuple[str, ...], **variables: str) -> list[str]:
    """Run code and then commands in a process. Return the lines of its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SD35_"))}
    result = subprocess.run(
        [sys.executable, "-c", before + SCRIPT, json.dumps(commands)],
        cwd=home,
        env={name: value for name, value in clean.items() if not name.lower().endswith("_proxy")} | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return (result.stdout + result.stderr).splitlines()


def test_offline_never_opens_a_socket(hub: Hub, tmp_path: Path):
    """With SD35_OFFLINE, checkpoints on disk can be listed, verified and used; others are refused in one line.

    HF_ENDPOINT, HF_HOME and HF_TOKEN keep their meaning for `huggingface_hub`. Without SD35_OFFLINE, the same
    command opens a socket, so the test would notice.
    """
    (tmp_path / "mine.toml").write_text(f'[mini]\nrepository = "me/mini"\nrevision = "{REVISION}"\n')
    user = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "huggingface"), "SD35_REGISTRY": "mine.toml"}
    assert processes(tmp_path, "", ("pull", "mini"), **user, HF_TOKEN=TOKEN)[-1] == "exit 0"
    assert (tmp_path / "huggingface/hub/models--me--mini/snapshots" / REVISION / "model_index.json").exists()
    output = processes(
        tmp_path,
        NO_NETWORK,
        ("models",),
        ("pull", "mini"),
        ("verify", "mini"),
        (*GENERATE, "--checkpoint", "mini"),
        ("pull", "sd3.5-medium"),
        **user,
        SD35_OFFLINE="1",
    )
    assert [line for line in output if line.startswith("exit")] == ["exit 0"] * 4 + ["exit 1"]
    request = next(json.loads(line)["request"] for line in output if line.startswith("{"))
    assert (request["model"], request["revision"]) == ("mini", open_checkpoint(EMBEDDED).revision)
    assert "sd3.5-medium is not on disk, and the setting offline is on; set offline to false to" in output[-1]
    online = processes(tmp_path, NO_NETWORK, ("pull", "mini"), **user)
    assert "a socket was opened" in online[-1]


def test_offline_applies_to_huggingface_hub_too(tmp_path: Path):
    """Diffusers and Transformers use it."""
    after = "import atexit; atexit.register(lambda: print(__import__('huggingface_hub').is_offline_mode()))\n"
    assert processes(tmp_path, after, ("models",), SD35_OFFLINE="1")[-1] == "True"
    assert processes(tmp_path, after, ("models",))[-1] == "False"


def test_generating_with_the_embedded_checkpoint_does_not_import_huggingface_hub(tmp_path: Path):
    after = "import atexit, sys; atexit.register(lambda: print('huggingface_hub' in sys.modules))\n"
    output = processes(tmp_path, after, GENERATE)
    assert output[-2:] == ["exit 0", "False"]
