# SPDX-License-Identifier: Apache-2.0
from opendino.models.outputs import FeatureDict


def test_names_and_order_are_the_official_ones():
    official = ["x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm", "masks"]
    assert list(FeatureDict.__annotations__) == official
