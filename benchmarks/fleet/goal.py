"""What both ways train to, and with how many devices."""

DEVICES = 4
TARGET = 0.97
"""Accuracy on held-out digits."""
