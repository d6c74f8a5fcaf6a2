# SPDX-License-Identifier: Apache-2.0
"""Looking at features: pictures (`pca.py`) and pages that hold pictures, curves and tables (`report.py`)."""

from types import MappingProxyType

PICTURES = MappingProxyType(
    {
        "pca": ("opendino.view.pca", "PcaConfig", "principal components of the patches as colours"),
    }
)
"""Picture -> (module, config class, what it shows); modules are imported when asked for."""
