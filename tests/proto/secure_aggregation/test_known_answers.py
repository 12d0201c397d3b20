"""The primitives of secure aggregation against published vectors."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from edgenewton.secure_aggregation.key_agreement import agree, derive, public_key
from edgenewton.secure_aggregation.mask_stream import MaskKey, change_by_masks, keystream
from edgenewton.secure_aggregation.modular_integers import word_of
from edgenewton.secure_aggregation.shamir import Combiner, split

ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def test_keys_are_agreed_on_as_rfc_7748_says():
    """Its section 6.1."""
    assert public_key(ALICE) == ALICE_PUBLIC
    assert public_key(BOB) == BOB_PUBLIC
    assert X25519PrivateKey.from_private_bytes(ALICE).exchange(X25519PublicKey.from_public_bytes(BOB_PUBLIC)) == SHARED
    assert agree(ALICE, BOB_PUBLIC, b"x") == agree(BOB, ALICE_PUBLIC, b"x") == derive(SHARED, b"x")
    assert agree(ALICE, BOB_PUBLIC, b"x") != agree(ALICE, BOB_PUBLIC, b"y")


def test_keys_are_derived_as_rfc_5869_says():
    """Its appendix A.3, without salt and info, of which `derive` takes the first 32 bytes."""
    expected = bytes.fromhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    assert HKDF(SHA256(), 42, salt=None, info=b"").derive(bytes([0x0B] * 22)) == expected
    assert derive(bytes([0x0B] * 22), b"") == expected[:32]


def test_masks_are_the_keystream_of_sp_800_38a():
    """Its appendix F.5.5."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    stream = keystream(key, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), len(plain))
    assert bytes(a ^ b for a, b in zip(plain, stream, strict=True)) == cipher


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("length", [1, 7, 131_072, 200_001])
def test_masks_are_the_keystream_read_as_integers_however_long(bits, length):
    """The stream's number is the upper half of its first counter block, and the lower half counts from 0."""
    key, word = bytes(range(32)), word_of(bits)
    stream = keystream(key, (77).to_bytes(8, "big") + bytes(8), length * word.itemsize)
    expected = np.frombuffer(stream, word.newbyteorder("<"))
    np.testing.assert_array_equal(MaskKey(key).draw(77, length, word), expected)
    values = np.arange(length).astype(word)
    change_by_masks(values, 77, added=[MaskKey(key)], subtracted=[MaskKey(bytes(32)), MaskKey(key)])
    np.testing.assert_array_equal(values + MaskKey(bytes(32)).draw(77, length, word), np.arange(length).astype(word))


def test_secrets_are_shared_as_in_the_textbook_example():
    """The polynomial 1234 + 166 x + 94 x^2 modulo 1613, as in the article on Shamir's scheme in Wikipedia."""
    coefficients = iter([166, 94])
    shares = split(int_bytes(1234), range(1, 7), 3, random=lambda _: next(coefficients), prime=1613)
    assert shares == {n: int_bytes(y) for n, y in enumerate([1494, 329, 965, 176, 1188, 775], start=1)}
    assert Combiner([2, 4, 5], prime=1613).combine({n: shares[n] for n in (2, 4, 5)}) == int_bytes(1234)


def int_bytes(value):
    return value.to_bytes(32, "little")
