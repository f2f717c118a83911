"""Trains the embedded model `sd35-mini` on scenes of emoji glyphs: `make train`. Serving never imports this package."""
