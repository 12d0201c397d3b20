"""`edge-coordinator verify`: what a file is, and whether it is whole."""

from edgenewton.common.command_line import Json
from edgenewton.common.verify_command import Files, verify_files


def verify(files: Files, as_json: Json = False) -> None:
    """Say what files are and whether they are whole: records, audit logs, runs, certificates, states, models."""
    verify_files(files, as_json=as_json)
