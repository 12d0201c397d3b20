"""Training while processes die, links break and devices stand still."""
