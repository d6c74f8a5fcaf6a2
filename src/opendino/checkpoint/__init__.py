# SPDX-License-Identifier: Apache-2.0
"""Files: a run's resumable checkpoints (`store.py`), a backbone's weights (`weights.py`), opening any (`hub.py`).

A folder that is written here exists whole or not at all, and nothing is ever unpickled.
"""
