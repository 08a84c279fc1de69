"""What is worth knowing about a run: its code, versions, place; and what must not be told."""
