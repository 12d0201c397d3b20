"""Batches to a target accuracy, and what a step costs and where devices drift: ours and other methods."""
