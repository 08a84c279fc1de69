"""Benchmarks: which strategy a model should train under, and how far it scales."""
