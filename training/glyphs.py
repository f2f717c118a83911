"""Draws the glyphs that `sd35 bench` compares images with: `python -m training.glyphs` writes the file `GLYPHS`.

One row of squares, in the order of the vocabulary: the judge there has no font.
"""

from pathlib import Path

from PIL import Image

from sd35.bench.quality.correctness import GLYPH_PX, GLYPHS
from training.scenes import glyph
from training.vocabulary import OBJECTS


def sheet() -> Image.Image:
    """All glyphs, RGBA."""
    row = Image.new("RGBA", (len(OBJECTS) * GLYPH_PX, GLYPH_PX), (0, 0, 0, 0))
    for index, name in enumerate(OBJECTS):
        row.paste(glyph(name, GLYPH_PX), (index * GLYPH_PX, 0))
    return row


def main() -> None:
    """Writes the file, without loss."""
    sheet().save(Path(GLYPHS), lossless=True, exact=True, method=6)


if __name__ == "__main__":
    main()
