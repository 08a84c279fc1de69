"""Gridded stores as samples: names, lazy reading, splits, windows, samplers, statistics."""
