"""What a curious coordinator learns of a device's samples in each mode of a session, and what hiding them costs."""
