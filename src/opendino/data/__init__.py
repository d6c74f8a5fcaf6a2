# SPDX-License-Identifier: Apache-2.0
"""From files to batches: datasets -> decode -> augment -> masking -> collate -> loaders.

Read `datasets/__init__.py` for what can be opened, `augment.py` for the crops, `loaders.py` for how a run is fed.
"""
