"""Files: opened safely, written atomically, locked, as JSON lines, and compared; the space of disks.

Names of files that lie beside an output can be foreseen, so in a shared folder another user may have put a
link or a pipe there: they are opened by `create_file` and `open_regular`, which follow no link.
"""

from __future__ import annotations

from deltavlm.files.atomic import (
    atomic_file,
    atomic_folder,
    fsync_file,
    fsync_folder,
    refuse_existing,
    scratch_name,
    staged_folder,
    write_atomic,
)
from deltavlm.files.disk import folder_bytes, format_bytes, free_bytes, nearest_folder
from deltavlm.files.distinct import NamedPath, check_distinct_files
from deltavlm.files.json_lines import JsonLines, parse_json
from deltavlm.files.locks import lock, lock_path, remove_scratch_files
from deltavlm.files.opening import (
    MAX_DATASET_BYTES,
    MAX_TEXT_BYTES,
    check_regular,
    create_file,
    describe_read_error,
    names_folder,
    open_regular,
    read_text,
    resolve_link,
    special_kind,
)

__all__ = [
    "MAX_DATASET_BYTES",
    "MAX_TEXT_BYTES",
    "JsonLines",
    "NamedPath",
    "atomic_file",
    "atomic_folder",
    "check_distinct_files",
    "check_regular",
    "create_file",
    "describe_read_error",
    "folder_bytes",
    "format_bytes",
    "free_bytes",
    "fsync_file",
    "fsync_folder",
    "lock",
    "lock_path",
    "names_folder",
    "nearest_folder",
    "open_regular",
    "parse_json",
    "read_text",
    "refuse_existing",
    "remove_scratch_files",
    "resolve_link",
    "scratch_name",
    "special_kind",
    "staged_folder",
    "write_atomic",
]
