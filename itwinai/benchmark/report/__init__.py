"""What a benchmark leaves for people to read: terminal text, CSV table, page and plots."""
