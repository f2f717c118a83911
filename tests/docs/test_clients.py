"""docs/clients.md: what it says to type works, against a real server of the embedded model."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.server_process import Served, serving

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
SNIPPETS = re.findall(r"```(python|bash)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that all snippets ask."""
    with serving(tmp_path_factory.mktemp("log") / "stderr") as served:
        yield served


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=[f"{number}" for number in range(len(SNIPPETS))])
def test_a_snippet_does_what_it_says(served: Served, tmp_path: Path, language: str, code: str):
    """It ends well, and the files that it names are images."""
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*command, code.replace("8000", str(served.port))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in set(re.findall(r"[\w-]+\.(?:png|jpeg|webp)\b", code)):
        with Image.open(tmp_path / name) as image:
            image.load()


def test_there_is_a_snippet_for_each_dialect():
    """Of each one's own path or client."""
    everything = "".join(code for _, code in SNIPPETS)
    for part in ("/v1/txt2img", "OpenAI(", "/v1/images/generations", "WebUIApi(", "/sdapi/v1/txt2img", "/v2beta/"):
        assert part in everything
