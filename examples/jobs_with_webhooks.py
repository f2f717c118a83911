"""Create jobs, receive a signed webhook when each has ended, and download the images.

Start the server with a secret. The server signs the webhooks with it. This example receives them on the same machine
over plain HTTP. SD35_WEBHOOK_ALLOW_PRIVATE allows this. A receiver with a public https address does not need that
setting.

    export SD35_WEBHOOK_SECRET="whsec_$(openssl rand -base64 32)"
    SD35_WEBHOOK_ALLOW_PRIVATE=true sd35 serve

Then, with the same SD35_WEBHOOK_SECRET in the environment:

    pip install requests
    python jobs_with_webhooks.py                         # the server at http://127.0.0.1:8000

Writes job-1.png and job-2.png to the current directory.
"""

import base64
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import requests

PROMPTS = ["a frog on a green background", "a castle on a purple background"]
MAX_AGE_S = 300  # an older message may be a copy that someone sends again
TIMEOUT_S = 600

ended: Queue[dict[str, Any]] = Queue()  # jobs from webhooks with a valid signature


def is_authentic(secret: str, headers: Mapping[str, str] | Message, body: bytes) -> bool:
    """Check the signature, as in Standard Webhooks. `body` must be the bytes that arrived, not JSON written anew.

    https://www.standardwebhooks.com lists libraries that do this, for most languages.
    """
    message_id, sent_s, signature = (headers.get(f"Webhook-{name}", "") for name in ("Id", "Timestamp", "Signature"))
    if not sent_s.isdecimal() or abs(time.time() - int(sent_s)) > MAX_AGE_S:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{sent_s}.".encode() + body, "sha256")
    return hmac.compare_digest(b"v1," + base64.b64encode(digest), signature.encode())


class Receiver(BaseHTTPRequestHandler):
    """Answers webhooks. The server sends a webhook up to 11 times in about a day, until the status is 200 to 299."""

    def do_POST(self) -> None:
        """Take a webhook if its signature is valid."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_valid = is_authentic(os.environ["SD35_WEBHOOK_SECRET"], self.headers, body)
        print("webhook:", "signature verified" if is_valid else "refused, because its signature is not valid")
        self.send_response(204 if is_valid else 401)
        self.end_headers()
        if is_valid:
            ended.put(json.loads(body))

    def log_message(self, *_: object) -> None:
        """Print no line for each request."""


def main(url: str) -> None:
    """Create the jobs, and wait for their webhooks."""
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=receiver.serve_forever, daemon=True).start()

    files: dict[str, str] = {}  # names of the files to write, by the ID of their job, until the job has ended
    for number, prompt in enumerate(PROMPTS, 1):
        body: dict[str, Any] = {"prompt": prompt, "seed": 7, "webhook": f"http://127.0.0.1:{receiver.server_port}/"}
        response = requests.post(f"{url}/v1/jobs", json=body, timeout=TIMEOUT_S)
        if not response.ok:
            sys.exit(response.text)  # the text names the wrong field and the allowed values
        files[response.json()["id"]] = f"job-{number}.png"

    while files:
        job = ended.get(timeout=TIMEOUT_S)
        file = files.pop(job["id"], None)
        if file is None:
            continue  # a webhook may arrive twice
        if job["status"] != "succeeded":
            sys.exit(f"{file}: {job['status']}, {job.get('error')}")
        image = requests.get(f"{url}{job['image']['url']}", timeout=TIMEOUT_S)
        image.raise_for_status()
        Path(file).write_bytes(image.content)
        print(f"{file}: {job['request']['prompt']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
