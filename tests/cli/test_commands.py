"""The command line: images, replay, plans, the doctor, help pages, and errors."""

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

from sd35.cli.main import COMMANDS, PANELS, load_command, main
from sd35.images.png import read_png, write_png
from sd35.images.record import DIGEST_KEY, MAKER_KEY, REQUEST_KEY, Record, from_text, own_version
from tests.support.job_specs import REQUEST

TIMEOUT_S = 120
SD35 = [sys.executable, "-c", "from sd35.cli import main; main()"]


def sd35(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process."""
    return subprocess.run(
        [*SD35, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def sd35_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process, which is faster. Return the exit code."""
    monkeypatch.setattr(sys, "argv", ["sd35", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two images, cat-1.png and cat-2.png, and the command's output in output.json."""
    directory = tmp_path_factory.mktemp("images")
    options = ("-n", "2", "--seed", "4294967295", "--steps", "2", "--width", "64", "--height", "64")
    result = sd35("generate", "a cat", "-o", "cat.png", *options, "--json", cwd=directory)
    assert result.returncode == 0, result.stderr
    (directory / "output.json").write_text(result.stdout)
    return directory


def test_generate_writes_the_images_and_prints_their_requests(images: Path):
    """Several images have consecutive seeds (the largest is followed by 0), numbered names, and a JSON line each."""
    lines = [json.loads(line) for line in (images / "output.json").read_text().splitlines()]
    assert [each["file"] for each in lines] == ["cat-1.png", "cat-2.png"]
    assert [each["request"]["seed"] for each in lines] == [4294967295, 0]
    assert all(read_png((images / each["file"]).read_bytes())[0].shape == (64, 64, 3) for each in lines)
    assert sorted(path.name for path in images.iterdir()) == ["cat-1.png", "cat-2.png", "output.json"]


def test_logs_do_not_mix_with_the_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The warning that `auto` found no SD3.5 goes to stderr; stdout is only JSON."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = sd35("generate", "a cat", "--checkpoint", "auto", "--steps", "1", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["request"]["model"] == "sd35-mini"
    assert "auto found no SD3.5" in result.stderr
    assert "\x1b" not in result.stderr  # no colours, because it is not a terminal


def test_plan_needs_neither_weights_nor_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The model is not on disk, and this machine may have no CUDA device."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert sd35_here(monkeypatch, "plan", "--checkpoint", "sd3.5-large", "--vram", "24GiB") == 0
    output = capsys.readouterr().out
    assert "sd3.5-large in bfloat16 with the diffusers backend on CUDA" in output
    assert "text_encoder_3  8.9 GiB   computes on the CPU" in output
    assert "Fits with offload 'encoders'" in output
    assert "sd3.5-medium instead: fits with offload" in output


def test_a_plan_exits_with_1_if_the_model_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """For a given size and number of rows. In JSON, `chosen` is null."""
    arguments = ("--checkpoint", "sd35-mini", "--ram", "800MB", "--width", "4096", "--height", "4096", "--rows", "64")
    assert sd35_here(monkeypatch, "plan", *arguments, "--json") == 1
    output = json.loads(capsys.readouterr().out)
    assert (output["chosen"], output["device_bytes"], output["rows"], output["width"]) == (None, 800_000_000, 64, 4096)
    assert [placement["fits"] for placement in output["placements"]] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vram", "lots"), "vram: got 'lots'"),
        (("--vram", "8GiB", "--backend", "onnx"), "set ram instead of vram"),
        (("--vram", "8GiB", "--device", "cpu"), "set ram instead of vram"),
        (("--width", "100"), "--width: got 100; allowed: positive multiples of 16"),
    ],
)
def test_plan_refuses_invalid_flags_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
):
    assert sd35_here(monkeypatch, "plan", *arguments) == 2
    assert message in capsys.readouterr().err


def test_replay_generates_the_same_bytes(images: Path):
    """On the same machine, with the same versions."""
    result = sd35("replay", "cat-1.png", "--json", cwd=images)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["outcome"] == "same bytes"


