# SPDX-License-Identifier: Apache-2.0
from opendino.serve.metrics import Metrics


def test_counts_in_the_text_format():
    metrics = Metrics()
    metrics.request("/embed", 200, 0.02)
    metrics.request("/embed", 200, 20.0)
    metrics.request("/embed", 429, 0.001)
    metrics.batch(3)
    metrics.batch(5)
    lines = metrics.text(7).splitlines()
    assert 'opendino_requests_total{path="/embed",status="200"} 2' in lines
    assert 'opendino_requests_total{path="/embed",status="429"} 1' in lines
    assert 'opendino_request_seconds_bucket{le="0.03"} 2' in lines
    assert 'opendino_request_seconds_bucket{le="+Inf"} 3' in lines
    assert {"opendino_request_seconds_count 3", "opendino_images_total 8", "opendino_batches_total 2"} <= set(lines)
    assert "opendino_waiting_images 7" in lines
