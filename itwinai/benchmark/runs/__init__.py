"""The runs of a benchmark: what each does, and where it takes place."""
