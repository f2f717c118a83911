"""AUTOMATIC1111's API, `/sdapi/v1/...`.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/api, and its clients: see tests/api/dialects/clients.json.
"""

from fastapi import APIRouter, Depends

from sd35.api.body import allow_missing_content_type
from sd35.api.dialects.automatic1111 import lookups, options, png_info, txt2img
from sd35.api.dialects.automatic1111.errors import ERROR_FORMAT
from sd35.api.dialects.dialect import Dialect

_router = APIRouter(tags=["AUTOMATIC1111's API"], dependencies=[Depends(allow_missing_content_type)])
for _module in (txt2img, png_info, options, lookups):
    _router.include_router(_module.router)

AUTOMATIC1111 = Dialect("automatic1111", ("/sdapi/",), (_router,), ERROR_FORMAT)
