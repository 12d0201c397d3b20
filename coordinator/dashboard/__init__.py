"""The coordinator's page, its live feed, and its metrics, on one HTTP server."""
