#!/usr/bin/env bash
# Use this project's own HTTP API with curl: an image in one call, then a job that is followed to its end.
#
#     bash curl.sh                         # the server at http://127.0.0.1:8000
#     bash curl.sh http://gpu.example:8000
#
# Needs curl, and python3 to read JSON. Writes cat.png and dog.png to the current directory.
# If the server has API keys, add to each call: -H "Authorization: Bearer $KEY"
set -euo pipefail

url=${1:-http://127.0.0.1:8000}
json='Content-Type: application/json'

field() { # Print a field of the JSON object on standard input: `field image url` prints .image.url
    python3 -c 'import functools, json, sys; print(functools.reduce(dict.get, sys.argv[1:], json.load(sys.stdin)))' "$@"
}

# One call: the response is the file. Fields that are left out have the model's defaults, which /v1/models lists.
curl -fsS "$url/v1/txt2img" -H "$json" -o cat.png -d '{"prompt": "a cat on a blue background", "seed": 7}'
echo "cat.png"

# A job outlives the connection, and restarts of the server. The response is the job, with its ID.
id=$(curl -fsS "$url/v1/jobs" -H "$json" -d '{"prompt": "a dog on a red background", "seed": 7}' | field id)

# Its events: queued, running with the steps so far, and how it ended. The stream then closes.
curl -fsSN "$url/v1/jobs/$id/events"

# The job now has an image, or an error.
job=$(curl -fsS "$url/v1/jobs/$id")
if [ "$(field status <<<"$job")" != succeeded ]; then
    echo "$job" >&2
    exit 1
fi
curl -fsS "$url$(field image url <<<"$job")" -o dog.png
echo "dog.png"
