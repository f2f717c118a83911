"""Each dialect requests the same image from a real service and reads its response."""

import asyncio

import httpx2
import pytest
from prometheus_client import generate_latest

from benchmarks.plain_fastapi import Txt2Img
from sd35.bench.load.dialects import DIALECTS, ImageResponse, dialect_of
from sd35.bench.load.generator import LoadClient
from sd35.bench.load.workload import BenchRequest, RequestClass, Workload, mixed_workload
from sd35.bench.monitoring.monitor import occupancy
from sd35.bench.quality.comparison import decode_image
from sd35.bench.run import Target
from sd35.bench.server import Server, parse_metrics
from sd35.errors import InvalidSetting
from sd35.telemetry.metrics import Metrics

EVERYTHING = BenchRequest("k", "a cat", 7, "a dog", (96, 64), 2, 4.5)


def generate(url: str, dialect: str, request: BenchRequest) -> ImageResponse:
    """Send one request."""

    async def run() -> ImageResponse:
        async with LoadClient(url, DIALECTS[dialect]) as client:
            return await client.generate(request)

    return asyncio.run(run())


def test_each_dialect_sends_every_field_that_it_supports(url: str):
    """The images are equal to the pixel and of the requested size."""
    answers = [generate(url, dialect, EVERYTHING) for dialect in ("sd35", "openai", "a1111", "plain")]
    assert [answer.status for answer in answers] == ["completed"] * 4, answers
    images = [decode_image(answer.image) for answer in answers]
    assert {image.shape for image in images} == {(64, 96, 3)}
    assert all((image == images[0]).all() for image in images)
    others = EVERYTHING._replace(seed=8), EVERYTHING._replace(negative_prompt=""), EVERYTHING._replace(guidance=1.5)
    for other in others:
        assert (decode_image(generate(url, "a1111", other).image) != images[0]).any(), other


def test_stability_sends_the_aspect_ratio(url: str):
    """The server chooses the steps and the size. Seed, guidance and prompts are sent."""
    request = BenchRequest("k", "a cat", 7, "a dog", (96, 64), None, 4.5)
    answer = generate(url, "stability", request)
    assert answer.status == "completed", answer
    height, width, _ = decode_image(answer.image).shape
    assert width / height == pytest.approx(1.5, abs=0.2)
    assert (
        decode_image(answer.image) != decode_image(generate(url, "stability", request._replace(guidance=2.0)).image)
    ).any()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_error_is_a_failure_with_its_message(url: str, dialect: str):
    """Each dialect has its own layout of errors."""
    answer = generate(url, dialect, BenchRequest("k", "a fault", 7))
    assert (answer.status, answer.image) == ("failed", b"")
    assert answer.message.startswith("500: ")
    assert "the runtime's own words" in answer.message


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_refuses(dialect: str, status: int):
    """A refusal is not a failure."""
    answer = DIALECTS[dialect].parse_response(httpx2.Response(status, json={"detail": "full"}))
    assert answer == ImageResponse("refused", message=f"{status}: full")


def test_an_html_error_becomes_one_short_line():
    """Line breaks become spaces, and the text is truncated."""
    message = (
        DIALECTS["sd35"].parse_response(httpx2.Response(500, text="<html>\n  <h1>Oh</h1>\n" + "<p>no\n" * 100)).message
    )
    assert message.startswith("500: <html> <h1>Oh</h1> <p>no <p>no")
    assert len(message) == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"data": [{"url": "x"}], "images": []}'])
def test_a_response_without_an_image_is_a_failure(dialect: str, content: bytes):
    """The status of these responses is 200."""
    assert DIALECTS[dialect].parse_response(httpx2.Response(200, content=content)).status == "failed"


def test_the_plain_server_accepts_every_field():
    """`benchmarks/plain_fastapi.py` has a field of the same name for each field of a request."""
    body = DIALECTS["plain"].build_request(EVERYTHING)["json"]
    assert Txt2Img(**body).model_dump(include=set(body)) == body


def test_the_api_key_is_sent_as_each_dialect_expects():
    """The key is a bearer token, or the password of HTTP Basic with or without a user name."""
    assert DIALECTS["openai"].headers("k") == {"Authorization": "Bearer k"}
    assert DIALECTS["a1111"].headers("k") == {"Authorization": "Basic dXNlcjpr"}
    assert DIALECTS["a1111"].headers("me:k") == {"Authorization": "Basic bWU6aw=="}
    assert DIALECTS["sd35"].headers(None) == {}


@pytest.mark.parametrize(
    ("request_class", "message"),
    [
        (RequestClass(name="a", steps=(4,)), "or use one of these dialects: sd35, openai, a1111, plain"),
        (
            RequestClass(name="a", sizes=("100x64",)),
            "'a' has the size 100x64, which has the aspect ratio 25:16; allowed with --dialect stability: 16:9",
        ),
        (
            RequestClass(name="a", guidance=(0.0,)),
            "'a' has the guidance 0; allowed with --dialect stability: 1 to 10",
        ),
    ],
)
def test_fields_that_a_dialect_does_not_support_are_refused(request_class: RequestClass, message: str):
    """The default workload of a dialect is always supported."""
    dialect = dialect_of("stability")
    dialect.check(dialect.default_workload())
    with pytest.raises(InvalidSetting) as raised:
        dialect.check(Workload(name="w", classes=(request_class,)))
    assert message in str(raised.value)
    dialect_of("sd35").check(mixed_workload())


def test_the_error_of_an_unknown_dialect_lists_the_known_ones():
    """The error names the option."""
    with pytest.raises(InvalidSetting, match="--dialect: got 'http'; allowed: sd35, openai, a1111, stability, plain"):
        dialect_of("http")


def test_batches_are_counted_by_occupancy():
    """Only batches between the two scrapes count. The buckets are those of the service."""
    metrics = Metrics(max_rows=8)
    scrapes = []
    for rows in ([8], [1, 2, 2, 7, 8]):
        for each in rows:
            metrics.on_step_done(1, each, 0.1)
        scrapes.append(parse_metrics(generate_latest(metrics.registry).decode()))
    assert {share: count for share, count in occupancy(*scrapes).items() if count} == {
        "0.125": 1, "0.25": 2, "0.875": 1, "1.0": 1,
    }  # fmt: skip


def test_metrics_and_models_are_fetched_from_this_projects_servers(url: str):
    """They are not fetched from servers of other dialects."""
    target = Target(Server(url), DIALECTS["sd35"])
    before = target.metrics()
    generate(url, "sd35", BenchRequest("k", "a cat", 1, steps=3, guidance=0.0))
    after = target.metrics()
    assert after["sd35_engine_row_steps_total"] - before.get("sd35_engine_row_steps_total", 0) == 3
    models = target.models()
    assert models
    assert models[0]["id"] == "mini"
    assert Target(Server(url), DIALECTS["openai"]).models() is None
