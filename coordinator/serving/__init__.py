"""The coordinator on the network: gRPC services, and each session with its devices' streams."""
