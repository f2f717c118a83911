"""Random requests by schemathesis: the API does what its OpenAPI description says."""

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

# schemathesis reports headers that are not described as errors. HTTP servers ignore them.
_UNKNOWN_HEADER = "Invalid component: in header - object with unexpected properties"
CASES = int(os.environ.get("FUZZ_CASES", "1000"))  # `make fuzz` sets more


@pytest.fixture
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The description of an app that needs a key and generates images with the fake backend."""
    ready = threading.Event()
    pool = fake_pool(tmp_path_factory.mktemp("models"), max_in_flight=64)
    key, secret = new_key("fuzzing", Role.ADMIN, 0)
    service = service_of(pool)
    app = create_app(ServiceLifecycle(lambda: service, ready.set, print), load_settings(), key_store(key))
    guarded = [
        operation for path in app.openapi()["paths"].values() for operation in path.values() if "security" in operation
    ]
    options = {
        "headers": {"Authorization": f"Bearer {secret}"},
        "generation": {"max-examples": -(-CASES // len(guarded))},
        # A size that the description allows may be outside the model's range, which /v1/models lists.
        # The first DELETE cancels a running job, and the next one deletes it.
        "checks": {"positive_data_acceptance": {"enabled": False}, "use_after_free": {"enabled": False}},
    }
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(options))
    assert ready.wait(WAIT_S)
    yield schema
    shutdown_lifespans()


def test_responses_are_as_described(api: BaseSchema):
    """No 5xx, nothing that is not described, and no access without a key."""
    cases, failures = 0, []
    for event in from_schema(api).execute():
        if isinstance(event, events.ScenarioFinished):
            cases += len(event.recorder.cases)
            failures += _failures(event.recorder)
        elif isinstance(event, events.NonFatalError):
            failures.append(event.info.format())
    assert not failures, "\n\n".join(failures)
    assert cases >= CASES


def test_a_stream_is_as_described(api: BaseSchema):
    """Tested separately, because few random requests are valid requests for a stream."""
    body: Any = {"prompt": "a cat", "stream": True, "partial_images": 1, "num_inference_steps": 4}
    case = api["/v1/images/generations"]["POST"].Case(body=body, media_type="application/json")
    answer = case.call_and_validate(headers=api.config.headers)
    assert answer.headers["content-type"] == ["text/event-stream; charset=utf-8"]


def _failures(recorder: ScenarioRecorder) -> list[str]:
    """Return the failed checks of a scenario, each with the curl command that shows it."""
    found = [check for checks in recorder.checks.values() for check in checks if check.status is Status.FAILURE]
    infos = [check.failure_info for check in found if check.failure_info]
    infos = [info for info in infos if _UNKNOWN_HEADER not in info.failure.message]
    return [f"{recorder.label}: {info.failure.title}: {info.failure.message}\n{info.code_sample}" for info in infos]
