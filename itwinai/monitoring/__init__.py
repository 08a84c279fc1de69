"""What a node uses while a run trains: processors, memory, GPUs, energy."""
