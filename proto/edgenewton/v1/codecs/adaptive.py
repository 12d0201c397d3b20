"""A codec whose sender may write in another form in each step: the bytes say which it is.

So whoever reads need not know what was decided, and when: late frames and replayed steps are read as they come.
"""

from collections.abc import Mapping

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.int4 import Int4
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape
from edgenewton.v1.codecs.sparse import Sparse1
from edgenewton.v1.forms import Form
from edgenewton.v1.tensor_spec import TensorSpec

FRACTION = 0.1
"""Of the elements that the sparse form keeps: a sixth of the bytes of int4, for about 1.6 times as many batches."""
CODEC_OF: Mapping[Form, Codec] = {Form.INT4: Int4(), Form.SPARSE1: Sparse1(FRACTION)}
"""What writes each form; none remembers anything."""
_BY_NUMBER: Mapping[int, Codec] = {codec.number: codec for codec in CODEC_OF.values()}


class FormInUse:
    """In which form a sender writes: one for all its slices, because all of a step are to be alike."""

    def __init__(self, form: Form = Form.INT4) -> None:
        self.form = form


class Adaptive(Codec):
    """A byte with the number of the codec in use, then what that writes.

    Args:
        in_use: which one to write with; reading does not depend on it.

    """

    name = "auto"
    number = pb.CODEC_AUTO
    is_narrow = True
    is_quantised = True
    needs_feedback = True

    def __init__(self, in_use: FormInUse) -> None:
        self._in_use = in_use

    @property
    def error_decay(self) -> float:
        """What part of the error lives on, as the form in use has it. The error itself stays when the form changes."""
        return self._writer.error_decay

    def encoded_size(self, shape: Shape) -> int:
        """Return the bytes of the largest form, and one."""
        return 1 + max(codec.encoded_size(shape) for codec in CODEC_OF.values())

    def smallest_size(self, shape: Shape) -> int:
        """Return the bytes of the smallest form, and one."""
        return 1 + min(codec.smallest_size(shape) for codec in CODEC_OF.values())

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether all forms suit a tensor: which will be in use is not known."""
        return all(codec.suits(spec) for codec in CODEC_OF.values())

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return the number, then the bytes."""
        return bytes((self._writer.number,)) + bytes(self._writer.encode(x, context))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return what the codec with that number reads.

        Raises:
            ValueError: the size is wrong, there is no such form, or the codec refuses its bytes.

        """
        self.check_size(data, context.shape)
        view = memoryview(data).cast("B")
        codec = _BY_NUMBER.get(view[0])
        if codec is None:
            known = ", ".join(f"{number} for {other.name}" for number, other in _BY_NUMBER.items())
            raise ValueError(f"{self.name} has no form {view[0]}; known are {known}")
        try:
            return codec.decode(view[1:], context)
        except ValueError as error:
            raise ValueError(f"{error} (in {self.name})") from None

    @property
    def _writer(self) -> Codec:
        return CODEC_OF[self._in_use.form]


def form_to_proto(form: Form | None) -> pb.Codec:
    """Return what a form is called on the wire; unspecified for none."""
    return pb.CODEC_UNSPECIFIED if form is None else CODEC_OF[form].number


def form_from_proto(number: int) -> Form | None:
    """Return the form that is meant; None if none is told, or one that this release does not know."""
    return next((form for form, codec in CODEC_OF.items() if codec.number == number), None)
