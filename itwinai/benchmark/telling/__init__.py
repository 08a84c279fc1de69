"""What a benchmark says: in sentences, in a terminal, as CSV."""
