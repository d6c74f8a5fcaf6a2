# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from opendino.config import load
from opendino.data.fast import Chosen
from opendino.train.config import PretrainConfig, TrainConfig, check_settings, fill_in
from opendino.train.facts import DataFacts, MachineFacts, Values
from opendino.train.settings import choose

LAPTOP = MachineFacts("cpu", cores=8)
BIG = MachineFacts("cuda", cores=16, memory=80 * 2**30, bf16=True)
SMALL = MachineFacts("cuda", cores=8, memory=8 * 2**30, bf16=True)


def values(given, data, machine, complete=False):
    return {key: choice.value for key, choice in choose(given, data, machine, complete).items()}


@pytest.mark.parametrize("machine", [LAPTOP, BIG, SMALL, MachineFacts()], ids=["laptop", "big", "small", "core"])
@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 100, 128, 160, 224, 500, 4000])
@pytest.mark.parametrize("images", [2, 30, 5000, 50_000, 1_300_000, 14_000_000])
def test_whatever_the_data_the_choice_is_a_run(machine, side, images):
    """The settings pass every check, crops are whole patches, and no crop is larger than the images by much."""
    chosen = values({}, DataFacts(images, side), machine)
    config = load(PretrainConfig, defaults=chosen)
    if images == 50_000:  # building networks takes its time
        check_settings(config)
    patch = config.student.arguments()["patch_size"]
    assert config.crops.global_size % patch == config.crops.local_size % patch == 0
    assert config.crops.local_size <= config.crops.global_size <= max(side, 2 * patch)
    assert 2 <= config.train.batch_size <= max(images, 2)
    assert 256 <= config.dino.prototypes <= 65_536
    assert config.train.iterations >= 100
    assert config.checkpoint.every <= max(config.train.iterations, 50)


def test_published_sizes_for_photographs_on_a_gpu():
    chosen = values({}, DataFacts(1_281_167, 375), BIG)
    assert (chosen["student.preset"], chosen["crops.global_size"], chosen["crops.local_size"]) == ("vitb14", 224, 98)
    assert chosen["dino.prototypes"] == 65_536
    assert "crops.global_scale" not in chosen


def test_small_pictures_on_a_cpu():
    chosen = values({}, DataFacts(50_000, 32), LAPTOP)
    assert (chosen["student.patch_size"], chosen["crops.global_size"], chosen["crops.local_size"]) == (6, 30, 18)
    assert chosen["masks.min_block"] == 1


def test_a_short_run_moves_faster():
    short = values({"train.iterations": 4000}, DataFacts(), LAPTOP)
    assert (short["teacher.momentum"], short["student.init_values"]) == ((0.975, 1.0), 0.1)
    published = values({"train.iterations": 125_000}, DataFacts(), LAPTOP)
    assert not {"teacher.momentum", "student.init_values", "optim.layerwise_decay"} & published.keys()


def test_a_shape_that_is_spelled_out_takes_the_memory_of_its_preset():
    data, large = DataFacts(1_000_000), {"student.preset": "vitl14"}
    spelled = {"student.preset": "vit_custom", "student.patch_size": 14, "student.embed_dim": 1024, "student.depth": 24}
    sizes = {"crops.global_size": 224, "crops.local_size": 98}
    found = [values(given | sizes, data, BIG)["train.batch_size"] for given in (large, spelled)]
    assert found[0] == found[1] < values({"student.preset": "vits14"} | sizes, data, BIG)["train.batch_size"]


def test_a_larger_memory_holds_a_larger_batch():
    data = DataFacts(1_000_000, 375)
    assert values({}, data, SMALL)["train.batch_size"] < values({}, data, BIG)["train.batch_size"]


def test_what_is_given_is_neither_overruled_nor_ignored():
    given = {"student.preset": "vitb14", "student.patch_size": 7, "train.batch_size": 10, "train.iterations": 30_000}
    chosen = values(given, DataFacts(50_000, 64), LAPTOP)
    assert not chosen.keys() & given.keys()
    assert chosen["crops.global_size"] % 7 == chosen["crops.local_size"] % 7 == 0
    assert chosen["checkpoint.every"] == 1500


def test_epochs_leave_the_iterations_alone():
    assert "train.iterations" not in values({"train.epochs": 3}, DataFacts(), LAPTOP)
    assert "train.iterations" in values({"train.epochs": 0}, DataFacts(), LAPTOP)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(("epochs", "images", "batch"), [(20, 10_000, 50), (2.5, 1000, 64), (400, 1_000_000, 1024)])
