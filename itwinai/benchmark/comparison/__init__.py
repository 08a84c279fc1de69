"""Two benchmarks side by side."""
