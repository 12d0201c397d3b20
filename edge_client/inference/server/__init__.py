"""Servers of recognition: the Open Inference Protocol v2 over gRPC and REST, and `POST /recognize`."""
