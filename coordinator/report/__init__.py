"""One self-contained HTML page about a run that is over, or still on: what was trained, by whom, and what it cost."""
