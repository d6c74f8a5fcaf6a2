# SPDX-License-Identifier: Apache-2.0
"""Features over HTTP: addresses in `app.py`, the queue before the model in `batching.py`, bodies in `bodies.py`."""
