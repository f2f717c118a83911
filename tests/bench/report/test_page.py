"""The HTML page of a report: self-contained, complete, and with all text escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sd35.bench.monitoring.monitor import MonitorSample
from sd35.bench.quality.comparison import ImagePair, Quality
from sd35.bench.report.formatting import describe_matrix
from sd35.bench.report.page import report_page
from sd35.bench.report.plots import HEIGHT, WIDTH, Point, Scale, Series, plot
from sd35.bench.results import Cell, Matrix, Result, read
from tests.bench.conftest import BUSY, estimate_of

VOID = {"meta", "img"}
PUBLISHED = Path(__file__).parents[3] / "docs" / "bench"


class Elements(HTMLParser):
    """The elements, attributes and text of a page, and the elements that are not closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an opening tag."""
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an empty element."""
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """Check that a closing tag matches."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data


@pytest.fixture
def matrix(result: Result) -> Matrix:
    """A matrix of two combinations that ran and one that did not."""
    cells = [
        Cell(backend="onnx", precision="float32", batch_rows=2, images_per_s=estimate_of(4, 0.1), p95_s=estimate_of(1)),
        Cell(backend="onnx", precision="float32", batch_rows=8, images_per_s=estimate_of(6, 0.1), p95_s=estimate_of(2)),
        Cell(backend="tensorrt", precision="fp8", batch_rows=2, skip_reason="it runs only on GPUs"),
    ]
    return Matrix(
        created_at=result.created_at, machine=result.machine, background=BUSY, workload=result.workload,
        workload_digest=result.workload_digest, plan=result.plan, checkpoints=["sd35-mini"],
        settings={"threads": "3"}, cells=cells,
    )  # fmt: skip


def test_the_page_is_self_contained_and_well_formed(result: Result, matrix: Matrix):
    """It refers to no external script, style sheet, image, font or address."""
    quality = result.quality
    assert quality
    pair = ImagePair(prompt="a cat", image="UklGRg==", reference_image="UklGRg==")
    shown = result.model_copy(update={"quality": quality.model_copy(update={"examples": [pair]})})
    for content in (report_page(shown), report_page(matrix)):
        elements = Elements(content)
        assert elements.open == []
        assert not elements.names & {"script", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
        referring = [(name, value) for name, value in elements.attributes if name in {"src", "href", "xlink:href"}]
        assert all(value.startswith("data:image/webp;base64,") for _, value in referring)
        assert not any(name.startswith("on") for name, _ in elements.attributes)
        assert not re.search(r"url\(|@import|https?://", content)


def test_the_page_shows_all_figures(result: Result):
    """It also has intervals, the machine, versions, the commit, settings, and a plot of each kind."""
    text = Elements(report_page(result)).text
    for words in (
        "quiet machine", "closed, 2 clients", "open, 3/s", "0.51 ±0.02", "PSNR 40.0 dB", "numpy 2.4", "0123456789ab",
        "backend = onnx", "429: full", "Latency over load", "Batches over time", "Memory over time", "Cold start",
        "Batch occupancy", "a processor, 8 cores, 16.0 GiB",
    ):  # fmt: skip
        assert words in text, words


def test_the_published_page_is_the_rendering_of_the_published_result():
    """docs/bench has a real run in the current format."""
    content = (PUBLISHED / "bench.html").read_text(encoding="utf-8")
    assert report_page(read(PUBLISHED / "bench.json")) == content


def test_a_busy_machine_is_marked_on_the_page(result: Result):
    """The banner says so and has another style."""
    content = report_page(result.model_copy(update={"background": BUSY}))
    assert "BUSY MACHINE: other processes used" in content
    assert 'class="banner busy"' in content


def test_the_page_of_a_matrix_lists_combinations_that_did_not_run(matrix: Matrix):
    """Each has its reason. Combinations that ran have ratios to the first."""
    elements = Elements(report_page(matrix))
    assert "it runs only on GPUs" in elements.text
    assert "tensorrt/fp8, 2 rows" in elements.text
    assert "onnx/float32, 8 rows6.00 ±0.101.50" in elements.text


def test_the_page_of_a_matrix_shows_settings_and_workload(matrix: Matrix):
    """The page of a run shows them too."""
    text = Elements(report_page(matrix)).text
    assert "threads = 3" in text
    assert '"name": "mixed"' in text


def test_identical_images_have_an_ssim_but_no_psnr(result: Result):
    """The page says that they are equal."""
    same = Quality(reference="onnx/float32", images=2, identical=2, ssim=1.0, min_ssim=1.0)
    assert "to the pixel: SSIM 1.0000" in report_page(result.model_copy(update={"quality": same}))


def test_an_open_load_shows_the_rate_that_was_sent(result: Result):
    """The result has 15 requests in three rounds of two seconds."""
    assert "open, 3/s (3.00 requests/s offered, 2.50 sent)" in report_page(result)


def test_captions_mention_the_engine_only_if_it_is_plotted(result: Result):
    """Another caption says that refused and failed requests are not plotted."""
    refused, engine = "excludes refused and failed requests", "For comparison, the share of time"
    assert refused in report_page(result)
    assert engine not in report_page(result)
    samples = [*result.samples, MonitorSample(time_s=0.75, engine_share=0.5)]
    assert engine in report_page(result.model_copy(update={"samples": samples}))


def test_counts_of_one_are_singular(matrix: Matrix):
    """The text says "1 client", not "1 clients"."""
    plan = matrix.plan.model_copy(update={"clients": 1, "rounds": 1})
    words = describe_matrix(matrix.model_copy(update={"plan": plan}))
    assert words.startswith("1 client in a closed loop, 1 round of 2 s")


def test_text_from_outside_is_escaped(result: Result):
    """Such text are a server's messages and the names of workloads and loads."""
    evil = "<script>alert(1)</script>"
    load = result.loads[1].model_copy(update={"errors": {evil: 3}, "name": evil})
    workload = result.workload.model_copy(update={"name": evil})
    content = report_page(result.model_copy(update={"loads": [result.loads[0], load], "workload": workload}))
    assert evil not in content
    assert "script" not in Elements(content).names
    assert evil in Elements(content).text


@pytest.mark.parametrize(
    ("maximum", "ticks"), [(9.3, [0, 2, 4, 6, 8, 10]), (0.03, [0, 0.01, 0.02, 0.03]), (0, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_axes_have_round_ticks(maximum: float, ticks: list[float]):
    """They go from 0 to a round number that is not below the maximum."""
    scale = Scale(maximum, 0, 100, is_rounded=True)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale(0), scale(ticks[-1])) == (0, 100)


def test_points_lie_inside_their_plot():
    """This holds even if an interval reaches below 0."""
    svg = plot("x", "y", [Series("a", 1, [Point(0, 0, 5, "tooltip"), Point(7, 3, 1, "tooltip")])])
    numbers = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(numbers) == 2
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in numbers)
    assert numbers[0][0] < numbers[1][0]
    assert numbers[0][1] > numbers[1][1]
