"""The command line: images to files, replay, the doctor, help pages, and errors of one line."""

import ast
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.core import TyperGroup

from sd35.cli.main import COMMANDS, load_command, main
from sd35.images.png import read_png, write_png
from sd35.images.record import DIGEST_KEY, MAKER_KEY, REQUEST_KEY, Record, from_text, own_version
from tests.support.job_specs import REQUEST

TIMEOUT_S = 120
SD35 = [sys.executable, "-c", "from sd35.cli import main; main()"]


def sd35(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*SD35, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def sd35_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The same in this process, which is quicker; the exit code."""
    monkeypatch.setattr(sys, "argv", ["sd35", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two images, cat-1.png and cat-2.png, and what the command said of them, in said.json."""
    directory = tmp_path_factory.mktemp("images")
    options = ("-n", "2", "--seed", "4294967295", "--steps", "2", "--width", "64", "--height", "64")
    result = sd35("generate", "a cat", "-o", "cat.png", *options, "--json", cwd=directory)
    assert result.returncode == 0, result.stderr
    (directory / "said.json").write_text(result.stdout)
    return directory


def test_generate_writes_the_images_and_says_what_they_are(images: Path):
    """Several images have consecutive seeds (the last is followed by 0), numbered names, and one JSON line each."""
    said = [json.loads(line) for line in (images / "said.json").read_text().splitlines()]
    assert [one["file"] for one in said] == ["cat-1.png", "cat-2.png"]
    assert [one["request"]["seed"] for one in said] == [4294967295, 0]
    assert all(read_png((images / one["file"]).read_bytes())[0].shape == (64, 64, 3) for one in said)
    assert sorted(path.name for path in images.iterdir()) == ["cat-1.png", "cat-2.png", "said.json"]


def test_plan_needs_neither_weights_nor_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """For a model that is not on disk and a CUDA device that is not here: the table, and exit code 0."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert sd35_here(monkeypatch, "plan", "--checkpoint", "sd3.5-large", "--vram", "24GiB") == 0
    said = capsys.readouterr().out
    assert "sd3.5-large in bfloat16, by diffusers on CUDA, 1024x1024 px, 2 rows a step; 24.0 GiB of memory" in said
    assert "text_encoder_3  8.9 GiB   computes on the CPU" in said
    assert "Fits as 'encoders'" in said
    assert "sd3.5-medium in its place: fits as" in said


def test_a_plan_of_what_does_not_fit_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The same in JSON, for a size and rows of one's own; `chosen` is null."""
    arguments = ("--checkpoint", "sd35-mini", "--ram", "800MB", "--width", "4096", "--height", "4096", "--rows", "64")
    assert sd35_here(monkeypatch, "plan", *arguments, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["chosen"], said["device_bytes"], said["rows"], said["width"]) == (None, 800_000_000, 64, 4096)
    assert [way["fits"] for way in said["placements"]] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--vram", "lots"), "vram: got 'lots'"),
        (("--vram", "8GiB", "--backend", "onnx"), "allowed: ram"),
        (("--vram", "8GiB", "--device", "cpu"), "allowed: ram"),
        (("--width", "100"), "--width: got 100; allowed: multiples of 16"),
    ],
)
def test_a_plan_that_was_asked_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
):
    """What came and what is allowed, and exit code 2."""
    assert sd35_here(monkeypatch, "plan", *arguments) == 2
    assert why in capsys.readouterr().err


def test_replay_makes_the_same_bytes(images: Path):
    """On the same machine and versions an image is made again to the byte."""
    result = sd35("replay", "cat-1.png", "--json", cwd=images)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["outcome"] == "same bytes"


def test_an_image_in_fp8_is_replayed_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It says which FP8 it was, and is made again with that: the same bytes."""
    file = str(tmp_path / "fp8.png")
    made = ("--backend", "diffusers", "--precision", "fp8", "--steps", "1", "--width", "64", "--height", "64")
    assert sd35_here(monkeypatch, "generate", "a cat", "-o", file, *made) == 0
    assert from_text(read_png(Path(file).read_bytes())[1]).maker.precision == "fp8-weights"
    capsys.readouterr()
    assert sd35_here(monkeypatch, "replay", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "same bytes"


def test_replay_tells_a_different_image(images: Path, tmp_path: Path):
    """A file whose pixels are another image's exits with 1 and says by how much it differs."""
    pixels, text = read_png((images / "cat-1.png").read_bytes())
    (tmp_path / "edited.png").write_bytes(write_png(255 - pixels, text))
    result = sd35("replay", tmp_path / "edited.png")
    assert result.returncode == 1, result.stderr
    assert "edited.png: different" in result.stdout
    assert "of 255 at most" in result.stdout


