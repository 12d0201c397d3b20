"""Seconds to a target on a fleet of containers: EdgeNewton and Flower's FedAvg."""
