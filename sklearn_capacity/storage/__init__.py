"""Files that hold numbers and text only: nothing in them runs when they are read."""

from sklearn_capacity.storage.encoding import decode, encode
from sklearn_capacity.storage.files import FileError, Stored, read_file, remove_leftovers, write_file
from sklearn_capacity.storage.fingerprint import fingerprint

__all__ = ["FileError", "Stored", "decode", "encode", "fingerprint", "read_file", "remove_leftovers", "write_file"]
