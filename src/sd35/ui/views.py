"""HTML of the page. All text from users and from the service is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from sd35.ui.generate import GeneratedImage, ImageBatch, ImageJob

EMPTY = """<div class="empty"><p><strong>Your images appear here.</strong></p>
<p>Describe an image, and press Generate.</p></div>"""
_FIELDS = (
    ("Prompt", "prompt"),
    ("Negative prompt", "negative_prompt"),
    ("Model", "model"),
    ("Steps", "steps"),
    ("Guidance", "guidance_scale"),
    ("Seed", "seed"),
)


def notice(message: str, kind: Literal["error", "hint", "warning"] = "error") -> str:
    """Return the HTML of a message, which screen readers announce. Returns an empty string for an empty message."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(message)}</div>' if message else ""


def substitute_warning(model: str, reason: str) -> str:
    """Return a warning that a substitute is served instead of SD3.5."""
    return (
        f'<div class="notice warning" role="status"><strong>This is {escape(model)}, not Stable Diffusion 3.5.</strong>'
        f" {escape(reason[:1].upper() + reason[1:])}.</div>"
    )


def progress(batch: ImageBatch) -> str:
    """Return a box for each image of a batch, with its preview, and a bar with the progress of the whole batch."""
    jobs = batch.jobs
    percent = 100 * sum(job.progress for job in jobs) / len(jobs)
    state = escape(_describe_progress(jobs))
    grid = f"--count:{min(len(jobs), 4)};--aspect:{jobs[0].aspect:.4f}"
    boxes = "".join(_job_box(number, job) for number, job in enumerate(jobs, 1))
    return (
        f'<div class="cards" style="{grid}">{boxes}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{percent:.0f}" aria-valuetext="{state}">'
        f'<span style="width:{percent:.1f}%"></span></div><p class="state">{state}</p>'
    )


def failures(batch: ImageBatch) -> str:
    """Return the distinct errors of a batch, and the number of cancelled images. Empty if there are neither."""
    errors = dict.fromkeys(job.error for job in batch.jobs if job.error)
    html = notice(" ".join(errors))
    if cancelled := sum(job.status == "cancelled" for job in batch.jobs):
        message = "Cancelled." if cancelled == len(batch.jobs) else f"{cancelled} of {len(batch.jobs)} cancelled."
        html += notice(message, "hint")
    return html


def details(image: GeneratedImage) -> str:
    """Return the settings of an image as a list, and notes about how it was made."""
    request: Mapping[str, Any] = image.request
    rows = [(label, request[name]) for label, name in _FIELDS if request.get(name) not in {"", None}]
    rows.insert(-3, ("Size", f"{request['width']} x {request['height']}"))  # before steps, guidance and seed
    notes = []
    if image.was_cached:
        notes.append("Cached: the same request gives the same image.")
    if image.is_blurred:
        notes.append("The content filter blurred this image.")
    if image.truncated:
        notes.append(f"Truncated, because it is too long: {', '.join(image.truncated).replace('_', ' ')}.")
    rows_html = "".join(f"<div><dt>{label}</dt><dd>{escape(_format_value(value))}</dd></div>" for label, value in rows)
    notes_html = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<dl class="details">{rows_html}</dl><div class="notes">{notes_html}</div>'


def image(image: GeneratedImage) -> str:
    """Return the HTML of an image that fills the available space. It links to the file, in a new tab."""
    width, height = image.request["width"], image.request["height"]
    address = escape(f"gradio_api/file={quote(image.path)}")
    return (
        f'<a class="image" style="--aspect:{width / height:.4f}" href="{address}" target="_blank">'
        f'<img src="{address}" width="{width}" height="{height}" alt="{escape(image.request["prompt"][:200])}"></a>'
    )


def _format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _job_box(number: int, job: ImageJob) -> str:
    """Return a box with the error or the preview of an image, if any, above a bar with its progress."""
    if job.error or job.status == "cancelled":
        content = f'<p class="why">{escape(job.error or "Cancelled.")}</p>'
    elif job.preview:
        content = f'<img alt="Preview of image {number}" src="{escape(job.preview)}">'
    else:
        content = ""
    waiting = "" if job.preview or job.has_ended else " waiting"
    bar = f'<span class="card-bar" style="width:{100 * job.progress:.1f}%"></span>'
    return f'<div class="card{waiting}">{content}{bar}</div>'


def _describe_progress(jobs: Sequence[ImageJob]) -> str:
    """Describe the progress of a batch: "1 of 4 done, step 3 of 28, about 12 s left"."""
    running = [job for job in jobs if job.status == "running"]
    queued = [job for job in jobs if job.status == "queued"]
    positions = [job.queue_position for job in queued if job.queue_position]
    done = sum(job.image is not None for job in jobs)
    parts = [f"{done} of {len(jobs)} done"] if len(jobs) > 1 else []
    if running:
        slowest = min(running, key=lambda job: job.progress)
        parts.append(f"step {slowest.step} of {slowest.steps}")
        seconds_left = [job.seconds_left for job in running if job.seconds_left is not None]
        if seconds_left:
            parts.append(f"about {_format_duration(max(seconds_left))} left")
    elif positions:
        parts.append(f"{min(positions)} ahead in the queue")
    elif queued:
        parts.append("starting")
    state = ", ".join(parts) or "Done"
    return state[0].upper() + state[1:]


def _format_duration(seconds: float) -> str:
    rounded_s = round(seconds)
    return f"{max(rounded_s, 1)} s" if rounded_s < 90 else f"{round(rounded_s / 60)} min"
