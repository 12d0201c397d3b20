"""The coordinator: synchronises the gradients of a session's devices, and Flower's ServerApp."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from edgenewton.common.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
