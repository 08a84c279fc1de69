"""Measure what the loop costs: raw PyTorch, accelerate, stock lightning and ItwinaiTrainer, side by side."""
