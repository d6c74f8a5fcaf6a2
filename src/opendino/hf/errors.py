# SPDX-License-Identifier: Apache-2.0
"""Errors of the Hugging Face face: ours, and at the same time the built-in kind that transformers' users catch."""

from opendino.errors import CheckpointError, ModelError, OpendinoError


class InputError(ModelError, ValueError):
    """An argument that a model or image processor cannot take; transformers raises ValueError here."""


class WeightsError(CheckpointError, RuntimeError):
    """A weights file that is broken or does not fit its config; transformers raises RuntimeError for shapes."""


class MissingFilesError(CheckpointError, OSError, ValueError):
    """A folder, or a file of a model, is not at hand and cannot be had; transformers raises OSError or ValueError."""


class BrokenFileError(CheckpointError, OSError, ValueError):
    """A config that is no JSON object; transformers raises OSError, or ValueError of the json module."""


class MissingTransformersError(OpendinoError, ImportError):
    """transformers is not installed."""
