"""The command `sd35 measure`."""

from pathlib import Path
from typing import Annotated

import typer

from sd35.checkpoints.image_sizes import generated_size
from sd35.cli.options import PIPELINE, parse_size, with_settings
from sd35.cli.progress import count_bar
from sd35.engine.local.measure import measure as measure_model
from sd35.engine.local.measure import row_counts
from sd35.settings import Settings
from sd35.startup import open_checkpoints, open_pipeline

app = typer.Typer()


@app.command()
@with_settings(*PIPELINE, "max_batch_rows")
def measure(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON file to write.")] = Path(
        "step-times.json"
    ),
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Image size in pixels; may be repeated.", show_default="the model's"),
    ] = None,
    settings: Settings,
) -> None:
    """Measure how long denoising steps take on this machine, for `sd35 simulate`.

    Measures the first checkpoint in batches of 1, 2, 4, ... transformer rows, up to --max-batch-rows, at each size.

    [bold]Examples[/bold]

      sd35 measure
      sd35 measure --backend diffusers --checkpoint ~/models/sd3.5-medium --size 1024x1024 --size 768x1344 -o h100.json
    """
    checkpoint = open_checkpoints(settings)[0]
    card = checkpoint.card
    requested = [parse_size(text) for text in size or ()] or [(card.width, card.height)]
    # Without repetitions. A model that enlarges images generates several requested sizes at the same size.
    sizes_px = list(dict.fromkeys(generated_size(*size_px, card, settings.max_pixels) for size_px in requested))
    with count_bar() as progress:
        loading = progress.add_task("loading the model", total=None)
        pipeline = open_pipeline(settings, checkpoint)
        progress.remove_task(loading)
        # One call encodes a prompt. For each size, one call decodes, and the others make a step with each row count.
        calls = 1 + len(sizes_px) * (len(row_counts(settings.max_batch_rows)) + 1)
        bar = progress.add_task("measuring", total=calls)
        times = measure_model(pipeline, sizes_px, settings.max_batch_rows, lambda: progress.advance(bar))
    times.write(output)
    for shape in times.shapes:
        best = min(shape.step_s, key=lambda rows: shape.step_s[rows] / rows)  # the rows with the least time per row
        print(
            f"{shape.width_px}x{shape.height_px}: a step takes {1000 * shape.step_s[1]:.1f} ms for 1 row,"
            f" {1000 * shape.step_s[best]:.1f} ms for {best} row{'s' * (best > 1)}; decoding takes"
            f" {1000 * shape.decode_s:.1f} ms"
        )
    print(f"Wrote {output}")
