"""What a session with secure aggregation tells each device, on its stream alone."""

from collections import defaultdict

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
from coordinator.session.roster import Roster


class MaskingMail:
    """Sends what the session decides of its masks.

    Args:
        members: of the session.
        outboxes: of the devices.

    """

    def __init__(self, members: Roster, outboxes: Outboxes) -> None:
        self._members = members
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
            case KeysWanted(step, circle, only):
                for device in only or circle:
                    self._send(device, pb.Frame(step=step, keys_wanted=self._keys_wanted(device, circle)))
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
                    wanted = pb.Unmask(public=of.keys[device].public, contributed=contributed)
                    self._send(device, pb.Frame(step=step, unmask=wanted))

    def _keys_wanted(self, device: str, circle: tuple[str, ...]) -> pb.KeysWanted:
        told, news = self._told[device], []
        for name in circle:
            member = self._members.get(name)
            key = None if member is None else member.joining.channel_key
            if key is not None and told.get(name) != key.public:
                told[name] = key.public
                news.append(key)
        return pb.KeysWanted(circle=circle, channel_keys=news)

    def _send(self, device: str, frame: pb.Frame) -> None:
        self._outboxes.send(device, frame.SerializeToString())
