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
    """Return a message that screen readers announce. The result is empty if the message is empty."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(message)}</div>' if message else ""


def substitute_warning(model: str, reason: str) -> str:
    """Return a warning that a substitute is served instead of SD3.5."""
    return (
        f'<div class="notice warning" role="status"><strong>This is {escape(model)}, not Stable Diffusion 3.5.</strong>'
        f" {escape(reason[:1].upper() + reason[1:])}.</div>"
    )


def progress(batch: ImageBatch) -> str:
    """Return a card for each image of a batch, and the progress of the whole batch."""
    jobs = batch.jobs
    share = sum(each.progress for each in jobs) / len(jobs)
    state = _state(jobs)
    grid = f"--count:{min(len(jobs), 4)};--aspect:{jobs[0].aspect:.4f}"
    cards = "".join(_card(number, each) for number, each in enumerate(jobs, 1))
    return (
        f'<div class="cards" style="{grid}">{cards}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{100 * share:.0f}" aria-valuetext="{escape(state)}">'
        f'<span style="width:{100 * share:.1f}%"></span></div><p class="state">{escape(state)}</p>'
    )


def failures(batch: ImageBatch) -> str:
    """Return the reasons why images of a batch are missing. Each reason is shown once."""
    errors = dict.fromkeys(each.error for each in batch.jobs if each.error)
    html = notice(" ".join(errors))
    if cancelled := sum(each.status == "cancelled" for each in batch.jobs):
        message = "Cancelled." if cancelled == len(batch.jobs) else f"{cancelled} of {len(batch.jobs)} cancelled."
        html += notice(message, "hint")
    return html


def details(image: GeneratedImage) -> str:
    """Return the settings of an image."""
    request: Mapping[str, Any] = image.request
    rows = [(label, request[name]) for label, name in _FIELDS if request.get(name) not in {"", None}]
    rows.insert(-3, ("Size", f"{request['width']} x {request['height']}"))
    notes = [
        ("Cached: the same request gives the same image.", image.was_cached),
        ("The content filter blurred this image.", image.is_blurred),
        (f"Truncated, because it is too long: {', '.join(image.truncated).replace('_', ' ')}.", bool(image.truncated)),
    ]
    rows_html = "".join(f"<div><dt>{label}</dt><dd>{escape(_text(value))}</dd></div>" for label, value in rows)
    notes_html = "".join(f"<p>{escape(note)}</p>" for note, holds in notes if holds)
    return f'<dl class="details">{rows_html}</dl><div class="notes">{notes_html}</div>'


def image(image: GeneratedImage) -> str:
    """Return an image that fills the available space, and links to its file in a new tab."""
    width, height = image.request["width"], image.request["height"]
    address = escape(f"gradio_api/file={quote(image.path)}")
    return (
        f'<a class="image" style="--aspect:{width / height:.4f}" href="{address}" target="_blank">'
        f'<img src="{address}" width="{width}" height="{height}" alt="{escape(image.request["prompt"][:200])}"></a>'
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _card(number: int, job: ImageJob) -> str:
    if job.error or job.status == "cancelled":
        content = f'<p class="why">{escape(job.error or "Cancelled.")}</p>'
    elif job.preview:
        content = f'<img alt="Preview of image {number}" src="{escape(job.preview)}">'
    else:
        content = ""
    waiting = "" if job.preview or job.has_ended else " waiting"
    bar = f'<span class="card-bar" style="width:{100 * job.progress:.1f}%"></span>'
    return f'<div class="card{waiting}">{content}{bar}</div>'


def _state(jobs: Sequence[ImageJob]) -> str:
    """Describe the progress of jobs in a few words."""
    running = [each for each in jobs if each.status == "running"]
    done = sum(each.image is not None for each in jobs)
    parts = [f"{done} of {len(jobs)} done"] if len(jobs) > 1 else []
    if running:
        slowest = min(running, key=lambda each: each.progress)
        parts.append(f"step {slowest.step} of {slowest.steps}")
        seconds_left = [each.seconds_left for each in running if each.seconds_left is not None]
        if seconds_left:
            parts.append(f"about {_duration(max(seconds_left))} left")
    elif positions := [each.queue_position for each in jobs if each.status == "queued" and each.queue_position]:
        parts.append(f"queued behind {min(positions)}")
    elif any(each.status == "queued" for each in jobs):
        parts.append("starting")
    state = ", ".join(parts) or "Done"
    return state[0].upper() + state[1:]


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{max(whole, 1)} s" if whole < 90 else f"{round(whole / 60)} min"
