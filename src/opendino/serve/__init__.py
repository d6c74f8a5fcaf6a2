# SPDX-License-Identifier: Apache-2.0
"""Features over HTTP: `serve` in `running.py`, addresses in `app.py`, the queue in `batching.py`, `bodies.py`.

`from opendino.serve import serve` needs the packages of `opendino[serve]`, which are imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opendino.serve.app import ServeConfig, make_app
    from opendino.serve.running import serve

__all__ = ["ServeConfig", "make_app", "serve"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'opendino.serve' has no attribute '{name}'")
    return getattr(import_module(f"opendino.serve.{'running' if name == 'serve' else 'app'}"), name)
