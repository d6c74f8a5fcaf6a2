# SPDX-License-Identifier: Apache-2.0
"""Every error a user can cause, as one tree; the command line prints these without a traceback.

OpendinoError
|-- ConfigError        a setting is unknown, of the wrong type, or contradicts another
|-- DataError          a folder, manifest or image cannot be used
|-- ModelError         an input or a shape that the model cannot take
|-- CheckpointError    a run or a weights file cannot be read, written or continued
|   `-- ConversionError  weights do not fit the key table they are read with
`-- TrainingError      a run stopped because going on would do harm
    `-- Elsewhere      another process of this run failed, and reports it

A message is one sentence that says where, what came, what was wanted and what to do.
"""

import errno

_ROOM = "make room"
_ELSEWHERE = "name another folder, or have this one opened for writing"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "name a file, not a folder",
    errno.EEXIST: "name another",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), or use fewer loader.workers",
}


def advice(error: OSError) -> str:
    """What a user can do about what the system said, as the end of a sentence."""
    return _ADVICE.get(error.errno or 0, "see to this file and its disk")


class OpendinoError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(OpendinoError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another.

    Also a ValueError, so that the checks of a config dataclass are collected with all the other mistakes.
    """


class DataError(OpendinoError):
    """A folder, manifest or image cannot be used."""


class ModelError(OpendinoError):
    """An input or a shape that the model cannot take."""


class CheckpointError(OpendinoError):
    """A run or a weights file cannot be read, written or continued."""


class ConversionError(CheckpointError):
    """Weights do not fit the key table they are read with."""


class TrainingError(OpendinoError):
    """A run stopped because going on would do harm."""


class Elsewhere(TrainingError):  # noqa: N818 (says where)
    """Another process of this run failed, and reports it; this one ends in silence."""
