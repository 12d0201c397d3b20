"""Names of the environment variables that the daemon and those who ask it read."""

ENVIRONMENT_PREFIX = "EDGENEWTON_"
"""`EDGENEWTON_SERVER__REST_PORT=9000` overrides `rest_port` of the table `[server]` of the daemon's configuration."""
SOCKET_VARIABLE = "EDGENEWTON_SOCKET"
TLS_VARIABLE = "EDGENEWTON_TLS"
ALLOW_VARIABLE = "EDGENEWTON_ALLOW_TASK"
"""Import paths of tasks whose code may be run because a model or a run names them, with spaces between them."""
