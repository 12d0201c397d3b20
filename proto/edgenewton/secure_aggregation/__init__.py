"""Secure aggregation: devices mask what they send, so that the coordinator learns nothing but sums.

The protocol is that of Bonawitz et al. 2017 (doi.org/10.1145/3133956.3133982) with keys for one step each, and the
sparse graph of Bell et al. 2020 (doi.org/10.1145/3372297.3417885) for many devices. No IO: both sides give it messages.
"""
