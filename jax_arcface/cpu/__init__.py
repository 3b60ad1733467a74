"""The only door to hand-made CPU operations, with XLA's in their place elsewhere."""
