"""What Flower starts on the server: it runs the rounds, with a coordinator inside."""

from coordinator.server_app import app

__all__ = ["app"]
