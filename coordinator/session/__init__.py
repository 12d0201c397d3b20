"""The session state machine: plain Python that is given events and the time, and returns decisions."""
