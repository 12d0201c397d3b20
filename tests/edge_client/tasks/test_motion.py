import numpy as np
import pytest
import torch

from edge_client.tasks import Partition, SampleError, load_task
from edge_client.tasks.motion import WINDOWS, MotionTask, _rotation
from edge_client.tasks.motion_physics import GRAVITY, LENGTH, MOTIONS, RATE, _integrate
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer

TIME = np.arange(LENGTH) / RATE


def windows(name, count=20):
    return [MOTIONS[name](np.random.default_rng(seed)) for seed in range(count)]


def magnitude(vectors):
    return np.linalg.norm(vectors, axis=1)


def test_the_integrator_follows_the_solution_of_a_damped_oscillator():
    places, speeds = _integrate(lambda z, w: -((2 * np.pi) ** 2) * z - 0.4 * w, 0.1, 0.0)
    rate = np.sqrt((2 * np.pi) ** 2 - 0.2**2)
    exact = 0.1 * np.exp(-0.2 * TIME) * (np.cos(rate * TIME) + 0.2 / rate * np.sin(rate * TIME))
    np.testing.assert_allclose(places, exact, atol=2e-4)
    np.testing.assert_allclose(speeds[1:-1], np.gradient(exact, TIME)[1:-1], atol=0.005)


def test_a_pendulum_keeps_its_energy():
    angles, rates = _integrate(lambda a, w: -GRAVITY / 0.5 * np.sin(a), 1.2, 0.0)
    energy = 0.5 * (0.5 * rates) ** 2 + GRAVITY * 0.5 * (1 - np.cos(angles))
    np.testing.assert_allclose(energy, energy[0], rtol=1e-3)


def test_each_motion_feels_what_its_physics_say():
    for force, turning in windows("rest"):
        np.testing.assert_allclose(magnitude(force), GRAVITY)
        assert not turning.any()
    for force, turning in windows("spin"):
        rates = magnitude(turning)
        inwards = magnitude(force[:, :2])
        assert np.all(np.diff(rates) <= 0)  # friction
        ratio = inwards / rates**2
        assert 0.015 < ratio.mean() < 0.16  # the radius
        np.testing.assert_allclose(force[:, 2], GRAVITY)
    for force, _ in windows("bounce"):
        assert abs(force[:, 2].mean() - GRAVITY) < 0.25 * np.ptp(force[:, 2])
    for force, turning in windows("fall"):
        in_flight = magnitude(force) == 0
        height_s = in_flight.sum() / RATE
        assert np.sqrt(2 * 0.3 / GRAVITY) - 0.05 < height_s < 3 * np.sqrt(2 * 1.3 / GRAVITY)
        assert magnitude(force).max() > 2 * GRAVITY
        assert not turning[~in_flight].any()
    for force, turning in windows("swing"):
        # At the lowest point, where it is quickest, the cord pulls hardest.
        assert force[:, 2].max() > GRAVITY
        assert np.corrcoef(force[:, 2], turning[:, 1] ** 2)[0, 1] > 0.9
    for force, turning in windows("roll"):
        # Gravity turns with the cylinder: what is left of its reaction when the centripetal part is taken off.
        assert np.abs(turning[:, 1]).min() > 0
        assert np.abs(force[:, 1]).max() == 0


def test_orientations_are_rotations():
    rng = np.random.default_rng(0)
    rotations = np.stack([_rotation(rng) for _ in range(500)])
    products = rotations @ rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    assert np.abs(rotations.mean(axis=0)).max() < 0.1  # no direction is favoured


def test_partitions_cover_the_data_and_natural_ones_have_sensors_of_their_own():
    task = load_task("motion")
    total = 6 * 8 * WINDOWS
    for kind in ("iid", "dirichlet", "natural"):
        parts = [Partition(index, 4, kind) for index in range(4)]
        counts = [len(task.train_data(part)) for part in parts], [len(task.test_data(part)) for part in parts]
        assert sum(counts[0]) + sum(counts[1]) == total
        assert sum(counts[1]) == total // 5
    assert task.train_data(Partition()).inputs.shape[1:] == task.input_shape


def test_a_file_is_decoded_to_the_very_same_window_and_knows_its_label(tmp_path):
    task = MotionTask()
    inputs = task.test_data(Partition(seed=0))
    for index in (0, 100, len(task.held_out) - 1):
        path = tmp_path / f"{index}.csv"
        label = task.save_sample(index, path)
        window = task.loaded.raw[task.held_out[index]]
        for sample in (path, str(path), path.read_bytes(), window.numpy()):
            assert torch.equal(task.decode(sample), window)
        assert task.true_label(path) == label
        assert task.prepare(path).shape == inputs.inputs.shape[1:]
    assert task.true_label(b"x") is None
    with pytest.raises(IndexError, match="there is no held-out window 9999"):
        task.save_sample(9999, tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (b"1,2,3\n", "the table has 1 x 3 numbers; the motion task expects 128 rows"),
        (b"", "the table is empty"),
        (b"\xff\xfe\x00", "is not a table that can be read"),
        (b"1,2\nx,4\n", "the table: row 2, column 1 holds 'x', no finite number"),
        (b"1,2\nnan,4\n", "row 2, column 1 holds 'nan'"),
        (b"1,2\n3\n", "row 2 has 1 columns, those before it 2"),
        (b"ax,ay\n", "has no rows"),
        (np.full((128, 6), np.nan), "the array holds NaN"),
        (np.zeros((5, 6)), "the array has 5 x 6 numbers"),
        (7, "not int"),
    ],
)
def test_bad_windows_are_named(sample, message):
    with pytest.raises(SampleError, match=message):
        MotionTask().decode(sample)


def test_it_learns():
    trainer = Trainer(TrainSettings(task="motion", steps=40))
    trainer.train(40)
    result = trainer.evaluate()
    assert result.correct > 0.9 * result.samples
