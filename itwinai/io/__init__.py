"""Files that are whole or absent, and documents that are read again: the same for everything that a run writes."""
