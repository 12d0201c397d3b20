"""Models that other people wrote, each trained in an ordinary loop and compared with plain autograd and SGD."""

import os

# Every model is made of a configuration with random weights; nothing is to be looked up. Read when transformers loads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
