"""What can be wrong with a task or with a sample, for those, too, who recognise without PyTorch."""


class TaskError(ValueError):
    """A task cannot be found, or does not do what a task must; the text says which and why."""


class SampleError(ValueError):
    """A raw sample cannot be used; the text names it and says what was expected."""
