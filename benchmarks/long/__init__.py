"""The long benchmark: real tasks and real networks for a thousand batches, ours with one default for all of them."""
