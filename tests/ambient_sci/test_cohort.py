import socket
import sys

import numpy as np
import pytest

from ambient_sci.demo import cohort
from ambient_sci.demo.cohort import make_cohort
from ambient_sci.errors import ConfigError


@pytest.fixture(scope="module")
def images():
    return make_cohort(3, 3, size=48, seed=5)


def test_shapes_range_and_coordinates(images):
    x, coords = images
    assert x.shape == (9, 48, 48)
    assert x.dtype == np.complex64
    np.testing.assert_allclose(np.abs(x).max((1, 2)), 1, rtol=1e-6)
    assert coords["subject"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert coords["slice"].tolist() == [0, 1, 2] * 3
    assert set(coords["orientation"]) == set(cohort.ORIENTATIONS)


def test_a_slice_does_not_depend_on_what_else_is_made(images):
    x, _ = images
    alone, coords = make_cohort(1, 2, size=48, seed=5, first_subject=2)
    np.testing.assert_array_equal(alone, x[6:8])
    assert coords["subject"].tolist() == [2, 2]
    other, _ = make_cohort(1, 2, size=48, seed=6, first_subject=2)
    assert not np.allclose(other, alone, atol=0.1)


def test_anatomy_sits_inside_the_view_with_smooth_phase(images):
    x, _ = images
    magnitude = np.abs(x)
    border = np.concatenate([magnitude[:, :2].ravel(), magnitude[:, -2:].ravel(), magnitude[:, :, :2].ravel()])
    assert border.max() < 0.1
    head = magnitude > 0.3
    assert 0.1 < head.mean() < 0.6
    neighbours = head[:, 1:] & head[:, :-1]
    steps = np.angle(x[:, 1:] * x[:, :-1].conj())[neighbours]
    assert np.abs(steps).max() < 0.5
    assert np.std(np.angle(x[head])) > 0.1


def test_subjects_differ_in_contrast_and_shape(images):
    magnitude = np.abs(images[0])
    correlation = np.corrcoef(magnitude.reshape(9, -1))
    assert correlation[np.triu_indices(9, 1)].max() < 0.97


def test_deformations_do_not_fold_space():
    anatomy = cohort._load_anatomy()
    points = np.random.default_rng(0).uniform(-80, 80, (3, 2000))
    for number in range(20):
        frequencies, phases, displacements = cohort._make_subject(anatomy, cohort._generator(0, number)).waves
        slopes = np.cos(frequencies @ points + phases[:, None])
        jacobian = np.eye(3) + np.einsum("ki,kj,kn->nij", displacements, frequencies, slopes)
        assert np.linalg.det(jacobian).min() > 0.2


def test_needs_no_network(monkeypatch, images):
    def refuse(*args, **kwargs):
        raise AssertionError("the cohort opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    cohort._load_anatomy.cache_clear()
    x, _ = make_cohort(1, 1, size=48, seed=5)
    np.testing.assert_array_equal(x[0], images[0][0])


def test_missing_nilearn_names_the_remedy(monkeypatch):
    cohort._load_anatomy.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ConfigError, match=r'pip install "ambient-sci\[demo\]"'):
        make_cohort(1, 1)
    cohort._load_anatomy.cache_clear()


@pytest.mark.parametrize("wrong", [{"subjects": 0}, {"size": 4}, {"seed": -1}])
def test_wrong_numbers_are_named(wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=name):
        make_cohort(**{"subjects": 1, "slices_per_subject": 1} | wrong)
