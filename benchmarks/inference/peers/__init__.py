"""Other servers that the benchmark of recognition measures beside ours, in environments of their own."""
