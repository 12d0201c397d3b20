"""The torch optimizer, its options, and what keeps its steps safe."""
