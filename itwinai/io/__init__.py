"""Files that are whole or absent, and documents that are read again: the same foreverything that a run writes."""
