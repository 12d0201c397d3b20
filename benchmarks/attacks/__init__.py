"""What bad devices can do to a training: attacks, the coordinator's aggregation rules, and Flower's strategies."""
