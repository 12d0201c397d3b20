"""Machines of different kinds in one session: how far rounding takes them apart, and what that costs."""