def test_an_image_in_fp8_is_replayed_in_fp8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The record has the kind of FP8."""
    file = str(tmp_path / "fp8.png")
    options = ("--backend", "diffusers", "--precision", "fp8", "--steps", "1", "--width", "64", "--height", "64")
    assert sd35_here(monkeypatch, "generate", "a cat", "-o", file, *options) == 0
    assert from_text(read_png(Path(file).read_bytes())[1]).maker.precision == "fp8-weights"
    capsys.readouterr()
    assert sd35_here(monkeypatch, "replay", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "same bytes"


def test_replay_of_changed_pixels_exits_with_1(images: Path, tmp_path: Path):
    """The output has the difference."""
    pixels, text = read_png((images / "cat-1.png").read_bytes())
    (tmp_path / "edited.png").write_bytes(write_png(255 - pixels, text))
    result = sd35("replay", tmp_path / "edited.png")
    assert result.returncode == 1, result.stderr
    assert "edited.png: different" in result.stdout
    assert "pixels differ by at most " in result.stdout


def test_replay_of_a_file_without_a_record_exits_with_2(tmp_path: Path):
    """So does replay of a missing file. The error is one line."""
    (tmp_path / "text.png").write_text("hello")
    for name, message in (("text.png", "not a PNG"), ("missing.png", "No such file")):
        result = sd35("replay", tmp_path / name)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_replay_of_an_image_of_another_model_names_the_model_and_the_flag(images: Path, tmp_path: Path):
    from sd35.images.png import read_png, write_png

    pixels, text = read_png((images / "cat-1.png").read_bytes())
    record = from_text(text)
    fields = {**json.loads(record.request.canonical), "model": "elsewhere"}
    foreign = Record(type(record.request)(**fields), record.maker)
    (tmp_path / "foreign.png").write_bytes(write_png(pixels, foreign.to_text()))
    result = sd35("replay", tmp_path / "foreign.png")
    assert result.returncode == 1
    assert "was generated with the model 'elsewhere'" in result.stderr
    assert "--checkpoint" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "a cat", "-o", "out.jpg"], 2, "ends in .png"),
        (["generate", "a cat", "-o", "nowhere/out.png"], 2, "is not a directory"),
        (
            ["generate", "a cat", "--checkpoint", "nowhere"],
            2,
            "checkpoint: got 'nowhere'; allowed: an existing directory or file, or ",
        ),
        (["generate", "a cat", "--model", "other"], 2, "model: got 'other'; allowed: sd35-mini"),
        (["generate", "a cat", "--backend", "magic"], 2, "backend: got 'magic'; allowed: onnx, openvino, diffusers"),
        (["generate", "a cat", "--device", "cuda"], 2, "device: got 'cuda'"),
        (["generate", "a cat", "--steps", "0"], 2, "steps: got 0; allowed: 1 to 150"),
        (["generate", ""], 2, "prompt: got '0 characters'"),
        (
            ["generate", "a cat", "--skip-layer-scale", "2"],
            2,
            "skip_layer_scale: got 2.0; allowed: 0, because the model sd35-mini does not support",
        ),
        (["serve", "--port", "99999"], 2, "--port: got '99999'"),
    ],
)
def test_an_error_of_the_user_is_one_line(  # noqa: PLR0913, PLR0917  fixtures
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
):
    """On stderr, without a traceback, and without an output file."""
    monkeypatch.chdir(tmp_path)
    assert sd35_here(monkeypatch, *arguments) == code
    output = capfd.readouterr()
    assert message in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_lists_hardware_backends_checkpoints_and_directories():
    """For backends that cannot run, it says what to do."""
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


def test_the_doctor_and_serve_explain_an_unavailable_backend_alike(monkeypatch: pytest.MonkeyPatch):
    """The error names what is missing for TensorRT: the library, the GPU, or both."""
    monkeypatch.setenv("SD35_BACKEND", "tensorrt")
    found = json.loads(sd35("doctor", "--json").stdout)
    (tensorrt,) = (backend for backend in found["backends"] if backend["name"] == "tensorrt")
    if tensorrt["is_usable"]:
        pytest.skip("TensorRT can run here")
    assert "backend 'tensorrt' cannot run: " in tensorrt["detail"]
    assert "another --backend" in tensorrt["detail"] or "pip install" in tensorrt["detail"]
    assert not found["can_serve"]
    result = sd35("serve", "--port", "0")
    assert result.returncode == 1
    assert tensorrt["detail"] in " ".join(result.stderr.split())


def test_the_doctor_exits_with_1_if_the_fallback_cannot_run(monkeypatch: pytest.MonkeyPatch):
    """As `sd35 serve` does."""
    monkeypatch.setenv("SD35_FALLBACK", "onxx/float32")
    result = sd35("doctor", "--json")
    assert result.returncode == 1
    assert not json.loads(result.stdout)["can_serve"]
    assert "onxx" in result.stdout


def test_the_doctor_exits_with_1_if_a_checkpoint_or_a_directory_cannot_be_used(tmp_path: Path):
    (tmp_path / "file").touch()
    result = sd35("doctor", "--checkpoint", "nowhere", "--cache-dir", tmp_path / "file" / "cache")
    assert result.returncode == 1
    assert "checkpoint: got 'nowhere'; allowed: an existing directory or file, or " in result.stdout
    assert "file/cache cannot be written to" in result.stdout


GROUPS = {name: group.commands for name in COMMANDS if isinstance(group := load_command(name), TyperGroup)}
NESTED = [f"{group} {name}" for group, commands in GROUPS.items() for name in commands]


@pytest.mark.parametrize("command", [*COMMANDS, *NESTED])
def test_every_help_page_has_examples(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str):
    assert sd35_here(monkeypatch, *command.split(), "--help") == 0
    text = capfd.readouterr().out
    assert f"Usage: sd35 {command}" in text
    assert "Examples" in text
    assert f"  sd35 {command}" in text


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    assert sd35_here(monkeypatch, "--version") == 0
    assert capfd.readouterr().out == f"{own_version()}\n"


def test_the_list_of_commands_shows_the_first_line_of_each_help(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """The list takes it from the sources."""
    assert sd35_here(monkeypatch, "--help") == 0
    listed = capfd.readouterr().out
    assert {*GROUPS} == {"bench", "keys", "storage"}
    for name in COMMANDS:
        first_line = (load_command(name).help or "").partition("\n")[0]
        assert first_line in listed, name


def test_the_list_of_commands_is_grouped_and_shows_an_example_of_each(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """The example is the first one of the command's own help."""
    assert sd35_here(monkeypatch, "--help") == 0
    panels = dict(part.partition(" ─")[::2] for part in capfd.readouterr().out.split("╭─ ")[1:])
    assert [*panels] == ["Options", *PANELS]
    for title, names in PANELS.items():
        for name in names:
            example = (load_command(name).help or "").partition("Examples[/bold]")[2].split("\n\n")[1].splitlines()[0]
            assert f"$ {example.strip()} " in panels[title]


