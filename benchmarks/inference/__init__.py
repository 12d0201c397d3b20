"""Recognition beside other servers, and while the device trains."""
