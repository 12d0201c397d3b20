"""What is told and remembered of sessions: events, statistics, metrics, and the record on disk."""