def test_the_help_of_a_command_is_wrapped_by_the_terminal():
    """Each paragraph is one line. Examples keep their lines."""
    _, paragraph, _, examples = (load_command("serve").help or "").split("\n\n")
    assert "\n" not in paragraph
    assert len(examples.splitlines()) == 4


def test_flags_without_a_value_show_no_type(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """`<bool>` does not follow `--help` or `--json`."""
    assert sd35_here(monkeypatch, "doctor", "--help") == 0
    assert "<bool>" not in capfd.readouterr().out


def test_an_unknown_command_is_refused_with_a_similar_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert sd35_here(monkeypatch, "generat") == 2
    assert "No such command 'generat'. Did you mean 'generate'?" in capfd.readouterr().err


def imported_by(script: str, modules: set[str]) -> set[str]:
    """Run a script in a new process, and return the modules out of `modules` that it imported."""
    code = f"import atexit, sys\natexit.register(lambda: print({modules} & sys.modules.keys(), file=sys.stderr))\n"
    result = subprocess.run([sys.executable, "-c", code + script], capture_output=True, text=True, check=True)
    found = ast.literal_eval(result.stderr.replace("set()", "()"))
    return {*found}


def test_the_list_of_commands_imports_no_command_and_nothing_heavy():
    """`sd35 --help` imports neither the settings nor any library that computes, serves or stores."""
    heavy = {"numpy", "onnxruntime", "torch", "sqlalchemy", "fastapi", "uvicorn", "structlog", "pydantic"}
    commands = {f"sd35.cli.commands.{name}" for name in COMMANDS}
    script = "import sys; sys.argv = ['sd35', '--help']\nfrom sd35.cli import main; main()"
    assert imported_by(script, heavy | commands | {"sd35.settings"}) == set()


def test_no_command_imports_a_library_that_reads_the_offline_variable_before_the_settings_are_loaded():
    """The settings define `HF_HUB_OFFLINE`, which has no effect on a library that is already imported."""
    script = "from sd35.cli.main import COMMANDS, load_command\nfor name in COMMANDS: load_command(name)"
    assert imported_by(script, {"huggingface_hub", "transformers", "diffusers", "torch", "onnxruntime"}) == set()


@pytest.mark.serial
def test_measure_writes_a_table_that_simulate_reads(tmp_path: Path):
    """The simulation reports latency, utilisation and refusals."""
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
    text = sd35("simulate", "--step-times", "times.json", *load, cwd=tmp_path).stdout
    assert "500 requests, 50 per second, on 100 simulated devices" in text
    assert "12 steps" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--rps", "1", "--step-times", "none.json"], "none.json cannot be read (No such file"),
        (["simulate", "--rps", "1", "--step-times", "wrong.json"], "not a table of step times"),
        (["simulate", "--rps", "nan", "--step-times", "wrong.json"], "--rps: got nan; allowed: a number above 0"),
        (["synth", "sd4", "-o", "new"], "NAME: got 'sd4'; allowed: sd3.5-large, sd3.5-large-turbo, sd3.5-medium"),
        (["measure", "--size", "huge"], "--size: got 'huge'; allowed: WIDTHxHEIGHT"),
        (["measure", "--size", "64x40"], "height: got 40"),
    ],
)
def test_measure_simulate_and_synth_refuse_invalid_flags_with_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    Path("wrong.json").write_text("[]")
    assert sd35_here(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_control_characters_of_a_file_are_escaped_in_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """A terminal would obey them."""
    request = replace(REQUEST, prompt="a \x9b2J cat")
    edited = request.canonical.decode().replace('"prompt"', '"another": 1, "prompt"')
    text = {REQUEST_KEY: edited, DIGEST_KEY: hashlib.sha256(edited.encode()).hexdigest(), MAKER_KEY: "{}"}
    (tmp_path / "sent.png").write_bytes(write_png(np.zeros((64, 64, 3), np.uint8), text))
    assert sd35_here(monkeypatch, "replay", str(tmp_path / "sent.png")) == 2
    output = capsys.readouterr().err
    assert r"a \x9b2J cat" in output
    assert "\x9b" not in output
