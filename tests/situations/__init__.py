"""Situations from public bug reports: what each strategy does in them, kept true by a test, told in a table."""
