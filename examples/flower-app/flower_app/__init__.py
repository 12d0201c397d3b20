"""What flower-app recognises, trained on devices together."""
