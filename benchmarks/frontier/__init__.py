"""What a target accuracy costs in batches and in bytes, for ways to train that compress and ways that average."""
