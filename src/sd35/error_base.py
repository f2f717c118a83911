"""The base classes of the errors in `sd35.errors`. They can be pickled, so they cross process boundaries."""

from typing import Any, Self


class Sd35Error(Exception):
    """Base of all errors meant for users. `str(error)` says what is wrong and what to do.

    Attributes:
        exit_code: Exit code of a command that ends with the error: 2 for invalid input, otherwise 1.
        status: HTTP status of a request that ends with the error.
    """

    exit_code = 1
    status = 500
    _given: tuple[tuple[object, ...], dict[str, object]]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Keep the arguments for `__reduce__`."""
        error = super().__new__(cls, *args)
        error._given = args, kwargs
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class and the arguments of its constructor.

        By default, pickle would call the constructor with the message alone, which fails for most subclasses.
        """
        return _restore_error, (type(self), *self._given)


class FieldError(Sd35Error):
    """Base of errors about one field or header of a request: "FIELD: got VALUE; allowed: VALUES"."""

    def __init__(self, field: str, got: object, allowed: str) -> None:
        super().__init__(f"{field}: got {shorten(got)}; allowed: {allowed}")
        self.field, self.got, self.allowed = field, got, allowed


class RetryError(Sd35Error):
    """Base of errors that may disappear: the same request can succeed after `retry_after_s` seconds."""

    status = 429

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = max(1.0, retry_after_s)  # with less, clients would retry at once
        super().__init__(f"{reason}; try again in {self.retry_after_s:.0f} s")


def shorten(value: object, limit: int = 80) -> str:
    """Return the representation of a value, shortened to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _restore_error(kind: type[Sd35Error], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sd35Error:
    """Unpickle an error: call the constructor of its class with the arguments that `__reduce__` pickled."""
    return kind(*args, **kwargs)
