"""In which form moves may be written, where the session chooses that. Plain Python: plans know it without protobuf."""

from enum import StrEnum


class Form(StrEnum):
    """A codec, by the name that users know it by."""

    INT4 = "int4"
    SPARSE1 = "sparse1"
