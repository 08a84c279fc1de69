"""Lightning's CLI with our trainer, and mistakes in configs told in one block."""
