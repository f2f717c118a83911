"""`sd35 models`, `pull`, `verify` and `remove` as a user runs them, with the embedded checkpoint on a small hub."""

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
TOKEN = "hf_mine"  # noqa: S105  a word that the test's own server knows
DRAWING = ("generate", "a cat", "--steps", "1", "--width", "64", "--height", "64", "--json")
# Runs commands, given as JSON, one after the other; tells of each exit code.
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
# Any attempt to connect anywhere, or to look up a name, ends the command.
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise SystemExit(f"a socket was opened: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


class Said(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with the embedded checkpoint's files, gated."""
    directory = open_checkpoint(EMBEDDED).directory
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    contents = {name: path.read_bytes() for name, path in files.items()}
    with serving() as hub:
        hub.tokens = {TOKEN}
        hub.repositories["me/mini"] = Repository(contents, REVISION, readers={TOKEN})
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process, for someone with one registered checkpoint in a file and an empty cache."""
    use(hub, tmp_path, monkeypatch)
    hub.asked.clear()
    (tmp_path / "mine.toml").write_text(f'[mini]\nrepository = "me/mini"\nrevision = "{REVISION}"\n')
    monkeypatch.setenv("SD35_REGISTRY", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["sd35", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Said(int(end.value.code or 0), *capsys.readouterr())

    yield run
    close_session()


def state_of(run: Run, name: str) -> dict[str, object]:
    """What `sd35 models --json` says of one."""
    return next(one for one in json.loads(run("models", "--json").out) if one["name"] == name)


def test_pull_fetches_once_and_remove_makes_room(run: Run, hub: Hub):
    """What is there is told before and after; a second pull asks for no file."""
    assert state_of(run, "mini")["on_disk"] == "no"
    pulled = run("pull", "mini")
    assert (pulled.code, pulled.err) == (0, "")  # no bar where that is no terminal
    assert pulled.out.startswith("mini: fetching 24 of 24 files, 0.03 GB; ")
    directory = str(state_of(run, "mini")["directory"])
    assert f"mini: ready in {directory}\n" in pulled.out
    assert open_checkpoint(directory).revision == open_checkpoint(EMBEDDED).revision
    hub.asked.clear()
    assert run("pull", "mini") == (0, f"mini: on disk in {directory}\n", "")
    assert hub.asked == []
    assert run("remove", "mini") == (0, "mini: removed, 0.03 GB are free again\n", "")
    assert state_of(run, "mini")["on_disk"] == "no"
    assert run("remove", "mini").err.startswith("sd35: mini is not on disk")


def test_models_lists_what_is_known(run: Run):
    """The embedded one, the SD3.5 models with what they take, and the user's, for people and for programs."""
    medium = state_of(run, "sd3.5-medium")
    assert (medium["on_disk"], medium["steps"], medium["stored_bytes"]) == ("no", 40, 0)
    said = run("models").out
    assert "sd35-mini  in the package; Apache-2.0" in said
    assert "sd3.5-large  not on disk, takes 27.62 GB; Stability AI Community License" in said
    assert "mini  not on disk, the hub knows its size" in said


def test_verify_and_pull_repair_what_is_damaged(run: Run):
    """A damaged file is named and, with --discard, deleted; pull fetches that one again."""
    run("pull", "mini")
    file = Path(str(state_of(run, "mini")["directory"])) / "vae/config.json"
    content = file.read_bytes()
    file.resolve().write_bytes(content.replace(b"1", b"2"))
    found = run("verify", "mini")
    assert found.code == 1
    assert "mini: vae/config.json is damaged\n" in found.out
    assert "`sd35 verify mini --discard`" in found.out
    discarded = run("verify", "mini", "--discard")
    assert (discarded.code, file.exists()) == (1, False)
    assert "`sd35 pull mini`" in discarded.out
    assert "fetching 1 of 24 files" in run("pull", "mini").out
    assert file.read_bytes() == content
    assert run("verify", "mini") == (0, "mini: 24 files are as the hub has them\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pull", "nothing"), 2, "NAME: got 'nothing'; allowed: sd3.5-large, sd3.5-large-turbo, sd3.5-medium, mini"),
        (("remove", EMBEDDED), 2, "sd35-mini is a part of sd35 itself"),
        (("verify", "sd3.5-large"), 1, "sd3.5-large is not on disk; fetch it with: sd35 pull sd3.5-large"),
        (("pull", "sd3.5-large"), 1, "has no repository stabilityai/stable-diffusion-3.5-large"),
        (("generate", "a cat", "--checkpoint", "sd3.5-large"), 1, "fetch it with: sd35 pull sd3.5-large"),
        (("models", "--registry", "nowhere.toml"), 2, "registry: nowhere.toml cannot be read"),
    ],
)
def test_a_mistake_is_one_clear_line(run: Run, arguments: tuple[str, ...], code: int, words: str):
    """What is wrong and what to do, on stderr."""
    said = run(*arguments)
    assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
    assert words in said.err


