"""The edge client: trains a model on a device together with other devices, and recognises with it."""
