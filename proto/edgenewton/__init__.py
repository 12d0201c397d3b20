"""The wire contract that edge devices and the coordinator share."""