def test_ctrl_c_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch):
    """The exit code is the shell's for an interrupt, and the line says that nothing is lost."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sd35.checkpoints.hub.download.fetch", interrupted)
    said = run("pull", "mini")
    assert said.code == 130
    assert said.err == "sd35: interrupted; what has arrived is kept: sd35 pull mini goes on with it\n"


def processes(home: Path, before: str, *commands: tuple[str, ...], **variables: str) -> list[str]:
    """Run commands in a process of their own, after some code of the test's; the lines it said."""
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
    """With SD35_OFFLINE, what is on disk is listed, checked and drawn with; what is not is refused in one line.

    HF_ENDPOINT, HF_HOME and HF_TOKEN are the user's, as they are for other programs. Without the setting, the same
    command does open a socket.
    """
    (tmp_path / "mine.toml").write_text(f'[mini]\nrepository = "me/mini"\nrevision = "{REVISION}"\n')
    user = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "huggingface"), "SD35_REGISTRY": "mine.toml"}
    assert processes(tmp_path, "", ("pull", "mini"), **user, HF_TOKEN=TOKEN)[-1] == "exit 0"
    assert (tmp_path / "huggingface/hub/models--me--mini/snapshots" / REVISION / "model_index.json").exists()
    said = processes(
        tmp_path,
        NO_NETWORK,
        ("models",),
        ("pull", "mini"),
        ("verify", "mini"),
        (*DRAWING, "--checkpoint", "mini"),
        ("pull", "sd3.5-medium"),
        **user,
        SD35_OFFLINE="1",
    )
    assert [line for line in said if line.startswith("exit")] == ["exit 0"] * 4 + ["exit 1"]
    drawn = next(json.loads(line)["request"] for line in said if line.startswith("{"))
    assert (drawn["model"], drawn["revision"]) == ("mini", open_checkpoint(EMBEDDED).revision)
    assert "sd3.5-medium is not whole on disk, and SD35_OFFLINE is set: unset it to fetch the rest" in said[-1]
    online = processes(tmp_path, NO_NETWORK, ("pull", "mini"), **user)
    assert "a socket was opened" in online[-1]


def test_offline_switches_the_hubs_library_off_too(tmp_path: Path):
    """Diffusers and Transformers ask the hub through `huggingface_hub`, which then refuses."""
    after = "import atexit; atexit.register(lambda: print(__import__('huggingface_hub').is_offline_mode()))\n"
    assert processes(tmp_path, after, ("models",), SD35_OFFLINE="1")[-1] == "True"
    assert processes(tmp_path, after, ("models",))[-1] == "False"


def test_the_embedded_checkpoint_needs_no_hub_library(tmp_path: Path):
    """It is opened, loaded and drawn with, and `huggingface_hub` is never imported."""
    after = "import atexit, sys; atexit.register(lambda: print('huggingface_hub' in sys.modules))\n"
    said = processes(tmp_path, after, DRAWING)
    assert said[-2:] == ["exit 0", "False"]
