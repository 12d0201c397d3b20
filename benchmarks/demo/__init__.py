"""The demo: four devices train together through the coordinator, and recognise."""
