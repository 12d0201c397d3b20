"""Training on a device: the loop, its settings and state, and the jobs that a device is given."""
