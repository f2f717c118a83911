"""Errors as data: they can be pickled, and so cross process boundaries."""

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

from sd35 import errors
from sd35.errors import Sd35Error

ARGUMENTS: dict[str, Any] = {
    "field": "width", "got": 40, "allowed": "more", "name": "x", "served": ["mini"], "host": "evil", "header": "Origin",
    "value": None, "limit": "5 a minute", "retry_after_s": 0.5, "reason": "full", "state": "closing",
    "kind": "not_finite", "happened": "at step 2", "remedy": "try again", "status": 409, "detail": "it ended",
    "key": "a key", "what": "graphs are", "arguments": ["compile"], "cache_dir": Path("cache"), "backend": "onnx",
}  # fmt: skip
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Sd35Error)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[Sd35Error]) -> None:
    """With its type, message and attributes. Arguments may be positional or named."""
    names = [name for name in inspect.signature(kind.__init__).parameters if name in ARGUMENTS]
    values = [ARGUMENTS[name] for name in names] or ["a message"]
    raised = [kind(*values)]
    if names:
        raised.append(kind(**dict(zip(names, values, strict=True))))
    for error in raised:
        restored = pickle.loads(pickle.dumps(error))  # noqa: S301  pickled here
        assert type(restored) is kind
        assert str(restored) == str(error)
        assert vars(restored) == vars(error)
