"""What both sides share and the wire contract does not need: TLS, identities, servers, files."""
