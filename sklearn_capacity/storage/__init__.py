"""Files that contain only numbers and text: reading them runs no code.

`files` writes and reads one safetensors file with a document and a digest; `encoding` turns values into JSON and back;
`fingerprint` hashes parameters, data and code, by what objects consist of (`contents`), where code comes from
(`origins`) and what it refers to (`references`); `known_functions` and `snapshots` spare reading code that has not
changed. Saved estimators and checkpoints are built on it. Read `files` first.

Data flow: values -> encode -> write_file -> read_file -> decode -> values.
"""

from sklearn_capacity.storage.encoding import decode, encode
from sklearn_capacity.storage.files import FileError, Stored, memory_limit, read_file, remove_leftovers, write_file
from sklearn_capacity.storage.fingerprint import complete_fingerprint, fingerprint
from sklearn_capacity.storage.snapshots import is_shared, snapshot

__all__ = [
    "FileError",
    "Stored",
    "complete_fingerprint",
    "decode",
    "encode",
    "fingerprint",
    "is_shared",
    "memory_limit",
    "read_file",
    "remove_leftovers",
    "snapshot",
    "write_file",
]
