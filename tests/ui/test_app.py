"""The user interface in a real browser, with a real server."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from sd35.images.png import read_png
from sd35.images.record import from_text
from sd35.request import Request
from tests.support.browser import TIMEOUT_MS, Watched, fill, generate

expect.set_options(timeout=TIMEOUT_MS)
# Records what the page shows while images are generated: each value of the bar, and the number of previews.
RECORD = """() => {
  window.recorded = {shares: [], previews: 0, states: []};
  new MutationObserver(() => {
    const bar = document.querySelector("#canvas .bar");
    if (!bar) return;
    window.recorded.shares.push(Number(bar.getAttribute("aria-valuenow")));
    window.recorded.states.push(bar.getAttribute("aria-valuetext"));
    const previews = [...document.querySelectorAll("#canvas .card img")];
    window.recorded.previews += previews.filter(each => each.src.startsWith("data:image/png")).length;
  }).observe(document.querySelector("#canvas"), {subtree: true, childList: true, attributes: true});
}"""


def download(page: Page) -> bytes:
    """Return the file of the Download button."""
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").or_(page.get_by_role("button", name="Download")).first.click()
    return Path(waiting.value.path()).read_bytes()


def request_of(png: bytes) -> Request:
    """Return the request in a file."""
    return from_text(read_png(png)[1]).request


def test_the_download_is_the_file_of_the_service(page: Page, watched: Watched):
    """The image has the settings of the form, and the page shows them below it."""
    fill(page, "a frog & a <b>rocket</b> on a green background", steps=5)
    page.get_by_label("Negative prompt").fill("a tree")
    page.get_by_text("Landscape").click()
    expect(page.get_by_label("Width")).to_have_value("160")
    generate(page)
    png = download(page)
    request = request_of(png)
    assert (request.prompt, request.negative_prompt) == ("a frog & a <b>rocket</b> on a green background", "a tree")
    assert (request.width, request.height, request.steps) == (160, 112, 5)
    assert png == watched.get(f"/v1/artifacts/{request.digest}")
    expect(page.locator("#details")).to_contain_text(request.prompt)
    expect(page.locator("#details")).to_contain_text(str(request.seed))
    expect(page.get_by_role("img", name=request.prompt).first).to_be_visible()


def test_progress_and_previews_are_shown_while_images_are_generated(page: Page):
    """The bar only grows, previews change, and the remaining time is shown."""
    fill(page, "a cat above a dog on a blue background", steps=40, count=2)
    page.evaluate(RECORD)
    generate(page)
    recorded = page.evaluate("window.recorded")
    shares = sorted(set(recorded["shares"]))
    assert len(shares) > 4
    assert recorded["shares"] == sorted(recorded["shares"])
    assert recorded["previews"] > 4
    assert any(re.search(r"step \d+ of 40, about \d+ s left", state) for state in recorded["states"])
    expect(page.get_by_role("button", name=re.compile("Thumbnail"))).to_have_count(2)


def test_cancel_cancels_the_jobs_and_the_page_can_generate_again(page: Page, watched: Watched):
    """The page shows that the images are cancelled."""
    fill(page, "a castle on a purple background", steps=150, count=2)
    page.get_by_text("Large", exact=True).click()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Generating...")).to_be_disabled()
    page.locator("#canvas .card img").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()
    assert [job["status"] for job in watched.jobs()[:2]] == ["cancelled", "cancelled"]
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    fill(page, "a castle on a purple background", steps=2)
    generate(page)


def test_closing_the_tab_cancels_its_jobs(watched: Watched, new_page: Callable[..., Page]):
    page = new_page(watched.address)
    fill(page, "a guitar on a yellow background", steps=150, count=8)
    page.get_by_role("button", name="Generate").click()
    page.locator("#canvas .card img").first.wait_for()
    page.close()
    while (found := {job["status"] for job in watched.jobs()[:8]}) & {"queued", "running"}:
        pass
    assert "cancelled" in found


def test_repeat_gives_the_same_image_and_vary_seed_another(page: Page):
    """Repeat sends the same request, so its image is cached. Vary seed changes only the seed."""
    fill(page, "a star on a red background", steps=3)
    generate(page)
    first = request_of(download(page))
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.get_by_role("button", name="Repeat").click()
    expect(page.locator("#details")).to_contain_text("Cached")
    assert request_of(download(page)) == first
    expect(page.get_by_label("Lock")).to_be_checked()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(first.prompt)
    page.get_by_role("button", name="Vary seed").click()
    expect(page.get_by_role("button", name=re.compile("Thumbnail"))).to_have_count(2)
    varied = request_of(download(page))
    assert varied.seed != first.seed
    assert (varied.prompt, varied.steps, varied.width) == (first.prompt, first.steps, first.width)
    page.get_by_role("button", name="Thumbnail 2 of 2").click()
    expect(page.locator("#details")).to_contain_text(str(first.seed))


def test_a_locked_seed_stays_and_random_gives_another(page: Page):
    """Several images have consecutive seeds, starting with the locked one."""
    seed = page.get_by_label("Seed", exact=True)
    before = seed.input_value()
    page.get_by_role("button", name="Random").click()
    expect(seed).not_to_have_value(before)
    seed.fill("4294967295")
    page.get_by_label("Lock").check()
    fill(page, "a fish", steps=1, count=2)
    generate(page)
    expect(seed).to_have_value("4294967295")
    assert request_of(download(page)).seed == 4294967295
    page.get_by_role("button", name="Thumbnail 2 of 2").click()
    expect(page.locator("#details")).to_contain_text("Seed0")


def test_an_uploaded_image_fills_in_its_settings(page: Page, watched: Watched, tmp_path: Path):
    """Generating then gives the same image. Other files are errors, and change nothing."""
    body = {"prompt": "a bus \u2603", "negative_prompt": "a car", "width": 96, "height": 192, "steps": 3, "seed": 7}
    connection = watched.served.connect()
    connection.request("POST", "/v1/txt2img", json.dumps(body), {"content-type": "application/json"})
    png = connection.getresponse().read()
    connection.close()
    drop(page, "bus.png", png)
    expect(page.get_by_role("status").filter(has_text="Loaded the settings of bus.png.")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a bus \u2603")
    expect(page.get_by_label("Custom")).to_be_checked()
    expect(page.get_by_label("Lock")).to_be_checked()
    generate(page)
    assert request_of(download(page)) == request_of(png)
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    drop(page, "foreign.png", (tmp_path / "foreign.png").read_bytes())
    expect(page.get_by_role("alert")).to_contain_text("another program made it, or it has no metadata")
    drop(page, "text.png", b"no image")
    expect(page.get_by_role("alert")).to_contain_text("This is not a PNG, JPEG, WebP or AVIF file")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a bus \u2603")


def drop(page: Page, name: str, content: bytes) -> None:
    """Upload a file."""
    page.locator("#upload input[type=file]").set_input_files(
        FilePayload(name=name, mimeType="image/png", buffer=content)
    )


def test_invalid_values_are_shown_with_the_allowed_values(page: Page):
    """After each error, the page can generate again."""
    for prompt, width, message in (
        (" ", "128", "Enter a prompt first"),
        ("a" * 10_001, "128", "Prompt: this text is not allowed. Allowed: text of 1 to 10000 characters"),
        ("a cat", "100", "Width: 100 is not allowed. See the allowed sizes below the fields."),
        ("a cat", "32", "Width: 32 is not allowed."),
        ("a cat", "9" * 30, "Width: an integer of 100 bits is not allowed."),
    ):
        fill(page, prompt)
        page.get_by_label("Width").fill(width)
        page.get_by_label("Width").press("Tab")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert")).to_contain_text(message)
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_seed_that_is_too_long_is_an_error_and_stays_as_typed(page: Page):
    """Gradio can send back at most 64 bits."""
    fill(page, "a cat")
    seed = page.get_by_label("Seed", exact=True)
    page.get_by_label("Lock").check()
    seed.fill("9" * 20)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_contain_text("Seed: an integer of 67 bits is not allowed.")
    expect(seed).to_have_value("9" * 20)


def test_the_custom_preset_does_not_change_the_size(page: Page, watched: Watched):
    """It causes no error on the server."""
    page.get_by_text("Landscape").click()
    expect(page.get_by_label("Width")).to_have_value("160")
    page.get_by_label("Custom").check()
    fill(page, "a cat", steps=1)
    generate(page)
    expect(page.get_by_label("Width")).to_have_value("160")
    expect(page.locator("#details")).to_contain_text("160 x")
    assert "Traceback" not in (watched.connections.parent / "stderr").read_text()


def test_pressing_two_buttons_at_once_generates_once(page: Page):
    """Afterwards, the page can generate again."""
    fill(page, "a star on a red background", steps=3)
    generate(page)
    page.evaluate("for (const name of ['repeat', 'vary']) document.querySelector(`#${name}`).click()")
    expect(page.locator("#details")).to_be_hidden()
    expect(page.locator("#details")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    fill(page, "a fish", steps=1)
    generate(page)
    expect(page.locator("#details")).to_contain_text("a fish")


def test_an_event_that_names_a_foreign_file_is_refused(watched: Watched):
    """Gradio would copy the file, or download the URL, to a directory that anyone can read."""
    for path in (str(watched.connections), "http://example.com/a.png"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [None, file], "fn_index": 15, "session_hash": "a1"})
        connection = watched.served.connect()
        connection.request("POST", "/ui/gradio_api/queue/join", body, {"content-type": "application/json"})
        assert connection.getresponse().status == 403
        connection.close()
    assert "example.com" not in watched.connections.read_text()


def test_a_phone_scrolls_vertically_only(watched: Watched, new_page: Callable[..., Page]):
    """At a width of 390 px, nothing is cut off. The prompt comes first, then the image."""
    page = new_page(watched.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    widest = "Math.max(...[...document.querySelectorAll('#page *')].map(e => e.getBoundingClientRect().right))"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(widest) <= 390
    fill(page, "a cat to the left of a dog", steps=2, count=3)
    generate(page)
    expect(page.get_by_role("button", name=re.compile("Thumbnail"))).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(widest) <= 390
    tops = [page.locator(name).bounding_box() for name in ("#prompt", "#canvas", "#settings")]
    assert [box["y"] for box in tops if box] == sorted(box["y"] for box in tops if box)


def test_the_page_can_be_used_with_the_keyboard_only(page: Page):
    """Ctrl + Enter generates, Tab reaches each control, and Enter presses the buttons."""
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a rabbit")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#canvas .image img")).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).focus()
    wanted = {"negative-prompt", "generate", "canvas", "download", "repeat", "vary"}
    wanted |= {
        "model",
        "preset",
        "width",
        "height",
        "steps",
        "guidance",
        "seed",
        "random-seed",
        "lock",
        "count",
        "upload",
    }
    names, reached = ", ".join(f"#{name}" for name in wanted), []
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("names => document.activeElement.closest(names)?.id", names))
    assert wanted <= set(reached)
    page.get_by_role("button", name="Vary seed").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=re.compile("Thumbnail"))).to_have_count(2)
    page.get_by_role("button", name="Thumbnail 2 of 2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Thumbnail 2 of 2")).to_have_class(re.compile("selected"))


def test_every_control_and_image_has_an_accessible_name(page: Page):
    """So that screen readers can announce it."""
    fill(page, "a clock", steps=1, count=2)
    generate(page)
    snapshot = page.locator("#page").aria_snapshot()
    nameless = re.findall(
        r"- (?:button|textbox|slider|spinbutton|checkbox|radio|link|img|combobox|listbox)(?=:|$| \[)", snapshot
    )
    assert nameless == [], snapshot


def test_browser_sessions_share_neither_images_nor_settings(watched: Watched, new_page: Callable[..., Page]):
    """A browser in dark mode gets a dark page."""
    one, other = new_page(watched.address), new_page(watched.address, color_scheme="dark")
    colour = other.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64
    fill(one, "a secret", steps=1)
    generate(one)
    expect(other.locator("#canvas")).to_contain_text("Your images appear here")
    fill(other, "a cake", steps=1)
    generate(other)
    assert "a secret" not in other.content()
    assert "a cake" not in one.content()


def test_the_page_fills_neither_log_nor_metrics_and_contacts_no_other_host(page: Page, watched: Watched):
    """Its own requests are not logged and have one label, while its API calls are logged like others.

    The server records its connections, and none leaves this machine.
    """
    fill(page, "a moon", steps=1)
    generate(page)
    log = (watched.connections.parent / "stderr").read_text()
    assert "/ui/" not in log
    assert '"path": "/v1/jobs"' in log
    routes = set(re.findall(r'route="([^"]*)"', watched.get("/metrics").decode()))
    assert {route for route in routes if "ui" in route or "gradio" in route} == {"/ui"}
    lines = watched.connections.read_text().splitlines()
    assert "recording" in lines
    assert [line for line in lines if line != "recording" and "127.0.0.1" not in line] == []
