"""What watches a run: the room for callbacks."""
