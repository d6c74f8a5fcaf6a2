# SPDX-License-Identifier: Apache-2.0
"""Images that are like an image, in a folder that `opendino embed` wrote.

Start with `index.py` (build, open), then `asking.py` (queries by file or row), `duplicates.py` (groups of
near-duplicates) and `page.py` (results to look at).
"""

from opendino.search.asking import search
from opendino.search.duplicates import Group, find_duplicates
from opendino.search.index import Index, build, open_index

__all__ = ["Group", "Index", "build", "find_duplicates", "open_index", "search"]
