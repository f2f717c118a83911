"""What the service's refusals are in plain words, and what it is told of who asks."""

import asyncio

import httpx2
import pytest

from sd35.ui.client import Client, Refusal, Visitor, check, words_of


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"detail": "the service is loading; try again in 1 s"}, "The service is loading; try again in 1 s."),
        (
            {"detail": "x", "errors": [{"field": "guidance_scale", "got": 31, "allowed": "a number from 0 to 30"}]},
            "Guidance: 31 is not possible. Allowed: a number from 0 to 30.",
        ),
        (
            {"errors": [{"field": "model", "got": "b", "allowed": "a"}, {"field": "steps", "got": 0, "allowed": "1"}]},
            "Checkpoint: b is not possible. Allowed: a. Steps: 0 is not possible. Allowed: 1.",
        ),
        ({}, ""),
    ],
)
def test_a_problem_is_said_as_a_person_would(problem: dict[str, object], words: str):
    """By the fields that are wrong where it names any, with the page's names for them; else as it says itself."""
    assert words_of(problem) == words


def test_a_key_is_sent_and_never_shown():
    """It goes with each call, and is in no text that could come into a log."""
    visitor = Visitor(" sd35_secret ", "203.0.113.7")
    assert visitor.headers == {"Authorization": "Bearer sd35_secret", "X-Forwarded-For": "203.0.113.7"}
    assert "secret" not in repr(visitor)
    assert Visitor().headers == {}


def test_a_service_that_is_not_there_is_said():
    """With its address."""

    async def ask() -> None:
        client = Client("http://127.0.0.1:9", uses_proxies=False)
        try:
            await client.models(Visitor())
        finally:
            await client.close()

    with pytest.raises(Refusal, match=r"The service at http://127\.0\.0\.1:9 does not answer\. Is it running\?"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx2.Response(429, json={"detail": "too many wait; try again in 7 s"}), "Too many wait; try again in 7 s."),
        (
            httpx2.Response(429, json={"detail": "16 images wait"}, headers={"retry-after": "7"}),
            "16 images wait. Try again in 7 s.",
        ),
        (httpx2.Response(502, text="<html>"), "The service answered 502 Bad Gateway."),
        (httpx2.Response(200), ""),
    ],
)
def test_who_is_too_early_is_told_when_to_come_again(response: httpx2.Response, words: str):
    """Once; and an answer that comes from no service of ours is told by its status."""
    said = ""
    try:
        asyncio.run(check(response, Visitor()))
    except Refusal as refusal:
        said = refusal.words
    assert said == words


@pytest.mark.parametrize(("key", "words"), [("", "needs an API key"), ("sd35_x", "API key is not valid")])
def test_a_key_that_lacks_is_told_from_a_wrong_one(key: str, words: str):
    """And both show the field."""
    with pytest.raises(Refusal, match=words) as refused:
        asyncio.run(check(httpx2.Response(401, json={}), Visitor(key)))
    assert refused.value.is_of_key
