"""How many connections a server holds: of each client, and in all.

A connection that waits for its client (nothing came yet, or half a request, or it is idle between two) costs the
client nothing, so it has no right to its place: where there is none left, the one that has waited longest makes room
for the one that comes. Only connections whose requests are being answered keep their places.
"""

from typing import Protocol

from edgenewton.common.clients import client_of


class Connection(Protocol):
    """What has a place."""

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client."""

    def drop(self) -> None:
        """Close it at once."""


class ConnectionLimits:
    """Gives connections their places. Plain Python without sockets.

    Args:
        most: connections in all.
        most_per_client: connections of one client.

    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._of_client: dict[str, dict[Connection, None]] = {}  # each in the order of arrival

    def __len__(self) -> int:
        """Return how many connections have a place."""
        return sum(map(len, self._of_client.values()))

    def admit(self, connection: Connection, address: str) -> bool:
        """Return whether a connection has a place now; another one may have lost its own."""
        client = client_of(address)
        own = self._of_client.get(client, {})
        if len(own) >= self._most_per_client and not self._make_room(client):
            return False
        if len(self) >= self._most and not self._make_room_among_all():
            return False
        self._of_client.setdefault(client, {})[connection] = None
        return True

    def remove(self, connection: Connection, address: str) -> None:
        """Take a connection's place back; nothing happens if it has none."""
        client = client_of(address)
        own = self._of_client.get(client)
        if own is not None:
            own.pop(connection, None)
            if not own:
                del self._of_client[client]

    def _make_room_among_all(self) -> bool:
        """Drop a connection of whichever client has most."""
        by_count = sorted(self._of_client, key=lambda client: len(self._of_client[client]), reverse=True)
        return any(map(self._make_room, by_count))

    def _make_room(self, client: str) -> bool:
        connection = next((each for each in self._of_client[client] if each.is_waiting), None)
        if connection is None:
            return False
        self.remove(connection, client)
        connection.drop()
        return True
