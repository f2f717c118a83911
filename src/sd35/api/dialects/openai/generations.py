"""`POST /v1/images/generations` of OpenAI's images API. The service's own `GET /v1/models` has OpenAI's format too."""

import time
from dataclasses import replace

from fastapi import APIRouter, Depends, Request, Response

from sd35.api.auth import service_of
from sd35.api.body import allow_missing_content_type, openapi_body, read_json
from sd35.api.dialects.openai.body import GenerationBody
from sd35.api.dialects.openai.errors import ERROR_FORMAT
from sd35.api.dialects.openai.responses import GenerationsResponse, common_fields, file_item, url_item, usage_of
from sd35.api.dialects.openai.stream import EVENT_SCHEMA, stream_response
from sd35.api.generate import IdempotencyKey, errors_of_generation, generate, image_headers, job_specs_of

_documented = ERROR_FORMAT.documented
router = APIRouter(tags=["OpenAI's API"], dependencies=[Depends(allow_missing_content_type)])


@router.post(
    "/v1/images/generations",
    summary="Generate images from text (OpenAI)",
    response_class=Response,
    openapi_extra=openapi_body(GenerationBody),
    responses={
        200: {
            "description": "The images, or with `stream` server-sent events.",
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{GenerationsResponse.__name__}"}},
                "text/event-stream": {"itemSchema": EVENT_SCHEMA},
            },
            "model": GenerationsResponse,
        },
        **errors_of_generation(ERROR_FORMAT),
        400: _documented(
            "A field is invalid, no model of that name is served, or the content filter refuses the request."
        ),
        415: _documented("The `Content-Type` of the body is not `application/json`."),
    },
)
async def generations(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Return the images when all are done, or with `stream` the events of one image.

    The events are `image_generation.partial_image` for each preview, and then either `image_generation.completed` with
    the image, or `error`. If the client disconnects, the images are cancelled, unless the call has an idempotency key.
    """
    body = await read_json(request, GenerationBody)
    service = service_of(request)
    body.check(idempotency_key, is_strict=service.policy.aliases.is_strict)
    job_specs = job_specs_of(request, body, body.to_params(service), idempotency_key)
    job_specs = [replace(job_spec, format=body.format) for job_spec in job_specs]
    if body.stream:
        return await stream_response(request, body, job_specs)
    results = await generate(request, job_specs)
    new_item = url_item if body.has_urls else file_item
    answer = GenerationsResponse(
        data=[await new_item(request, body, result) for result in results],
        created=int(time.time()),
        usage=usage_of(service, results),
        model=results[0].request.model,
        **common_fields(body, results[0].request),
    )
    headers = image_headers(results[0]) if len(results) == 1 else {}
    return Response(answer.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
