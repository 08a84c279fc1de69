"""What the tests share: a small module, its data, and the cases of the parity matrix."""
