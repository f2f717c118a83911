"""Attacks by web pages of other sites on a server without keys, in a real browser."""

import http.client
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.browser import CHROMIUM, CHROMIUM_ARGUMENTS, TIMEOUT_MS, fill, generate, page_of
from tests.support.server_process import TIMEOUT_S, Served, serving

# Requests that a page of another site can send without a CORS preflight, and that would have an effect.
FORGE = """async server => {
  const image = new FormData();
  image.append("prompt", "a forged image");
  const text = JSON.stringify({prompt: "a forged image", steps: 1});
  const requests = [
    ["/v2beta/stable-image/generate/sd3", image],
    ["/v1/txt2img", text],
    ["/v1/jobs", text],
    ["/sdapi/v1/txt2img", text],
    ["/sdapi/v1/interrupt", ""],
    ["/ui/gradio_api/upload", image],
  ];
  for (const [path, body] of requests) await fetch(server + path, {method: "POST", mode: "no-cors", body});
}"""
# To the browser, a page that has rebound its name has the server's own origin. It may read all responses.
REBIND = """async () => {
  const answers = {};
  for (const path of ["/v1/jobs", "/metrics", "/docs", "/ui/config", "/v1/models"])
    answers[path] = await (await fetch(path)).text();
  const body = JSON.stringify({prompt: "a forged image", steps: 1});
  const headers = {"content-type": "application/json"};
  answers["/v1/txt2img"] = await (await fetch("/v1/txt2img", {method: "POST", headers, body})).text();
  return answers;
}"""


# A request of a page of an allowed origin, with headers that need a CORS preflight.
ALLOWED = """async server => {
  const headers = {"content-type": "application/json", "x-stainless-lang": "js", "cache-control": "no-cache"};
  const body = JSON.stringify({prompt: "a cat", steps: 1, seed: 7});
  const answer = await fetch(server + "/v1/txt2img", {method: "POST", headers, body});
  return [answer.status, answer.headers.get("content-type"), answer.headers.get("x-sd35-seed")];
}"""
NAME = "sd35.test"  # name of the server; neither HTTPS nor loopback, so browsers send it no `Sec-Fetch-Site`


