"""Writes the glyphs that `sd35 bench` compares images with, because it has no font: `python -m training.glyphs`.

The file `GLYPHS` is one row of squares in the order of the vocabulary.
"""

from pathlib import Path

from PIL import Image

from sd35.bench.quality.correctness import GLYPH_PX, GLYPHS
from training.scenes import glyph
from training.vocabulary import OBJECTS


def sheet() -> Image.Image:
    """Draw all glyphs in one row, as an RGBA image."""
    row = Image.new("RGBA", (len(OBJECTS) * GLYPH_PX, GLYPH_PX), (0, 0, 0, 0))
    for index, name in enumerate(OBJECTS):
        row.paste(glyph(name, GLYPH_PX), (index * GLYPH_PX, 0))
    return row


def main() -> None:
    """Write the file with lossless compression."""
    sheet().save(Path(GLYPHS), lossless=True, exact=True, method=6)


if __name__ == "__main__":
    main()
