"""The messages that `sd35 serve` prints for a person."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sd35.api.terminal import PlannedMemory, ReadyServer, loading_text, ready_text
from sd35.checkpoints.card import Card
from sd35.engine.model_info import ModelInfo
from sd35.planning.plan import AvailableMemory, Placement
from sd35.settings import Settings, load_settings

GIB = 2**30
MINI = ModelInfo("sd35-mini", "0123456789abcdef", "onnx/float32", "onnx", "float32", Card(), {}, False, 0.0)  # noqa: FBT003
PLACEMENT = Placement("none", False, {}, {"steps": 2 * GIB}, GIB, 0, 0)  # noqa: FBT003
SERVER = ReadyServer(
    address="http://127.0.0.1:8000",
    host="127.0.0.1",
    started_s=2.345,
    models=(MINI,),
    memory=PlannedMemory(AvailableMemory("cpu", 16 * GIB, 16 * GIB), [PLACEMENT]),
    database="/data/sd35.db",
    has_ui=True,
    needs_key=False,
    is_building=False,
)


def settings(**values: object) -> Settings:
    """Settings with a data directory."""
    return load_settings({"data_dir": Path("/data"), **values})


def rows(text: str) -> dict[str, str]:
    """Return the table of a message, by label."""
    lines = (line[2:] for line in text.splitlines() if line.startswith("  "))
    return {line[:16].strip(): line[16:] for line in lines if not line.startswith("curl")}


def test_a_ready_server_prints_everything_a_person_needs():
    """Address, pages, model, memory, storage, keys, a command to try, and how to stop."""
    text = ready_text(settings(), SERVER)
    assert text.startswith("Ready: http://127.0.0.1:8000 (started in 2.3 s)\n")
    assert rows(text) == {
        "User interface": "http://127.0.0.1:8000/",
        "API reference": "http://127.0.0.1:8000/docs",
        "Model": "sd35-mini, revision 0123456789ab: onnx on the CPU, float32",
        "Memory": "2.0 GiB planned at the peak, 16.0 GiB available",
        "Images": "/data/images, kept 30 days after the last request and up to 20 GB in total",
        "Database": "/data/sd35.db",
        "API keys": "not required; create one with: sd35 keys add NAME --data-dir /data",
    }
    assert text.splitlines()[-1] == (
        "Stop with Ctrl-C: running images are finished first. A second Ctrl-C ends at once."
    )


def test_several_models_have_a_line_each():
    """The first is the default."""
    text = ready_text(settings(), SERVER._replace(models=(MINI, replace(MINI, name="mine", revision="fedcba987654"))))
    assert "  Models          sd35-mini, revision 0123456789ab: " in text
    assert "\n                  mine, revision fedcba987654: onnx on the CPU, float32\n" in text


def test_a_server_that_other_machines_can_reach_prints_where_it_listens():
    """The address in `Ready:` is one for this machine."""
    assert rows(ready_text(settings(), SERVER._replace(host="0.0.0.0")))["Listens on"] == "0.0.0.0"  # noqa: S104


def test_no_command_creates_keys_for_a_database_in_memory():
    """A key that `sd35 keys add` creates there would be lost at once."""
    table = rows(ready_text(settings(database="memory"), SERVER._replace(database="memory")))
    assert (table["Database"], table["API keys"]) == ("in memory, lost when the server stops", "not required")


def test_the_password_of_a_database_is_not_printed():
    """The command to create a key leaves the URL out."""
    text = ready_text(
        settings(database="postgresql://me:hush@db/x"), SERVER._replace(database="postgresql://me:***@db/x")
    )
    assert "sd35 keys add NAME --data-dir /data --database ..." in text
    assert "hush" not in text


def test_without_a_user_interface_its_address_is_left_out():
    """The address of the API reference stays."""
    table = rows(ready_text(settings(), SERVER._replace(has_ui=False)))
    assert "User interface" not in table
    assert "API reference" in table


def test_a_server_with_keys_says_how_to_send_one():
    """The command to try sends a key too."""
    text = ready_text(settings(), SERVER._replace(needs_key=True))
    assert rows(text)["API keys"] == "required, as the header 'Authorization: Bearer sd35_...'"
    (command,) = (line for line in text.splitlines() if line.startswith("  curl"))
    assert "authorization: Bearer sd35_..." in shlex.split(command)


def test_memory_is_listed_for_the_gpu_and_for_the_host():
    """With a fallback, both placements add up."""
    placement = replace(PLACEMENT, host_bytes=3 * GIB)
    memory = PlannedMemory(AvailableMemory("cuda", 24 * GIB, 64 * GIB), [placement, placement])
    table = rows(
        ready_text(
            settings(fallback="diffusers", precision="bfloat16"), SERVER._replace(memory=memory, is_building=True)
        )
    )
    assert table["Memory"] == (
        "GPU: 4.0 GiB planned at the peak, 24.0 GiB available; host: 6.0 GiB planned, 64.0 GiB available"
    )
    assert table["Model"].endswith("onnx on CUDA, float32")
    assert table["Fallback"] == "diffusers generates images until the files for onnx/bfloat16 are built"


@pytest.mark.parametrize(
    ("values", "images"),
    [
        ({"image_store": "memory"}, "in memory, lost when the server stops"),
        ({"image_store": "s3://bucket/prefix", "retention_days": 0}, "s3://bucket/prefix, kept up to 20 GB in total"),
        ({"retention_days": 0, "retention_gb": 0}, "/data/images, kept without limit"),
    ],
)
def test_the_image_store_and_its_limits_are_named(values: dict[str, object], images: str):
    """A store in memory is marked as lost when the server stops."""
    assert rows(ready_text(settings(**values), SERVER))["Images"] == images


def test_control_characters_of_a_path_are_escaped():
    """They could control the terminal."""
    text = ready_text(settings(image_store="/a\x1b[2J"), SERVER)
    assert r"/a\x1b[2J" in text
    assert "\x1b" not in text


def test_loading_names_the_checkpoints_and_the_backend():
    """`auto` is explained, because the model is not chosen yet."""
    text = loading_text(settings(checkpoints=["sd35-mini", "auto"]))
    names = "sd35-mini, the best SD3.5 model that fits here"
    assert text == f"Loading {names} (backend onnx). Large models take minutes."
