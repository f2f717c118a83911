"""The API's own description, put to the test by schemathesis: what it says is what happens, whatever comes."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.schemas import BaseSchema

from sd35.access.keys import Role, new_key
from sd35.api.app import create_app
from sd35.service.lifecycle import ServiceLifecycle
from sd35.settings import load_settings
from tests.support.fake_backend import WAIT_S, fake_pool, key_store
from tests.support.services import service_of

# It takes every header that is not described for an error; HTTP wants those passed over.
_UNKNOWN_HEADER = "Invalid component: in header - object with unexpected properties"
CASES = int(os.environ.get("FUZZ_CASES", "1000"))  # `make fuzz` asks for more


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The description of an app in which a key is needed and images cost nothing."""
    ready = threading.Event()
    pool = fake_pool(tmp_path_factory.mktemp("models"), max_in_flight=64)
    key, secret = new_key("fuzzing", Role.ADMIN, 0)
    service = service_of(pool)
    app = create_app(ServiceLifecycle(lambda: service, ready.set, print), load_settings(), key_store(key))
    guarded = [
        operation for path in app.openapi()["paths"].values() for operation in path.values() if "security" in operation
    ]
    wanted = {
        "headers": {"Authorization": f"Bearer {secret}"},
        "generation": {"max-examples": -(-CASES // len(guarded))},
        # A size that fits the description may not fit the model, which names its range in /v1/models.
        # A job in the making is cancelled by its first deletion, and forgotten by the next.
        "checks": {"positive_data_acceptance": {"enabled": False}, "use_after_free": {"enabled": False}},
    }
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(wanted))
    assert ready.wait(WAIT_S)
    yield schema
    shutdown_lifespans()


def test_answers_are_as_described(api: BaseSchema):
    """No 5xx, no status, header or body that is not described, and nothing without a key where one is needed."""
    cases, wrong = 0, []
    for event in from_schema(api).execute():
        if isinstance(event, events.ScenarioFinished):
            cases += len(event.recorder.cases)
            wrong += _failures(event.recorder)
        elif isinstance(event, events.NonFatalError):
            wrong.append(event.info.format())
    assert not wrong, "\n\n".join(wrong)
    assert cases >= CASES


def test_a_stream_is_as_described(api: BaseSchema):
    """Each event, previews and the end: among random requests few ask for a stream, and get one."""
    body: Any = {"prompt": "a cat", "stream": True, "partial_images": 1, "num_inference_steps": 4}
    case = api["/v1/images/generations"]["POST"].Case(body=body, media_type="application/json")
    answer = case.call_and_validate(headers=api.config.headers)
    assert answer.headers["content-type"] == ["text/event-stream; charset=utf-8"]


def _failures(recorder: ScenarioRecorder) -> list[str]:
    """What a scenario found, and the curl line that shows it."""
    found = [check for checks in recorder.checks.values() for check in checks if check.status is Status.FAILURE]
    infos = [check.failure_info for check in found if check.failure_info]
    infos = [info for info in infos if _UNKNOWN_HEADER not in info.failure.message]
    return [f"{recorder.label}: {info.failure.title}: {info.failure.message}\n{info.code_sample}" for info in infos]
