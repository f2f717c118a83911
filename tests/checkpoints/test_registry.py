"""The registry of checkpoints, and the selection of files in a repository."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sd35.checkpoints.hub.download import fetch
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.layout import checkpoint_files, missing_files
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import RegisteredCheckpoint, load_registry
from sd35.errors import CheckpointError, InvalidSetting
from tests.checkpoints.conftest import LARGE, OTHERS, REPOSITORY, REVISION, SMALL, T5_INDEX, TRANSFORMER
from tests.support.hub_server import Hub

ENTRY = f'repository = "{REPOSITORY}"\nrevision = "{REVISION}"\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's file with one registered checkpoint."""
    path = tmp_path / "mine.toml"
    path.write_text(f"[small]\n{ENTRY}[small.card]\nsteps = 7\n")
    return path


def test_the_built_in_registry_has_the_sd35_models():
    """Each entry has a commit, defaults, a licence and a size."""
    known = load_registry(None)
    defaults = {name: (one.card.steps, one.card.guidance_scale) for name, one in known.items()}
    assert defaults == {"sd3.5-large": (28, 3.5), "sd3.5-large-turbo": (4, 0.0), "sd3.5-medium": (40, 4.5)}
    for one in known.values():
        assert one.repository == f"stabilityai/{one.name.replace('sd3.5', 'stable-diffusion-3.5')}"
        assert "Stability AI Community License" in one.card.licence
        assert checkpoint_files(one.files) == sorted(one.files)
    sizes = {name: round((one.size_bytes or 0) / 1e9) for name, one in known.items()}
    assert sizes == {"sd3.5-large": 28, "sd3.5-large-turbo": 28, "sd3.5-medium": 16}


def test_the_users_file_adds_checkpoints(own: Path):
    """They come after the built-in ones and have the defaults of SD3.5."""
    added = load_registry(own)["small"]
    assert (added.repository, added.card.steps, added.card.width, added.size_bytes) == (REPOSITORY, 7, 1024, None)
    assert list(load_registry(own)) == ["sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "small"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (f'["sd3.5-medium"]\n{ENTRY}', "sd3.5-medium cannot be redefined"),
        (f"[sd35-mini]\n{ENTRY}", "sd35-mini cannot be redefined"),
        ('[a]\nrepository = "b/c"\nrevision = "main"', "a.revision: got 'main'"),
        ('[a]\nrepository = "c"\nrevision = "x"', "a.repository: got 'c'"),
        (f"[a]\n{ENTRY}colour = 1", "a.colour: got 1"),
        (f"[a]\n{ENTRY}[a.card]\nsteps = 0", "a.card.steps: got 0"),
        (f'["./a"]\n{ENTRY}', "got './a'"),
        ("a = 1", "a: got 1"),
        ("[a", "cannot be read as TOML"),
        ("a = " + "[" * 200_000, "cannot be read as TOML: values nested in more than 64 levels"),
        ("a.b" + ".c" * 5_000 + " = 1", "cannot be read as TOML: values nested in more than 64 levels"),
        ("a = " + "9" * 5_000, "cannot be read as TOML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_an_invalid_entry_is_refused(tmp_path: Path, content: str | None, why: str):
    """The error names the file, the field and the value. Built-in names cannot be redefined."""
    path = tmp_path / "wrong.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSetting) as refused:
        load_registry(path)
    assert f"registry: {path}" in str(refused.value)
    assert why in str(refused.value)


def test_a_name_opens_only_the_registered_revision(
    hub: Hub, entry: RegisteredCheckpoint, own: Path, monkeypatch: pytest.MonkeyPatch
):
    """A directory of that name, or another revision, is not opened. The error has the command for the download."""
    monkeypatch.chdir(own.parent)
    Path("small").mkdir()
    with pytest.raises(CheckpointError, match="small is not on disk; download it with: sd35 pull small"):
        open_checkpoint("small", own)
    directory = fetch(plan_download(entry), lambda _: None)
    opened = open_checkpoint("small", own)
    assert (opened.name, opened.directory, opened.card.steps) == ("small", directory, 7)
    own.write_text(own.read_text().replace(REVISION, "2" * 40))
    with pytest.raises(CheckpointError, match="small is not on disk"):
        open_checkpoint("small", own)
    own.write_text(own.read_text().replace("2" * 40, REVISION))
    (directory / TRANSFORMER).unlink()
    with pytest.raises(CheckpointError, match=f"small is incomplete on disk: {TRANSFORMER} missing; .*sd35 pull small"):
        open_checkpoint("small", own)
    with pytest.raises(CheckpointError, match=r"not an SD3\.5 checkpoint"):
        open_checkpoint("./small", own)
    assert hub.asked


def test_the_repositorys_card_overrides_the_registry(hub: Hub, entry: RegisteredCheckpoint, own: Path):
    """The checkpoint's own `sd35.json` has precedence."""
    hub.repositories[REPOSITORY].files["sd35.json"] = b'{"steps": 9}'
    fetch(plan_download(entry), lambda _: None)
    assert open_checkpoint("small", own).card.steps == 9


def test_the_revision_is_the_same_in_the_cache_and_in_a_directory(
    hub: Hub, entry: RegisteredCheckpoint, own: Path, tmp_path: Path
):
    """Other files of the repository do not count."""
    fetch(plan_download(entry), lambda _: None)
    plain = tmp_path / "plain"
    for path, content in {**SMALL, **LARGE, **OTHERS}.items():
        (plain / path).parent.mkdir(parents=True, exist_ok=True)
        (plain / path).write_bytes(content)
    assert open_checkpoint("small", own).revision != open_checkpoint(str(plain)).revision  # another card
    (plain / "sd35.json").write_text(json.dumps(asdict(open_checkpoint("small", own).card)))
    assert open_checkpoint("small", own).revision == open_checkpoint(str(plain)).revision
    (plain / TRANSFORMER).write_bytes(b"other")
    assert open_checkpoint("small", own).revision != open_checkpoint(str(plain)).revision
    assert hub.asked


def test_each_parts_weights_are_selected_once():
    """`.fp16` copies, pickles and files of other programs are excluded; a single file precedes shards."""
    assert checkpoint_files([*SMALL, *LARGE, *OTHERS]) == sorted([*SMALL, *LARGE])
    shards = [f"text_encoder_3/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "text_encoder_3/model.safetensors.index.json"
    assert checkpoint_files([*shards, index, "text_encoder_3/model.safetensors"]) == [
        "text_encoder_3/model.safetensors"
    ]
    assert checkpoint_files([*shards, index]) == [*shards, index]
    assert (
        checkpoint_files(["transformer/model.safetensors", "transformer/extra/config.json", "vae/x.bin", "vae/x.py"])
        == []
    )


def test_a_checkpoint_is_complete_with_all_shards_of_its_index(tmp_path: Path):
    """Without an index, a single weight file is expected."""
    for path, content in {**SMALL, **LARGE}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert missing_files(tmp_path) == []
    (tmp_path / "text_encoder_3/model-00002-of-00002.safetensors").unlink()
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "tokenizer/tokenizer_config.json").unlink()
    assert missing_files(tmp_path) == [
        "tokenizer/tokenizer_config.json",
        "text_encoder_3/model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    (tmp_path / "text_encoder_3/model.safetensors.index.json").write_bytes(T5_INDEX[:20])
    assert "text_encoder_3/model-*.safetensors" in missing_files(tmp_path)
    (tmp_path / "text_encoder_3/model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    assert [path for path in missing_files(tmp_path) if path.startswith("text_encoder_3")] == []
