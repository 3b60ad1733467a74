"""Configuration, state, step and loop of a training."""
