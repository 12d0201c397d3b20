"""The coordinator: synchronises the gradients of a session's devices, and Flower's ServerApp."""
