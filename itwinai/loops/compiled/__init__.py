"""A training step as one graph: ``ItwinaiTrainer(compile_step=True)``.

- `limits`: what cannot be compiled, and what to do about it.
- `observation`: what a trace reads of Python's values, which have to be compared in every later step.
- `live_number`: numbers that change from step to step, such as ``self.global_step``.
- `updates`: what torch's optimizers do, as operations of the graph.
- `flat_gradients`: the gradients that several workers average, between two graphs.
- `graph`: traces, compiles and runs one graph.
- `optimization`: takes the place of `loops.optimization.LeanOptimization`.
"""
