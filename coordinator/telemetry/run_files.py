"""Names of the files that a Flower run leaves in its output folder."""

HISTORY_NAME = "history.json"
RECORD_NAME = "record.sqlite"
