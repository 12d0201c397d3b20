"""How fast the exchange is beside others, and how few bytes it takes with each codec."""
