"""What can be measured during a run: steps, operators, processes, GPUs, energy."""
