"""What a target accuracy costs in seconds, with real processes behind links of several speeds."""
