"""What privacy costs, and what attacks learn with and without it."""