def test_epochs_choose_what_as_many_steps_choose(epochs, images, batch, complete):
    data, size = DataFacts(images), {"train.batch_size": batch}
    steps = fill_in(PretrainConfig(train=TrainConfig(batch, epochs=float(epochs))), images).train.iterations
    by_epochs = choose({"train.epochs": epochs, **size}, data, LAPTOP, complete)
    assert by_epochs == choose({"train.iterations": steps, **size}, data, LAPTOP, complete)
    assert {"knn.every", "checkpoint.every", "log.every"} <= by_epochs.keys()
    assert ("teacher.momentum" in by_epochs) == (steps < 20_000 and not complete)


def test_looks_that_were_asked_for_are_taken_whatever_their_time():
    known = {"train.iterations": 500}
    assert values(known, DataFacts(10_000), LAPTOP)["knn.share"] == 0.05
    assert "knn.share" not in values(known | {"knn.every": 20}, DataFacts(10_000), LAPTOP)


def test_epochs_of_a_recipe_that_names_no_batch_size():
    chosen = values({"train.epochs": 100}, DataFacts(1_281_167), BIG, complete=True)
    assert chosen["knn.every"] == math.ceil(100 * 1_281_167 / TrainConfig().batch_size) // 10


@pytest.mark.parametrize(
    ("preset", "rate"), [("vits14", 0.1), ("vitb14", 0.1), ("vitl14", 0.3), ("vitl14_reg4", 0.3), ("vitg14", 0.4)]
)
def test_larger_models_leave_out_more(preset, rate):
    assert values({"student.preset": preset}, DataFacts(), BIG)["student.drop_path_rate"] == rate


def test_small_crops_are_not_blurred():
    assert values({}, DataFacts(50_000, 32), LAPTOP)["crops.blur"] == "none"
    assert values({"crops.global_size": 60}, DataFacts(50_000, 300), BIG)["crops.blur"] == "none"
    assert "crops.blur" not in values({"crops.global_size": 64}, DataFacts(50_000, 300), BIG)
    assert "crops.blur" not in values({"crops.blur": "paper"}, DataFacts(50_000, 32), LAPTOP)


@pytest.mark.parametrize("bad", ["many", None, -3, True, [1]])
def test_values_of_the_wrong_type_are_left_to_the_check(bad):
    for key in ("student.patch_size", "crops.global_size", "train.batch_size", "train.iterations", "student.preset"):
        assert key not in choose({key: bad}, DataFacts(), LAPTOP, False)


def test_a_complete_recipe_means_what_it_says():
    """Only the machine's part and the kind of pixels are chosen beside it."""
    chosen = values({"train.iterations": 4000}, DataFacts(1000, 32, channels=5), LAPTOP, complete=True)
    assert chosen["student.in_chans"] == 5
    groups = {key.partition(".")[0] for key in chosen}
    assert groups == {"student", "train", "loader", "checkpoint", "knn", "log"}
    assert {key for key in chosen if key.startswith(("train.", "student."))} == {"train.precision", "student.in_chans"}


@pytest.mark.parametrize(
    ("seen", "span"),
    [
        (None, None),
        (Values(0, 4000, True), (0, 4095)),
        (Values(0, 255, True), (0, 255)),
        (Values(3, 900, True), (0, 1023)),
        (Values(0, 40_000, True), None),  # sixteen bits, as they are read anyway
        (Values(0.0, 1.0, False), None),  # floats as they should be
        (Values(-1024, 3071.5, False), (-1024, 3072)),
        (Values(0.0, 812.5, False), (0, 813)),
        (Values(7, 7, True), None),  # nothing to be seen
    ],
)
def test_the_range_of_deep_pixels(seen, span):
    for complete in (False, True):
        chosen = values({}, DataFacts(values=seen), LAPTOP, complete)
        assert chosen.get("images.value_range") == span
    assert "images.value_range" not in values({"images.value_range": [0, 1]}, DataFacts(values=seen), LAPTOP)


def test_the_fast_decoder_is_taken_where_it_is_installed():
    there = MachineFacts("cpu", cores=8, decoder=Chosen("fast", "it is installed"))
    assert choose({}, DataFacts(1000, 300), there, complete=True)["loader.decoder"] == ("fast", "it is installed")
    assert choose({}, DataFacts(1000, 300), LAPTOP, complete=True)["loader.decoder"].value == "pillow"
    assert "loader.decoder" not in choose({"loader.decoder": "pillow"}, DataFacts(1000, 300), there, complete=True)


def test_looks_at_a_short_run_are_at_few_images():
    for steps, images in ((0, 2000), (50, 100), (400, 400), (10_000, 2000)):
        given = {"train.iterations": steps} if steps else {"train.iterations": "?"}
        chosen = {key: choice.value for key, choice in choose(given, DataFacts(), MachineFacts(), True).items()}
        assert (chosen["knn.max_train"], chosen["knn.max_val"]) == (images, images // 4)