def test_replay_of_what_is_no_image_exits_with_2(tmp_path: Path):
    """A file that does not say what made it, or is not there, is one clear line."""
    (tmp_path / "text.png").write_text("hello")
    for name, why in (("text.png", "not a PNG"), ("missing.png", "No such file")):
        result = sd35("replay", tmp_path / name)
        assert (result.returncode, result.stdout) == (2, "")
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_replay_without_its_model_names_it(images: Path, tmp_path: Path):
    """An image of a model that is not here says which one it needs, and how to name it."""
    from sd35.images.png import read_png, write_png

    pixels, text = read_png((images / "cat-1.png").read_bytes())
    record = from_text(text)
    fields = {**json.loads(record.request.canonical), "model": "elsewhere"}
    foreign = Record(type(record.request)(**fields), record.maker)
    (tmp_path / "foreign.png").write_bytes(write_png(pixels, foreign.to_text()))
    result = sd35("replay", tmp_path / "foreign.png")
    assert result.returncode == 1
    assert "was made with 'elsewhere'" in result.stderr
    assert "--checkpoint" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["generate", "a cat", "-o", "out.jpg"], 2, "ends in .png"),
        (["generate", "a cat", "-o", "nowhere/out.png"], 2, "is not a directory"),
        (["generate", "a cat", "--checkpoint", "nowhere"], 1, "'nowhere' is neither"),
        (["generate", "a cat", "--model", "other"], 2, "no model named 'other'"),
        (["generate", "a cat", "--backend", "magic"], 2, "backend: got 'magic'; allowed: onnx, openvino, diffusers"),
        (["generate", "a cat", "--device", "cuda"], 2, "device: got 'cuda'"),
        (["generate", "a cat", "--steps", "0"], 2, "steps: got 0; allowed: 1 to 150"),
        (["generate", ""], 2, "prompt: got '0 characters'"),
        (
            ["generate", "a cat", "--skip-layer-scale", "2"],
            2,
            "skip_layer_scale: got 2.0; allowed: 0, because the card",
        ),
        (["serve", "--port", "99999"], 2, "--port: got '99999'"),
    ],
)
def test_a_mistake_is_one_clear_line(  # noqa: PLR0913, PLR0917  fixtures
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    why: str,
):
    """The mistake is named on stderr, with exit code 2 for wrong asking; no traceback, no file."""
    monkeypatch.chdir(tmp_path)
    assert sd35_here(monkeypatch, *arguments) == code
    said = capfd.readouterr()
    assert why in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tells_what_is_here():
    """Hardware, backends with what to do about those that cannot run, checkpoints and directories."""
    result = sd35("doctor", "--json")
    found = json.loads(result.stdout)
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    backends = {backend["name"]: backend for backend in found["backends"]}
    assert backends["onnx"]["is_usable"]
    assert backends["diffusers"]["is_usable"] or "pip install" in backends["diffusers"]["detail"]
    assert {directory["name"] for directory in found["directories"]} == {"cache", "data"}
    assert (found["can_serve"], result.returncode) == (True, 0)
    assert "Backends" in sd35("doctor").stdout


def test_the_doctor_and_a_start_say_the_same_of_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch):
    """What of TensorRT is missing, the library, the GPU or both, and what to do; neither is an error of ours."""
    monkeypatch.setenv("SD35_BACKEND", "tensorrt")
    found = json.loads(sd35("doctor", "--json").stdout)
    (tensorrt,) = (backend for backend in found["backends"] if backend["name"] == "tensorrt")
    if tensorrt["is_usable"]:
        pytest.skip("it can run here")
    assert "backend 'tensorrt' cannot run: " in tensorrt["detail"]
    assert "another --backend" in tensorrt["detail"] or "pip install" in tensorrt["detail"]
    assert not found["can_serve"]
    result = sd35("serve", "--port", "0")
    assert result.returncode == 1
    assert tensorrt["detail"] in " ".join(result.stderr.split())


def test_the_doctor_judges_the_fallback_too(monkeypatch: pytest.MonkeyPatch):
    """One that there is not ends it with 1, as it ends a start."""
    monkeypatch.setenv("SD35_FALLBACK", "onxx/float32")
    result = sd35("doctor", "--json")
    assert result.returncode == 1
    assert not json.loads(result.stdout)["can_serve"]
    assert "onxx" in result.stdout


def test_the_doctor_warns_of_what_cannot_be_used(tmp_path: Path):
    """A checkpoint that is not there is named, and the exit code says that nothing can be served."""
    (tmp_path / "file").touch()
    result = sd35("doctor", "--checkpoint", "nowhere", "--cache-dir", tmp_path / "file" / "cache")
    assert result.returncode == 1
    assert "'nowhere' is neither" in result.stdout
    assert "file/cache cannot be written to" in result.stdout


GROUPS = {name: group.commands for name in COMMANDS if isinstance(group := load_command(name), TyperGroup)}
NESTED = [f"{group} {name}" for group, commands in GROUPS.items() for name in commands]


@pytest.mark.parametrize("command", [*COMMANDS, *NESTED])
def test_every_help_page_has_examples(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str):
    """--help says what a command does and shows lines to copy."""
    assert sd35_here(monkeypatch, *command.split(), "--help") == 0
    text = capfd.readouterr().out
    assert f"Usage: sd35 {command}" in text
    assert "Examples" in text
    assert f"  sd35 {command}" in text


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """`sd35 --version` prints the version and nothing else."""
    assert sd35_here(monkeypatch, "--version") == 0
    assert capfd.readouterr().out == f"{own_version()}\n"


