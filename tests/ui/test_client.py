"""Errors of the service as messages for the user, and the headers that the client sends."""

import asyncio

import httpx2
import pytest

from sd35.ui.client import Client, ServiceError, Visitor, check, problem_message


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ({"detail": "the service is loading; try again in 1 s"}, "The service is loading; try again in 1 s."),
        (
            {"detail": "x", "errors": [{"field": "guidance_scale", "got": 31, "allowed": "a number from 0 to 30"}]},
            "Guidance: 31 is not allowed. Allowed: a number from 0 to 30.",
        ),
        (
            {"errors": [{"field": "model", "got": "b", "allowed": "a"}, {"field": "steps", "got": 0, "allowed": "1"}]},
            "Model: b is not allowed. Allowed: a. Steps: 0 is not allowed. Allowed: 1.",
        ),
        ({}, ""),
    ],
)
def test_a_problem_becomes_a_message_with_the_pages_names_of_the_fields(problem: dict[str, object], expected: str):
    """The message lists the invalid fields, or else repeats the detail."""
    assert problem_message(problem) == expected


def test_a_key_is_sent_in_a_header_and_is_not_in_the_repr():
    """Therefore, it does not get into a log."""
    visitor = Visitor(" sd35_secret ", "203.0.113.7")
    assert visitor.headers == {"Authorization": "Bearer sd35_secret", "X-Forwarded-For": "203.0.113.7"}
    assert "secret" not in repr(visitor)
    assert Visitor().headers == {}


def test_an_unreachable_service_is_an_error_with_its_address():
    """The message says what to check."""

    async def ask() -> None:
        client = Client("http://127.0.0.1:9", uses_proxies=False)
        try:
            await client.models(Visitor())
        finally:
            await client.close()

    with pytest.raises(ServiceError, match=r"The service at http://127\.0\.0\.1:9 does not answer\. Try again"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("response", "expected"),
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
def test_retry_after_is_added_to_the_message_once(response: httpx2.Response, expected: str):
    """A response that is not a problem document gives a message with its status."""
    message = ""
    try:
        asyncio.run(check(response, Visitor()))
    except ServiceError as error:
        message = error.message
    assert message == expected


@pytest.mark.parametrize(("key", "words"), [("", "needs an API key"), ("sd35_x", "API key is not valid")])
def test_a_missing_key_and_an_invalid_key_have_different_messages(key: str, words: str):
    """Both are key errors, so the page shows the key field."""
    with pytest.raises(ServiceError, match=words) as refused:
        asyncio.run(check(httpx2.Response(401, json={}), Visitor(key)))
    assert refused.value.is_key_error
