"""What a session with secure aggregation tells each device, on its stream alone."""

from collections import defaultdict
from collections.abc import Mapping

from edgenewton.secure_aggregation.messages import announcements_to_bytes, set_to_bytes
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.serving.outboxes import Outboxes
from coordinator.session.decisions import (
    Decision,
    DeviceJoined,
    DeviceRemoved,
    KeysWanted,
    MaskersSettled,
    SharesWanted,
)


class MaskingMail:
    """Sends what the session decides of its masks.

    Args:
        outboxes: of the devices.

    """

    def __init__(self, outboxes: Outboxes) -> None:
        self._outboxes = outboxes
        self._told: dict[str, dict[str, bytes]] = defaultdict(dict)
        """For each device, the channel keys that it was told on its stream."""

    def send(self, decision: Decision) -> None:
        """Send what a decision says to the devices that it is for."""
        match decision:
            case DeviceJoined(member):
                self._told.pop(member.device, None)
            case DeviceRemoved(device):
                self._told.pop(device, None)
                for told in self._told.values():
                    told.pop(device, None)
            case KeysWanted(step, circle, attempt, only):
                for device in only or circle:
                    news = self._untold(device, circle)
                    wanted = pb.KeysWanted(circle=circle, channel_keys=news, attempt=attempt)
                    self._send(device, pb.Frame(step=step, keys_wanted=wanted))
            case MaskersSettled(step, of, scales, only):
                maskers = set_to_bytes(of.circle, of.maskers)
                for device in only or of.maskers:
                    announcements = announcements_to_bytes(of.announcements_for(device))
                    settled = pb.Maskers(
                        public=of.keys[device].public, maskers=maskers, announcements=announcements, scales=scales
                    )
                    self._send(device, pb.Frame(step=step, maskers=settled))
            case SharesWanted(step, of, only):
                contributed = set_to_bytes(of.circle, of.contributed)
                for device in only or of.maskers:
                    question = pb.Unmask(public=of.keys[device].public, contributed=contributed)
                    self._send(device, pb.Frame(step=step, unmask=question))

    def _untold(self, device: str, circle: Mapping[str, pb.ChannelKey | None]) -> list[pb.ChannelKey]:
        """Return the keys of a circle that a device was not told yet; it is now."""
        told, news = self._told[device], []
        for name, key in circle.items():
            if key is not None and told.get(name) != key.public:
                told[name] = key.public
                news.append(key)
        return news

    def _send(self, device: str, frame: pb.Frame) -> None:
        self._outboxes.send(device, frame.SerializeToString())
