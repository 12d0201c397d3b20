"""Flower's side of training: a round of Flower is a session of the coordinator."""
