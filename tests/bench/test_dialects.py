"""Each dialect asks a real service for the same image, and reads what it answers."""

import asyncio

import httpx2
import pytest
from prometheus_client import generate_latest

from benchmarks.plain_fastapi import Txt2Img
from sd35.bench.dialects import DIALECTS, Answer, dialect_of
from sd35.bench.load import Asking
from sd35.bench.monitor import occupancy
from sd35.bench.quality import opened
from sd35.bench.run import Measured
from sd35.bench.server import Server, parsed
from sd35.bench.workload import BenchRequest, Kind, Workload, mixed
from sd35.errors import InvalidSetting
from sd35.telemetry.metrics import Metrics

EVERYTHING = BenchRequest("k", "a cat", 7, "a dog", (96, 64), 2, 4.5)


def ask(url: str, dialect: str, wanted: BenchRequest) -> Answer:
    """One request's answer."""

    async def run() -> Answer:
        async with Asking(url, DIALECTS[dialect]) as asking:
            return await asking.image(wanted)

    return asyncio.run(run())


def test_every_field_arrives_in_each_dialect_that_has_words_for_it(url: str):
    """The images are the same to the pixel, and of the size that was asked for."""
    answers = [ask(url, dialect, EVERYTHING) for dialect in ("sd35", "openai", "a1111", "plain")]
    assert [answer.end for answer in answers] == ["made"] * 4, answers
    images = [opened(answer.image) for answer in answers]
    assert {image.shape for image in images} == {(64, 96, 3)}
    assert all((image == images[0]).all() for image in images)
    others = EVERYTHING._replace(seed=8), EVERYTHING._replace(negative_prompt=""), EVERYTHING._replace(guidance=1.5)
    for other in others:
        assert (opened(ask(url, "a1111", other).image) != images[0]).any(), other


def test_stabilitys_dialect_asks_by_aspect(url: str):
    """Steps and pixels are the server's; seed, guidance and prompts arrive."""
    wanted = BenchRequest("k", "a cat", 7, "a dog", (96, 64), None, 4.5)
    answer = ask(url, "stability", wanted)
    assert answer.end == "made", answer
    height, width, _ = opened(answer.image).shape
    assert width / height == pytest.approx(1.5, abs=0.2)
    assert (opened(answer.image) != opened(ask(url, "stability", wanted._replace(guidance=2.0)).image)).any()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_goes_wrong_is_a_failure_with_the_servers_words(url: str, dialect: str):
    """In each dialect's own form of an error."""
    answer = ask(url, dialect, BenchRequest("k", "a fault", 7))
    assert (answer.end, answer.image) == ("failed", b"")
    assert answer.said.startswith("500: ")
    assert "the runtime's own words" in answer.said


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_has_no_room_refuses(dialect: str, status: int):
    """That is no failure."""
    answer = DIALECTS[dialect].answer(httpx2.Response(status, json={"detail": "full"}))
    assert answer == Answer("refused", said=f"{status}: full")


def test_a_page_in_place_of_an_answer_is_told_in_a_line():
    """Not as all of its lines."""
    told = DIALECTS["sd35"].answer(httpx2.Response(500, text="<html>\n  <h1>Oh</h1>\n" + "<p>no\n" * 100)).said
    assert told.startswith("500: <html> <h1>Oh</h1> <p>no <p>no")
    assert len(told) == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"data": [{"url": "x"}], "images": []}'])
def test_an_answer_without_a_image_is_a_failure(dialect: str, content: bytes):
    """Although its status is 200."""
    assert DIALECTS[dialect].answer(httpx2.Response(200, content=content)).end == "failed"


def test_the_plain_file_knows_every_field():
    """What is sent to benchmarks/plain_fastapi.py is in its form of a request, under the same name."""
    body = DIALECTS["plain"].ask(EVERYTHING)["json"]
    assert Txt2Img(**body).model_dump(include=set(body)) == body


def test_a_key_is_shown_as_the_dialect_wants_it():
    """As a bearer's, or by HTTP Basic, with a user's name or without."""
    assert DIALECTS["openai"].headers("k") == {"Authorization": "Bearer k"}
    assert DIALECTS["a1111"].headers("k") == {"Authorization": "Basic dXNlcjpr"}
    assert DIALECTS["a1111"].headers("me:k") == {"Authorization": "Basic bWU6aw=="}
    assert DIALECTS["sd35"].headers(None) == {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind(name="a", steps=(4,)), "'a' has steps; allowed with --dialect stability: none"),
        (Kind(name="a", sizes=("100x64",)), "'a': sizes: got 100x64, 25:16; allowed with --dialect stability: 16:9"),
        (Kind(name="a", guidance=(0.0,)), "'a': guidance: got 0; allowed with --dialect stability: 1 to 10"),
    ],
)
def test_what_a_dialect_has_no_words_for_is_refused(kind: Kind, words: str):
    """Rather than passed over; its own default can be asked for."""
    dialect = dialect_of("stability")
    dialect.check(dialect.default())
    with pytest.raises(InvalidSetting) as raised:
        dialect.check(Workload(name="w", classes=(kind,)))
    assert words in str(raised.value)
    dialect_of("sd35").check(mixed())


def test_an_unknown_dialect_is_told_with_the_known_ones():
    """By the flag's name."""
    with pytest.raises(InvalidSetting, match="--dialect: got 'http'; allowed: sd35, openai, a1111, stability, plain"):
        dialect_of("http")


def test_batches_are_told_by_how_full_they_were():
    """Each in the class of its share, as the service counts them, and only those since the first look."""
    metrics = Metrics(max_rows=8)
    looks = []
    for rows in ([8], [1, 2, 2, 7, 8]):
        for each in rows:
            metrics.on_step_done(1, each, 0.1)
        looks.append(parsed(generate_latest(metrics.registry).decode()))
    assert {share: count for share, count in occupancy(*looks).items() if count} == {
        "0.125": 1, "0.25": 2, "0.875": 1, "1.0": 1,
    }  # fmt: skip


def test_the_services_own_pages_are_read(url: str):
    """Its metrics, and its models; another dialect's server is not asked for them."""
    measured = Measured(Server(url), DIALECTS["sd35"])
    before = measured.metrics()
    ask(url, "sd35", BenchRequest("k", "a cat", 1, steps=3, guidance=0.0))
    after = measured.metrics()
    assert after["sd35_engine_row_steps_total"] - before.get("sd35_engine_row_steps_total", 0) == 3
    models = measured.models()
    assert models
    assert models[0]["id"] == "mini"
    assert Measured(Server(url), DIALECTS["openai"]).models() is None
