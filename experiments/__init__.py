"""Figures, tables and measurements; run from the checkout as `python -m experiments NAME`."""
