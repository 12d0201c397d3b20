"""Half an hour of devices that come, go, die and misbehave: what memory grows, and whether an honest step is lost."""