class Site(http.server.BaseHTTPRequestHandler):
    """Another site with empty pages."""

    def do_GET(self) -> None:
        """Respond with an empty page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Proxy(Site):
    """A reverse proxy that serves the server below the path /images, and keeps the `Host` header."""

    server_port = 0

    def do_GET(self) -> None:
        """Forward a request, and stream back its response."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=TIMEOUT_S)
        with closing(connection), suppress(OSError, http.client.HTTPException):  # one side closed a stream
            connection.putrequest(self.command, self.path.removeprefix("/images"), skip_host=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() != "transfer-encoding":
                    self.send_header(name, value)
            self.end_headers()
            while chunk := answer.read1():
                self.wfile.write(chunk)

    do_POST = do_GET  # noqa: N815  http.server's name


@contextmanager
def listening(handler: type[Site]) -> Iterator[int]:
    """Run an HTTP server on this machine, and yield its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that resolves every name below .test to this machine, as after DNS rebinding."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    arguments = [*CHROMIUM_ARGUMENTS, "--host-resolver-rules=MAP *.test 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that can be reached by a name."""
    folder = tmp_path_factory.mktemp("named")
    with serving(folder / "log", "--ui", "auto", "--allowed-hosts", NAME, "--cache-dir", str(folder)) as served:
        yield served


def image_metrics(served: Served) -> list[str]:
    """Return the server's metrics of images and jobs."""
    connection = served.connect()
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return [line for line in lines if line.startswith(("sd35_images_total{", "sd35_result_cache_", "sd35_jobs{"))]


@pytest.mark.parametrize(
    ("site", "server"),
    [
        ("evil.test", "127.0.0.1"),
        ("evil.test", NAME),
        ("other.sd35.test", NAME),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_forged_requests_have_no_effect(named: Served, browser: Browser, site: str, server: str):
    """From another site, a subdomain, or another port. The browser sends `Sec-Fetch-Site` only in some cases."""
    before, statuses = image_metrics(named), []
    assert before
    with listening(Site) as port, browser.new_page() as page:
        page.goto(f"http://{site}:{port}/")
        page.on("response", lambda each: statuses.append(each.status))
        page.evaluate(FORGE, f"http://{server}:{named.port}")
    assert statuses == [403] * 6
    assert image_metrics(named) == before


def test_a_local_file_and_a_sandboxed_frame_have_no_effect(named: Served, browser: Browser, tmp_path: Path):
    """Their origin is `null`."""
    before, statuses = image_metrics(named), []
    file = tmp_path / "page.html"
    file.write_text("<iframe sandbox=allow-scripts srcdoc='empty'></iframe>")
    with browser.new_page() as page:
        page.goto(file.as_uri())
        page.on("response", lambda each: statuses.append(each.status))
        for frame in page.frames:
            frame.evaluate(FORGE, f"http://127.0.0.1:{named.port}")
    assert statuses == [403] * 12
    assert image_metrics(named) == before


def test_a_site_that_rebinds_its_name_gets_errors_only(named: Served, browser: Browser):
    """Each error names the setting and the host."""
    before, host = image_metrics(named), f"rebound.test:{named.port}"
    with browser.new_page() as page:
        page.goto(f"http://{host}/healthz")  # stands for a page of the site: it has the same origin
        answers = page.evaluate(REBIND)
    assert len(answers) == 6
    for text in answers.values():
        problem = json.loads(text)
        assert problem["status"] == 403
        assert problem["errors"][0]["got"] == host
        assert "allowed_hosts" in problem["detail"]
    assert image_metrics(named) == before


@pytest.mark.parametrize("path", ["/docs", "/ui/"])
def test_other_sites_cannot_show_the_servers_pages_in_a_frame(named: Served, browser: Browser, path: str):
    """The browser shows an error in the frame. Outside a frame, it shows the pages."""
    address = f"http://127.0.0.1:{named.port}{path}"
    with listening(Site) as port, browser.new_page() as page:
        page.goto(f"http://evil.test:{port}/")
        frame = "url => document.body.append(Object.assign(document.createElement('iframe'), {src: url}))"
        with page.expect_event("framenavigated", predicate=lambda frame: frame.parent_frame is not None) as navigated:
            page.evaluate(frame, address)
        assert navigated.value.url.startswith("chrome-error:")
        answer = page.goto(address)
        assert answer
        assert answer.status == 200


def test_the_page_works_under_an_allowed_name(named: Served, new_page: Callable[..., Page]):
    """The browser sends only `Origin`, because the address is neither HTTPS nor loopback."""
    page = new_page(f"http://{NAME}:{named.port}")
    fill(page, "a cat", steps=1)
    generate(page)


def test_the_page_works_behind_a_proxy(browser: Browser, tmp_path: Path):
    """Under a path, with the settings `public_url` and `root_path` only."""

    class Behind(Proxy):
        pass

    with listening(Behind) as port:
        address = f"http://proxy.test:{port}/images"
        given = ("--ui", "auto", "--public-url", address, "--root-path", "/images", "--cache-dir", str(tmp_path))
        with serving(tmp_path / "log", *given) as served, browser.new_page() as page:
            Behind.server_port = served.port
            page.goto(f"{address}/")
            expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=TIMEOUT_MS)
            fill(page, "a cat", steps=1)
            generate(page)


def test_the_page_in_another_process_refuses_other_sites(named: Served, tmp_path: Path):
    """`sd35 ui` cannot know whether its server has keys, so it checks the host and origin of each request."""
    statuses = []
    with page_of(f"http://127.0.0.1:{named.port}", tmp_path) as address:
        for method, headers in (
            ("GET", {}),
            ("GET", {"Host": "rebound.test"}),
            ("POST", {"Content-Length": "0"}),
            ("POST", {"Content-Length": "0", "Origin": "http://evil.test"}),
        ):
            with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=TIMEOUT_S)) as connection:
                path = "/ui/" if method == "GET" else "/ui/gradio_api/cancel"
                connection.request(method, path, headers=headers)
                statuses.append(connection.getresponse().status)
    assert statuses == [200, 403, 422, 403]


def test_a_page_of_an_allowed_origin_can_use_the_server(browser: Browser, tmp_path: Path):
    """It can send headers of its own, as client libraries do, and can read the headers of responses."""
    with listening(Site) as port:
        origin = f"http://app.test:{port}"
        with serving(tmp_path / "log", "--cors-origins", origin) as served, browser.new_page() as page:
            page.goto(origin)
            assert page.evaluate(ALLOWED, f"http://127.0.0.1:{served.port}") == [200, "image/png", "7"]
