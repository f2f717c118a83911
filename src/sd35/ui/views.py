"""What the page shows that is no control: HTML, every word of others escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from sd35.ui.generate import Drawing, FinishedImage, Sheet

EMPTY = """<div class="empty"><p><strong>Your images appear here.</strong></p>
<p>Say what you want to see, and press Generate.</p></div>"""
_FIELDS = (
    ("Prompt", "prompt"),
    ("Negative prompt", "negative_prompt"),
    ("Checkpoint", "model"),
    ("Steps", "steps"),
    ("Guidance", "guidance_scale"),
    ("Seed", "seed"),
)


def notice(words: str, kind: Literal["error", "hint", "warning"] = "error") -> str:
    """A sentence that a screen reader says at once; nothing where there are no words."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(words)}</div>' if words else ""


def standing_in(model: str, why: str) -> str:
    """That the images are not SD3.5's."""
    return (
        f'<div class="notice warning" role="status"><strong>This is {escape(model)}, not Stable Diffusion 3.5.</strong>'
        f" {escape(why[:1].upper() + why[1:])}.</div>"
    )


def progress(sheet: Sheet) -> str:
    """Each image on its way, and how far all of them are."""
    drawings = sheet.drawings
    share = sum(each.share for each in drawings) / len(drawings)
    words = _state(drawings)
    grid = f"--count:{min(len(drawings), 4)};--aspect:{drawings[0].aspect:.4f}"
    cards = "".join(_card(number, each) for number, each in enumerate(drawings, 1))
    return (
        f'<div class="sheet" style="{grid}">{cards}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{100 * share:.0f}" aria-valuetext="{escape(words)}">'
        f'<span style="width:{100 * share:.1f}%"></span></div><p class="state">{escape(words)}</p>'
    )


def failures(sheet: Sheet) -> str:
    """Why some images are not there; each reason once."""
    words = list(dict.fromkeys(each.words for each in sheet.drawings if each.words))
    cancelled = sum(each.status == "cancelled" for each in sheet.drawings)
    told = notice(" ".join(words))
    if cancelled:
        many = "Cancelled." if cancelled == len(sheet.drawings) else f"{cancelled} of {len(sheet.drawings)} cancelled."
        told += notice(many, "hint")
    return told


def details(made: FinishedImage) -> str:
    """An image's settings."""
    request: Mapping[str, Any] = made.request
    shown = [(label, request[name]) for label, name in _FIELDS if request.get(name) not in {"", None}]
    shown.insert(-3, ("Size", f"{request['width']} x {request['height']}"))
    rows = "".join(f"<div><dt>{label}</dt><dd>{escape(_text(value))}</dd></div>" for label, value in shown)
    notes = [
        ("It was there already: the same request gives the same image.", made.was_kept),
        ("The service's content filter blurred it.", made.is_blurred),
        (f"Too long to be read whole: {', '.join(made.cut_off).replace('_', ' ')}.", bool(made.cut_off)),
    ]
    said = "".join(f"<p>{escape(words)}</p>" for words, holds in notes if holds)
    return f'<dl class="details">{rows}</dl><div class="notes">{said}</div>'


def image(made: FinishedImage) -> str:
    """An image as large as there is room; as it is, in a tab of its own."""
    width, height = made.request["width"], made.request["height"]
    address = escape(f"gradio_api/file={quote(made.path)}")
    return (
        f'<a class="image" style="--aspect:{width / height:.4f}" href="{address}" target="_blank">'
        f'<img src="{address}" width="{width}" height="{height}" alt="{escape(made.request["prompt"][:200])}"></a>'
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _card(number: int, drawing: Drawing) -> str:
    if drawing.words or drawing.status == "cancelled":
        inner = f'<p class="why">{escape(drawing.words or "Cancelled.")}</p>'
    elif drawing.preview:
        inner = f'<img alt="Preview of image {number}" src="{escape(drawing.preview)}">'
    else:
        inner = ""
    waiting = "" if drawing.preview or drawing.is_over else " waiting"
    return f'<div class="card{waiting}">{inner}<span class="own" style="width:{100 * drawing.share:.1f}%"></span></div>'


def _state(drawings: Sequence[Drawing]) -> str:
    """How far they are, in a few words."""
    running = [each for each in drawings if each.status == "running"]
    done = sum(each.made is not None for each in drawings)
    parts = [f"{done} of {len(drawings)} done"] if len(drawings) > 1 else []
    if running:
        least = min(running, key=lambda each: each.share)
        parts.append(f"step {least.step} of {least.steps}")
        left_s = [each.seconds_left for each in running if each.seconds_left is not None]
        if left_s:
            parts.append(f"about {_seconds(max(left_s))} left")
    elif places := [each.place for each in drawings if each.status == "queued" and each.place]:
        parts.append(f"waiting: {min(places)} before it")
    elif any(each.status == "queued" for each in drawings):
        parts.append("about to begin")
    words = ", ".join(parts) or "Done"
    return words[0].upper() + words[1:]


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    return f"{max(whole, 1)} s" if whole < 90 else f"{round(whole / 60)} min"
