"""The messages of the Open Inference Protocol v2, wire-compatible with KServe and Triton."""
