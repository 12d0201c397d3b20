"""Identities: the certificate authority, and what the coordinator does with the certificates of those who call."""
