"""The programs in examples/, run as their descriptions say, against a server of the embedded model."""

import base64
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd35.jobs.webhooks.signing import headers
from tests.support.server_process import Served, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = bytes(range(32))
SECRET_VARIABLE = {"SD35_WEBHOOK_SECRET": f"whsec_{base64.b64encode(SECRET).decode()}"}
BODY = b'{"id": "a"}'
TIMEOUT_S = 120
IMAGES = {
    "python.py": ["cat.png", "image-1.png", "image-2.png", "image-3.png", "image-4.png"],
    "curl.sh": ["cat.png", "dog.png"],
    "openai_client.py": ["cat.png", "dog.png"],
    "automatic1111_client.py": ["cat-1.png", "cat-2.png"],
    "jobs_with_webhooks.py": ["job-1.png", "job-2.png"],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that sends webhooks to this machine."""
    with pytest.MonkeyPatch.context() as context:
        for name, value in {**SECRET_VARIABLE, "SD35_WEBHOOK_ALLOW_PRIVATE": "true"}.items():
            context.setenv(name, value)
        with serving(tmp_path_factory.mktemp("log") / "stderr") as served:
            yield served


def run(served: Served, example: str, directory: Path) -> str:
    """Run an example to its end in a directory, and return its output."""
    command = ["bash"] if example.endswith(".sh") else [sys.executable]
    done = subprocess.run(
        [*command, str(EXAMPLES / example), f"http://127.0.0.1:{served.port}"],
        cwd=directory,
        env=os.environ | SECRET_VARIABLE,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("example", IMAGES)
def test_an_example_writes_its_images(served: Served, tmp_path: Path, example: str):
    """Each file is an image of the embedded model's own size, and of more than one colour. Nothing else is written."""
    if example == "curl.sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    output = run(served, example, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == IMAGES[example]
    for name in IMAGES[example]:
        with Image.open(tmp_path / name) as image:
            assert image.size == (128, 128)
            assert np.ptp(np.asarray(image)) > 0
    if example == "jobs_with_webhooks.py":
        assert output.count("signature verified") == len(IMAGES[example])
    if example == "curl.sh":
        assert "event: succeeded" in output


def test_each_example_is_described_and_run():
    """The table of examples/README.md and this test have the files of the folder."""
    table = (EXAMPLES / "README.md").read_text()
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {"README.md", *IMAGES}
    assert [name for name in IMAGES if f"| [{name}]({name}) |" not in table] == []


def test_the_webhook_example_refuses_forged_and_old_messages():
    """Only the bytes that were signed, with the same secret, in the last minutes, are authentic."""
    is_authentic = runpy.run_path(str(EXAMPLES / "jobs_with_webhooks.py"))["is_authentic"]
    secret, now_s = SECRET_VARIABLE["SD35_WEBHOOK_SECRET"], time.time()
    signed = headers(SECRET, "a", now_s, BODY)

    def accepts(body: bytes = BODY, **changed: str) -> Any:
        return is_authentic(secret, signed | {name.replace("_", "-"): value for name, value in changed.items()}, body)

    assert accepts()
    assert not accepts(b'{"id": "b"}')
    assert not accepts(Webhook_Id="b")
    assert not accepts(Webhook_Signature="v1,")
    assert not accepts(Webhook_Signature="\u2713")
    assert not accepts(Webhook_Timestamp="")
    assert not accepts(Webhook_Timestamp=str(int(now_s) + 1))
    assert not is_authentic(secret, {}, BODY)
    assert not is_authentic(secret, headers(bytes(32), "a", now_s, BODY), BODY)
    assert not is_authentic(secret, headers(SECRET, "a", now_s - 600, BODY), BODY)