def test_the_list_of_commands_shows_the_first_line_of_each_help(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """It is read from the sources; the page of a command has the same line."""
    assert sd35_here(monkeypatch, "--help") == 0
    listed = capfd.readouterr().out
    assert {*GROUPS} == {"bench", "keys", "storage"}
    for name in COMMANDS:
        first_line = (load_command(name).help or "").partition("\n")[0]
        assert first_line in listed, name


def test_an_unknown_command_is_refused_with_a_similar_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """A typo exits with 2."""
    assert sd35_here(monkeypatch, "generat") == 2
    assert "No such command 'generat'. Did you mean 'generate'?" in capfd.readouterr().err


def imported_by(script: str, modules: set[str]) -> set[str]:
    """Run a script in a new process, and return which of the modules it imported."""
    code = f"import atexit, sys\natexit.register(lambda: print({modules} & sys.modules.keys(), file=sys.stderr))\n"
    result = subprocess.run([sys.executable, "-c", code + script], capture_output=True, text=True, check=True)
    found = ast.literal_eval(result.stderr.replace("set()", "()"))
    return {*found}


def test_the_list_of_commands_imports_no_command_and_nothing_heavy():
    """`sd35 --help` imports neither settings nor any library that computes, serves or stores."""
    heavy = {"numpy", "onnxruntime", "torch", "sqlalchemy", "fastapi", "uvicorn", "structlog", "pydantic"}
    commands = {f"sd35.cli.commands.{name}" for name in COMMANDS}
    script = "import sys; sys.argv = ['sd35', '--help']\nfrom sd35.cli import main; main()"
    assert imported_by(script, heavy | commands | {"sd35.settings"}) == set()


def test_no_command_imports_a_library_that_reads_the_offline_variable_before_the_settings_are_loaded():
    """`HF_HUB_OFFLINE` follows from the settings, and has no effect on a library that is imported already."""
    script = "from sd35.cli.main import COMMANDS, load_command\nfor name in COMMANDS: load_command(name)"
    assert imported_by(script, {"huggingface_hub", "transformers", "diffusers", "torch", "onnxruntime"}) == set()


@pytest.mark.serial
def test_measure_writes_a_table_that_simulate_reads(tmp_path: Path):
    """A table of this machine; then latency, utilisation and refusals of a load on a hundred of it."""
    options = ("--size", "64x64", "--size", "1024x512", "--max-batch-rows", "3")
    measured = sd35("measure", "-o", "times.json", *options, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    table = json.loads((tmp_path / "times.json").read_text())
    assert [(entry["width_px"], entry["height_px"]) for entry in table["shapes"]] == [(64, 64), (176, 96)]
    assert [*table["shapes"][0]["step_s"]] == ["1", "2", "3"]
    assert table["shapes"][0]["step_s"]["1"] < table["shapes"][1]["step_s"]["3"]
    load = ("--rps", "50", "--devices", "100", "--requests", "500", "--steps", "4", "--steps", "12")
    simulated = sd35("simulate", "--step-times", "times.json", *load, "--json", cwd=tmp_path)
    report = json.loads(simulated.stdout)
    assert report["finished"] + report["refused"] == 500
    assert report["latency_s"]["4"]["p50"] < report["latency_s"]["12"]["p50"] <= report["latency_s"]["all"]["p99"]
    assert 0 < report["utilisation"] <= 1
    for_people = sd35("simulate", "--step-times", "times.json", *load, cwd=tmp_path).stdout
    assert "500 requests at 50 a second on 100 simulated devices" in for_people
    assert "12 steps" in for_people


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--rps", "1", "--step-times", "none.json"], "none.json cannot be read: No such file"),
        (["simulate", "--rps", "1", "--step-times", "wrong.json"], "not a table of step times"),
        (["simulate", "--rps", "nan", "--step-times", "wrong.json"], "--rps: got nan; allowed: a number above 0"),
        (["synth", "sd4", "-o", "new"], "NAME: got 'sd4'; allowed: sd3.5-large, sd3.5-large-turbo, sd3.5-medium"),
        (["measure", "--size", "huge"], "--size: got 'huge'; allowed: WIDTHxHEIGHT"),
        (["measure", "--size", "64x40"], "height: got 40"),
    ],
)
def test_a_wrong_capacity_question_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
):
    """The option, what came and what is allowed."""
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_text("[]")
    assert sd35_here(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err


def test_an_error_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Words of a file that someone sent are escaped where they are shown."""
    request = replace(REQUEST, prompt="a \x9b2J cat")
    edited = request.canonical.decode().replace('"prompt"', '"another": 1, "prompt"')
    text = {REQUEST_KEY: edited, DIGEST_KEY: hashlib.sha256(edited.encode()).hexdigest(), MAKER_KEY: "{}"}
    (tmp_path / "sent.png").write_bytes(write_png(np.zeros((64, 64, 3), np.uint8), text))
    assert sd35_here(monkeypatch, "replay", str(tmp_path / "sent.png")) == 2
    said = capsys.readouterr().err
    assert r"a \x9b2J cat" in said
    assert "\x9b" not in said
