"""What the project claims of speed, start-up and size, measured against plain Diffusers: `python -m benchmarks`."""
