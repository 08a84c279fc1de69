"""What a visit to a machine with a GPU has to find out: ``python -m tests.gpu --out DIR``; see README.md."""
