import numpy as np
import pytest
import torch
from PIL import Image

from edge_client.tasks import Partition, SampleError, TaskError
from edge_client.tasks.datasets import Dataset, DatasetTask, csv_table, image_folder, npz_arrays


def decode(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy())


def test_an_image_folder_is_read_in_the_order_of_names(tmp_path):
    for label, grays in {"oak": [30, 40], "birch": [10, 20]}.items():
        (tmp_path / label).mkdir()
        for index, gray in enumerate(grays):
            Image.new("L", (2, 2), gray).save(tmp_path / label / f"{index}.png")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").touch()
    found = image_folder(tmp_path, decode)
    assert found.labels == ("birch", "oak")
    assert found.targets.tolist() == [0, 0, 1, 1]
    assert found.raw[:, 0, 0].tolist() == [10, 20, 30, 40]


def test_folders_that_hold_no_labels_are_named(tmp_path):
    with pytest.raises(SampleError, match="none is not a folder"):
        image_folder(tmp_path / "none", decode)
    with pytest.raises(SampleError, match="has no folders; one folder of files per label"):
        image_folder(tmp_path, decode)
    (tmp_path / "oak").mkdir()
    with pytest.raises(SampleError, match="oak has no files"):
        image_folder(tmp_path, decode)


def test_a_csv_table_gives_its_columns(tmp_path):
    path = tmp_path / "iris.csv"
    path.write_text("# made by hand\nlength,species,width\n1.5,b,2\n\n3,a,4.25\n")
    found = csv_table(path, label="species")
    assert (found.labels, found.targets.tolist(), found.raw.tolist()) == (("a", "b"), [1, 0], [[1.5, 2], [3, 4.25]])
    assert csv_table(path, "species", ["width"]).raw.tolist() == [[2], [4.25]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "has no column 'species'; it has a, b"),
        ("a,species\n1\n", "row 2 has 1 columns, the first line 2"),
        ("a,species\nx,oak\n", "row 2, column 1 holds 'x'"),
        ("a,species\ninf,oak\n", "holds 'inf', no finite number"),
        ("a,species\n", "has no rows"),
    ],
)
def test_bad_csv_tables_are_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(SampleError, match=message):
        csv_table(path, "species")


def test_npz_arrays_with_integers_or_texts(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(6.0).reshape(3, 2), y=np.array([2, 0, 2]), names=np.array(["b", "a", "b"]))
    found = npz_arrays(path)
    assert (found.labels, found.targets.tolist(), found.raw.shape) == (("0", "1", "2"), [2, 0, 2], (3, 2))
    assert npz_arrays(path, labels=["p", "q", "r"]).labels == ("p", "q", "r")
    named = npz_arrays(path, targets="names")
    assert (named.labels, named.targets.tolist()) == (("a", "b"), [1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "has no array 'y'; it has x"),
        ({"x": np.zeros(3), "y": np.zeros(2, int)}, r"'y' is \[2\]; 'x' has 3 samples"),
        ({"x": np.array([np.nan, 0]), "y": np.zeros(2, int)}, "'x' holds NaN"),
        ({"x": np.zeros(2), "y": np.array([0, -1])}, "'y' goes from -1 to 0"),
        ({"x": np.zeros(2), "y": np.zeros(2)}, "integers or texts were expected"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2, int)}, "is not an NPZ file of plain arrays"),
    ],
)
def test_bad_npz_files_are_named(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(SampleError, match=message):
        npz_arrays(path)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_what_is_no_npz_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(SampleError, match=r"data.npz (does not exist|is not an NPZ)"):
        npz_arrays(tmp_path / "data.npz")


class Coins(DatasetTask):
    name = "coins"
    labels = ("head", "tail")
    input_shape = (3,)

    def model(self):
        return torch.nn.Linear(3, 2)

    def decode(self, sample):
        return torch.as_tensor(sample)

    def dataset(self):
        return Dataset(torch.arange(300.0).reshape(100, 3), torch.arange(100) % 2, ("head", "tail"))


def test_a_fifth_of_each_label_is_held_out_and_nothing_is_lost():
    task = Coins()
    parts = [Partition(index, 3, seed=5) for index in range(3)]
    train = torch.cat([task.train_data(part).inputs for part in parts])
    test = torch.cat([task.test_data(part).inputs for part in parts])
    assert (len(train), len(test)) == (80, 20)
    assert sorted(torch.cat([train, test])[:, 0].tolist()) == list(range(0, 300, 3))
    assert torch.bincount(task.test_data(Partition()).targets).tolist() == [10, 10]
    other = Coins()
    other.labels = ("tail", "head")
    with pytest.raises(TaskError, match="'coins' recognises tail, head, but its samples are labelled head, tail"):
        other.train_data(Partition())
