# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from opendino.errors import ConfigError
from opendino.methods.settings import (
    DINOConfig,
    DINOv2Config,
    IBOTConfig,
    KoLeoConfig,
    TeacherConfig,
    teacher_schedules,
)


def test_published_teacher_schedules():
    momentum, temp = teacher_schedules(TeacherConfig(), 125_000)
    assert momentum(37_500) == pytest.approx(0.99364886, rel=1e-8)
    assert temp(12_499) == pytest.approx(0.049999467, rel=1e-7)
    assert temp(37_500) == temp(124_999) == 0.07
    with pytest.raises(ConfigError, match=r"teacher\.temp_warmup = 37500 steps is longer than the run of 100"):
        teacher_schedules(TeacherConfig(temp_warmup=37_500), 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DINOConfig(loss_weight=-1.0), r"dino\.loss_weight = -1\.0"),
        (lambda: IBOTConfig(loss_weight=math.nan), r"ibot\.loss_weight = nan"),
        (lambda: KoLeoConfig(loss_weight=math.inf), r"koleo\.loss_weight = inf"),
        (lambda: TeacherConfig(momentum=(0.9, 1.1)), r"teacher\.momentum"),
        (lambda: TeacherConfig(temp=(0.0, 0.07)), r"teacher\.temp"),
        (lambda: TeacherConfig(temp=(0.04, math.inf)), r"teacher\.temp"),
        (lambda: TeacherConfig(temp_warmup=math.nan), r"teacher\.temp_warmup = nan"),
        (lambda: DINOConfig(prototypes=0), r"dino\.prototypes = 0"),
        (lambda: IBOTConfig(bottleneck_dim=-1), r"ibot\.bottleneck_dim = -1"),
        (lambda: DINOv2Config(DINOConfig(0.0), IBOTConfig(0.0), KoLeoConfig(0.0)), "leaves nothing to learn"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
