"""Commands that make the project's headline figures, each with its baselines in the same run."""
