"""Use the server with `webuiapi`, a client of AUTOMATIC1111's web UI: only the base URL differs.

    pip install webuiapi
    python automatic1111_client.py                         # the server at http://127.0.0.1:8000
    python automatic1111_client.py http://gpu.example:8000

Writes cat-1.png and cat-2.png to the current directory.
"""

import sys

import webuiapi

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

# If the server has API keys, add username="any" and password=KEY.
api = webuiapi.WebUIApi(baseurl=f"{URL}/sdapi/v1", sampler="Euler")

result = api.txt2img(
    prompt="a cat on a blue background",
    negative_prompt="a dog",
    seed=7,
    steps=28,
    cfg_scale=4.5,
    width=128,  # the size of the embedded model; with SD3.5, use 1024x1024
    height=128,
    batch_size=2,
)
for number, (image, seed) in enumerate(zip(result.images, result.info["all_seeds"], strict=True), 1):
    image.save(f"cat-{number}.png")
    print(f"cat-{number}.png: seed {seed}, model {result.info['sd_model_name']}")
