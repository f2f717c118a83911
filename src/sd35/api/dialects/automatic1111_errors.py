"""How AUTOMATIC1111's API words its errors, and which of them its routes give."""

from typing import Any, TypeAlias

from sd35.api.dialects.automatic1111_shapes import Refusal
from sd35.api.refusals import ApiError, ErrorFormat

_Answers: TypeAlias = dict[int | str, dict[str, Any]]
_NAMES = {"model": "sd_model_checkpoint", "guidance_scale": "cfg_scale"}  # what the service itself calls otherwise


def _words(refused: ApiError, _: str) -> tuple[int, dict[str, Any]]:
    names = _NAMES if refused.error else {}  # what the dialect itself refuses is named as it came
    wrong = [each.model_copy(update={"field": names.get(each.field, each.field)}) for each in refused.errors]
    errors = "; ".join(each.sentence for each in wrong)
    kind = type(refused.error).__name__ if refused.error else "HTTPException"
    return refused.status, Refusal(error=kind, detail=refused.detail, errors=errors).model_dump()


WORDING = ErrorFormat(_words, Refusal, challenge='Basic realm="sd35", Bearer')
_documented = WORDING.documented
BODY: _Answers = {
    400: _documented("The body is not JSON."),
    413: _documented("The body is too large."),
    415: _documented("The body's `Content-Type` is another than `application/json`."),
    422: _documented("A field is wrong; each is named."),
}
MODEL: _Answers = {404: _documented("No model of that name is served; the answer lists those that are.")}
READY: _Answers = {503: _documented("Loading or closing, or a store does not answer.", **{"Retry-After": "Seconds."})}
