"""What the runs of a benchmark amount to: means, speed-ups, laws, and how sure they are."""
