"""Order, augmentation and batches are pure functions; lying files are read, bad ones named."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder, make_picture
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import dataset_paths


def test_order_is_a_permutation_and_differs_by_epoch_and_seed():
    orders = [data.epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.02
    assert np.array_equal(orders[0], data.epoch_order(0, 0, 1000))


def test_order_and_draws_never_change():
    """A run started today resumes under any later version of this program or of numpy."""
    order = data.epoch_order(7, 3, 10_000).astype("<i8").tobytes()
    assert hashlib.sha256(order).hexdigest()[:16] == "26b0fe0729d6daad"
    draws = data.uniforms(7, 3, np.arange(100), 23).astype("<f8").tobytes()
    assert hashlib.sha256(draws).hexdigest()[:16] == "47c30377ea6008ab"


def test_draws_are_uniform_and_independent():
    draws = data.uniforms(0, 0, np.arange(20_000), 8)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:  # chi-square over 100 bins; 99 +- 14 expected, 185 is beyond 1e-6
        counts = np.histogram(column, bins=100, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 185
    correlation = np.corrcoef(np.concatenate([draws[:-1], draws[1:]], axis=1), rowvar=False)
    assert np.abs(correlation - np.eye(16)).max() < 0.04


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1))
def test_draws_of_an_image_do_not_depend_on_its_batch(seed, epoch, indices):
    together = data.uniforms(seed, epoch, np.array(indices), 5)
    alone = [data.uniforms(seed, epoch, np.array([index]), 5)[0] for index in indices]
    assert np.array_equal(together, np.stack(alone))


def keys_of(num_images: int, world_size: int, first: int, last: int) -> list[list[tuple]]:
    """Micro-batches as (epoch, indices), per step, in the order m of the step."""
    per_rank = [
        list(data.train_keys(num_images, 5, 24, 2, first, last, rank, world_size))
        for rank in range(world_size)
    ]
    merged = [per_rank[m % world_size][m // world_size] for m in range(12 * (last - first))]
    plain = [(key.epoch, tuple(key.indices.tolist())) for key in merged]
    return [plain[i : i + 12] for i in range(0, len(plain), 12)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_shares_the_same_micro_batches(world_size):
    assert keys_of(100, world_size, 0, 9) == keys_of(100, 1, 0, 9)


@settings(max_examples=30)
@given(st.integers(24, 200), st.integers(0, 12), st.sampled_from([1, 2, 3]))
def test_starting_at_a_step_is_skipping_to_it(num_images, first, world_size):
    assert keys_of(num_images, world_size, first, 14) == keys_of(num_images, 1, 0, 14)[first:]


def test_an_epoch_takes_every_image_once_but_for_the_rest():
    steps = keys_of(100, 1, 0, 8)
    for epoch in (0, 1):
        batches = [indices for e, indices in itertools.chain(*steps) if e == epoch]
        images = list(itertools.chain(*batches))
        assert len(images) == len(set(images)) == 96


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9))
def test_evaluation_takes_every_image_exactly_once(num_images, batch_size, world_size):
    ranks = [data.eval_keys(num_images, batch_size, r, world_size) for r in range(world_size)]
    taken = np.concatenate([key.indices for rank in ranks for key in rank])
    assert np.array_equal(np.sort(taken), np.arange(num_images))
    alone = {tuple(key.indices) for key in data.eval_keys(num_images, batch_size)}
    assert {tuple(key.indices) for rank in ranks for key in rank} == alone  # whole batches


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_loaders_gives_the_same_pixels(image_folder, num_workers):
    train, _ = data.open_dataset(image_folder)

    def batches(workers: int) -> list[data.Batch]:
        images = data.TrainImages(train, 0, 32, 0.08, True)
        return list(data.start_loader(images, data.train_keys(66, 0, 16, 8, 2, 9), workers))

    ours, reference = batches(num_workers), batches(0)
    assert len(ours) == len(reference) == 14
    for one, other in zip(ours, reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert any(batch.flips.any() for batch in reference)
    assert not all(batch.flips.all() for batch in reference)


def test_batches_have_the_promised_form_and_no_flip_where_none_is_wanted(image_folder):
    train, val = data.open_dataset(image_folder)
    batch = data.TrainImages(train, 0, 32, 0.5, False)[data.BatchKey(0, np.array([0, 30, 65]))]
    assert batch.images.shape == (3, 32, 32, 3) and batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [0, 1, 2] and not batch.flips.any() and not batch.bad_images
    batch = data.EvalImages(val, 40, 32)[data.BatchKey(-1, np.array([20]))]
    assert batch.images.shape == (1, 32, 32, 3) and batch.labels.tolist() == [2]


@pytest.fixture
def lying_folder(tmp_path: Path) -> Path:
    """Files that are not what their names say, all of them readable, and three that are not."""
    root = make_folder(tmp_path, 4, 2)
    ant, bee = root / "train" / "ant", root / "train" / "bee"
    make_picture(901, 0).save(ant / "000.jpg", format="PNG")
    make_picture(902, 0).convert("CMYK").save(ant / "001.jpg")
    make_picture(903, 0).convert("L").save(ant / "002.jpg")
    whole = (bee / "000.jpg").read_bytes()
    (bee / "000.jpg").write_bytes(whole[: len(whole) // 2])
    (bee / "001.jpg").write_bytes(b"")
    (bee / "002.jpg").write_bytes(b"not a picture at all")
    return root


def test_lying_files_are_read_and_broken_ones_named_and_replaced_the_same_way(lying_folder):
    train, _ = data.open_dataset(lying_folder)
    images = data.TrainImages(train, 0, 32, 0.08, True)
    whole = images[data.BatchKey(0, np.arange(4))]
    assert not whole.bad_images and whole.labels.tolist() == [0] * 4
    bad = images[data.BatchKey(0, np.arange(4, 8))]
    named = {Path(line.split(": ")[0]).name for line in bad.bad_images}
    assert named == {"000.jpg", "001.jpg", "002.jpg"}
    assert all(str(lying_folder) in line and "Error" in line for line in bad.bad_images)
    again = images[data.BatchKey(0, np.arange(4, 8))]
    assert torch.equal(bad.images, again.images) and bad.labels.tolist() == [1] * 4
    assert bad.images.float().std() > 5


def test_a_broken_validation_image_counts_once_as_itself(lying_folder):
    (lying_folder / "val" / "bee" / "001.jpg").write_bytes(b"")
    _, val = data.open_dataset(lying_folder)
    batch = data.EvalImages(val, 32, 32)[data.BatchKey(-1, np.arange(6))]
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(batch.bad_images) == 1
    assert not batch.images[3].any() and batch.images[2].any()


def test_validation_may_be_called_validation(tmp_path):
    train, val = data.open_dataset(make_folder(tmp_path, 2, 1, val_name="validation"))
    assert (len(train), len(val)) == (6, 3) and train.classes == ("ant", "bee", "cat")


def test_fingerprint_tells_data_sets_apart(tmp_path):
    train, val = data.open_dataset(make_folder(tmp_path, 2, 2))
    assert data.fingerprint(train) == data.fingerprint(val)  # same names; they compare by split
    (tmp_path / "val" / "ant" / "001.jpg").rename(tmp_path / "val" / "ant" / "009.jpg")
    assert data.fingerprint(data.open_split(tmp_path, "val")) != data.fingerprint(train)


def remove_class(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "dog")


def empty_class(root: Path) -> None:
    for file in (root / "train" / "bee").iterdir():
        file.unlink()


def flatten(root: Path) -> None:
    for file in list((root / "val").rglob("*.jpg")):
        file.rename(root / "val" / f"{file.parent.name}_{file.name}")
    for name in ("ant", "bee", "cat"):
        (root / "val" / name).rmdir()


def drop_val(root: Path) -> None:
    (root / "val").rename(root / "test")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (remove_class, r"classes differ: 1 only in .*train \(such as cat\), 1 only in .*val"),
        (empty_class, r"train/bee has no images: fill that class or remove its folder"),
        (flatten, r"val is flat: 6 images such as .* Move each to .*/val/CLASS/"),
        (drop_val, r"--data_dir .*: no folder val/ or validation/ in it"),
    ],
)
def test_data_that_would_train_wrongly_are_refused(tmp_path, spoil, message):
    spoil(make_folder(tmp_path, 2, 2))
    with pytest.raises(ValueError, match=message):
        data.open_dataset(tmp_path)


def test_data_are_found_where_the_variable_says_and_the_search_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"no train/ and val/ in {tmp_path}\. Give train\.py --data_dir"
    ):
        dataset_paths.find_data_dir()
    make_folder(tmp_path, 1, 1)
    assert dataset_paths.find_data_dir() == tmp_path
    monkeypatch.delenv("IMAGENET_DIR")
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "data", 1, 1)
    assert dataset_paths.find_data_dir() == Path("data")


def test_a_known_data_set_that_is_not_complete_is_noticed():
    wnids = [f"n{i:08d}" for i in range(1000)]
    assert dataset_paths.shortfall(wnids, 1_281_167, 50_000) == ""
    text = dataset_paths.shortfall(wnids, 1_281_166, 50_000)
    assert "has 1,281,167 training and 50,000" in text and "here are 1,281,166 and" in text
    assert dataset_paths.shortfall(["ant", "bee"], 3, 1) == ""
    assert "Fashion-MNIST" in dataset_paths.shortfall(dataset_paths.FASHION_MNIST_CLASSES, 3, 1)
