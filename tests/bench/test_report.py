"""The page of a report: it needs nothing else, shows what was measured, and lets nothing in that is not text."""

import re
from html.parser import HTMLParser

import pytest

from sd35.bench.formatting import matrix_in_words
from sd35.bench.monitor import Look
from sd35.bench.plots import HEIGHT, WIDTH, Point, Scale, Series, plot
from sd35.bench.quality import Quality, ShownObjects
from sd35.bench.report import page
from sd35.bench.results import Cell, Matrix, Result
from tests.bench.conftest import BUSY, figure

VOID = {"meta", "img"}


class Elements(HTMLParser):
    """All elements and attributes of a page, its text, and what is left open."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element opens."""
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that holds nothing."""
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """An element closes."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data


@pytest.fixture
def matrix(result: Result) -> Matrix:
    """Two that ran, and one that did not."""
    cells = [
        Cell(backend="onnx", precision="float32", batch=2, images_per_s=figure(4, 0.1), p95_s=figure(1)),
        Cell(backend="onnx", precision="float32", batch=8, images_per_s=figure(6, 0.1), p95_s=figure(2)),
        Cell(backend="tensorrt", precision="fp8", batch=2, why_not="it computes on GPUs only"),
    ]
    return Matrix(
        made_at=result.made_at, machine=result.machine, busy=BUSY, workload=result.workload, plan=result.plan,
        workload_digest=result.workload_digest, checkpoints=["sd35-mini"], settings={"threads": "3"}, cells=cells,
    )  # fmt: skip


def test_the_page_needs_nothing_else(result: Result, matrix: Matrix):
    """No script, no style sheet, no image, no font and no address of elsewhere; and it is well formed."""
    quality = result.quality
    assert quality
    pair = ShownObjects(prompt="a cat", image="UklGRg==", expected="UklGRg==")
    shown = result.model_copy(update={"quality": quality.model_copy(update={"shown": [pair]})})
    for content in (page(shown), page(matrix)):
        elements = Elements(content)
        assert elements.open == []
        assert not elements.names & {"script", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
        referring = [(name, value) for name, value in elements.attributes if name in {"src", "href", "xlink:href"}]
        assert all(value.startswith("data:image/webp;base64,") for _, value in referring)
        assert not any(name.startswith("on") for name, _ in elements.attributes)
        assert not re.search(r"url\(|@import|https?://", content)


def test_the_page_shows_what_was_measured(result: Result):
    """Figures with their intervals, machine, versions, commit, settings, and a plot of each kind with numbers."""
    text = Elements(page(result)).text
    for words in (
        "quiet machine", "closed, 2 clients", "open, 3/s", "0.51 ±0.02", "PSNR 40.0 dB", "numpy 2.4", "0123456789ab",
        "backend = onnx", "429: full", "Latency over load", "Batches over time", "Memory over time", "Cold start",
        "How full batches were", "a processor, 8 cores, 16.0 GiB",
    ):  # fmt: skip
        assert words in text, words


def test_a_busy_machine_is_marked_on_the_page(result: Result):
    """In words, and as a banner of its own."""
    content = page(result.model_copy(update={"busy": BUSY}))
    assert "BUSY MACHINE: other processes used" in content
    assert 'class="banner busy"' in content


def test_a_matrix_lists_what_did_not_run(matrix: Matrix):
    """With the reason; those that ran have ratios to the first."""
    elements = Elements(page(matrix))
    assert "it computes on GPUs only" in elements.text
    assert "tensorrt/fp8, 2 rows" in elements.text
    assert "onnx/float32, 8 rows6.00 ±0.101.50" in elements.text


def test_a_matrix_tells_settings_and_workload(matrix: Matrix):
    """As a run does."""
    text = Elements(page(matrix)).text
    assert "threads = 3" in text
    assert '"name": "mixed"' in text


def test_images_that_are_the_same_have_an_ssim(result: Result):
    """Although they have no PSNR."""
    same = Quality(reference="onnx/float32", images=2, identical=2, ssim=1.0, least_ssim=1.0)
    assert "to the pixel: SSIM 1.0000" in page(result.model_copy(update={"quality": same}))


def test_an_open_load_tells_what_chance_sent(result: Result):
    """Beside its rate: 15 requests, in three rounds of two seconds."""
    assert "open, 3/s (3.00 requests/s, by chance 2.50 were sent)" in page(result)


def test_captions_tell_what_is_drawn_and_what_is_not(result: Result):
    """The engine's share only where the server told it."""
    refused, engine = "refused or failed is not in it", "share of time in which its engine computed."
    assert refused in page(result)
    assert engine not in page(result)
    looks = [*result.looks, Look(at_s=0.75, engine_share=0.5)]
    assert engine in page(result.model_copy(update={"looks": looks}))


def test_one_client_in_one_round_is_said_so(matrix: Matrix):
    """Not "1 clients"."""
    plan = matrix.plan.model_copy(update={"clients": 1, "rounds": 1})
    words = matrix_in_words(matrix.model_copy(update={"plan": plan}))
    assert words.startswith("1 client in a closed loop, 1 round of 2 s")


def test_what_others_say_stays_text(result: Result):
    """A server's words and a workload's names are no part of the page's own language."""
    evil = "<script>alert(1)</script>"
    part = result.parts[1].model_copy(update={"trouble": {evil: 3}, "name": evil})
    workload = result.workload.model_copy(update={"name": evil})
    content = page(result.model_copy(update={"parts": [result.parts[0], part], "workload": workload}))
    assert evil not in content
    assert "script" not in Elements(content).names
    assert evil in Elements(content).text


@pytest.mark.parametrize(
    ("most", "ticks"), [(9.3, [0, 2, 4, 6, 8, 10]), (0.03, [0, 0.01, 0.02, 0.03]), (0, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_axes_have_round_numbers(most: float, ticks: list[float]):
    """From 0 to what is above the most."""
    scale = Scale(most, 0, 100, is_rounded=True)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale(0), scale(ticks[-1])) == (0, 100)


def test_points_lie_inside_their_plot():
    """Also those whose interval reaches below 0."""
    drawing = plot("x", "y", [Series("a", 1, [Point(0, 0, 5, "told"), Point(7, 3, 1, "told")])])
    numbers = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawing)]
    assert len(numbers) == 2
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in numbers)
    assert numbers[0][0] < numbers[1][0]
    assert numbers[0][1] > numbers[1][1]
