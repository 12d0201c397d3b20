import pytest
import torch

from benchmarks.frontier.compression import Compression, MeanExchange, Sender
from benchmarks.frontier.interface import DivergedError
from benchmarks.frontier.methods import METHODS

CODECS = sorted({method.name.rpartition(", ")[2] for method in METHODS})


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(64, 40, generator=generator),
        "filters": torch.randn(8, 4, 3, 3, generator=generator),
        "bias": torch.randn(64, generator=generator),
    }


def test_fp32_arrives_as_it_was_sent():
    sent = tensors(0)

    arrived, size = Sender(Compression()).send(sent)

    assert size == 4 * (64 * 40 + 8 * 4 * 9 + 64)
    assert all(torch.equal(arrived[name], sent[name]) for name in sent)


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "fp32"])
def test_what_is_left_out_is_sent_later(codec):
    sender = Sender(Compression(codec, fraction=0.05))
    sent = tensors(0)
    total = {name: torch.zeros_like(tensor) for name, tensor in sent.items()}

    for _ in range(100):
        arrived, size = sender.send(sent)
        total = {name: total[name] + arrived[name] for name in total}

    assert size < 4 * sum(tensor.numel() for tensor in sent.values()) / 2
    for name, tensor in sent.items():
        assert (total[name] / 100 - tensor).norm() < 0.4 * tensor.norm()


@pytest.mark.parametrize("codec", ["sparse4", "sparse2", "sparse1"])
@pytest.mark.parametrize("decay", [0.7, 0.95, 1.0])
def test_errors_decay_as_the_search_says_and_not_as_the_codec_does(codec, decay):
    compression = Compression(codec, fraction=0.05, decay=decay)
    sender, sent = Sender(compression), {"weight": tensors(0)["weight"]}
    first, _ = sender.send(sent)

    second, _ = sender.send({"weight": torch.zeros(64, 40)})

    expected, _ = Sender(compression).send({"weight": decay * (sent["weight"] - first["weight"])})
    assert torch.equal(second["weight"], expected["weight"])


def test_int8_sends_no_more_than_a_byte_an_element_and_the_scales():
    _, size = Sender(Compression("int8")).send(tensors(0))

    # the two small tensors are one, of 352 elements
    assert size == 64 * 40 + 10 * 4 + 352 + 2 * 4


def test_devices_get_the_mean():
    of_devices = [tensors(seed) for seed in range(4)]

    mean, up, down = MeanExchange(Compression(), 4).mean(of_devices)

    torch.testing.assert_close(mean["weight"], sum(device["weight"] for device in of_devices) / 4)
    assert up == down == 4 * (64 * 40 + 352)


def test_what_is_not_finite_has_diverged():
    sent = tensors(0)
    sent["bias"][3] = torch.nan

    with pytest.raises(DivergedError):
        Sender(Compression()).send(sent)
