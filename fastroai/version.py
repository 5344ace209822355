"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastroai")
except PackageNotFoundError:
    __version__ = "0.0.0+unknown"
