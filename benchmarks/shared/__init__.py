"""What the benchmarks share: results and where they were measured, a Flower of one's own, a proxy, the union batch."""
