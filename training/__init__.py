"""Makes the embedded model `sd35-mini` from nothing but a font. Run `make train`; never imported by serving."""
