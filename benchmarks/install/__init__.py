"""What an installation takes: disk by extra; and of a device that only recognises, time to start and memory."""
