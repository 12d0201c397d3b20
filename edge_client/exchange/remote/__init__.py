"""The exchange over gRPC, through a coordinator."""
