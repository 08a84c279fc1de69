"""What can be measured while a run goes on: steps, operators, processes, GPUs, energy."""
