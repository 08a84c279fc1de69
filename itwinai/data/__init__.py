"""How samples are dealt out to workers."""
