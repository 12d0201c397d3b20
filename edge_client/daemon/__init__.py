"""The daemon that lives on a device: it owns the model, serves recognition, and trains when it is asked to."""
