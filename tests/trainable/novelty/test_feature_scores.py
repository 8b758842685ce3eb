"""Scores by features equal the published detectors', and survive being written to a file."""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_ood.detector import GEN, KNN, RMD, EnergyBased, MaxLogit, MaxSoftmax

from trainable.model import backbones
from trainable.novelty.bank import FeatureBank, all_of_features
from trainable.novelty.rule import novelty_score
from trainable.novelty.scores.mahalanobis import RelativeMahalanobis
from trainable.novelty.scores.neighbours import _QUERIES, NEIGHBOURS

REAL = Path(__file__).parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no real images beside the project")

FEATURE_SCORES = tuple(all_of_features())
HALF_STEP = 2**-11
"""Largest relative error of rounding to half precision."""


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features_of(num: int, dim: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, dim, generator=rng_of(seed))


def labels_of(num_known: int, num_borrowed: int = 0, num_classes: int = 4) -> torch.Tensor:
    return torch.cat([torch.arange(num_known) % num_classes, torch.full((num_borrowed,), -1)])


def scores_of(bank: FeatureBank, features: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = bank.scores(features, FEATURE_SCORES)
    assert {each.dtype for each in scores.values()} == {torch.float64}
    assert {each.shape for each in scores.values()} == {(len(features),)}
    return scores


def rmds_of(
    known: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, shrinkage: float
) -> torch.Tensor:
    fitted = RelativeMahalanobis.fit(known, labels, shrinkage=shrinkage)
    return RelativeMahalanobis(fitted).score(queries)


def published_knn(features: torch.Tensor, k: int = NEIGHBOURS) -> KNN:
    # One job: pytorch-ood's own choice starts a process per core for a few rows.
    detector = KNN(None, k=k)
    detector.knn.n_jobs = 1
    return detector.fit_features(features, torch.zeros(len(features), dtype=torch.int64))


def exact_in_half(num: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Return vectors of 1, 4 or 16 ones and minus ones: of length 1 they are exact in float16."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((num, dim), dtype=np.float32)
    for row in rows:
        ones = rng.choice(dim, rng.choice([1, 4, 16]), replace=False)
        row[ones] = rng.choice([-1, 1], len(ones))
    return torch.from_numpy(rows)


# --- Nearest neighbours ----------------------------------------------------------------------


def test_knn_is_the_published_one_where_half_precision_is_exact() -> None:
    known, borrowed, queries = exact_in_half(80, 32), exact_in_half(40, 32, 1), features_of(50, 32)
    bank = FeatureBank.fit(torch.cat([known, borrowed]), labels_of(80, 40))
    ours = scores_of(bank, queries)
    to_known = published_knn(known).predict_features(queries)
    to_borrowed = published_knn(borrowed).predict_features(queries)
    torch.testing.assert_close(ours["knn"], -to_known, rtol=0, atol=1e-6)
    difference = to_borrowed - to_known
    torch.testing.assert_close(ours["knn_difference"], difference, rtol=0, atol=2e-6)


def assert_close_to_half_precision(
    known: torch.Tensor, borrowed: torch.Tensor, queries: torch.Tensor
) -> None:
    """Rounding b changes 2 q b by at most 2 HALF_STEP, beside what is below float16's smallest
    normal number; and the k-th of distances by no more than each of them."""
    bank = FeatureBank.fit(torch.cat([known, borrowed]), labels_of(len(known), len(borrowed)))
    ours = scores_of(bank, queries)
    to_known = published_knn(known).predict_features(queries).double()
    to_borrowed = published_knn(borrowed).predict_features(queries).double()
    squared_error = 2 * (HALF_STEP + 2**-25 * known.shape[1] ** 0.5) + 1e-6
    assert ((ours["knn"] ** 2 - to_known**2).abs() <= squared_error).all()
    ours_to_borrowed = ours["knn_difference"] - ours["knn"]
    assert ((ours_to_borrowed**2 - to_borrowed**2).abs() <= squared_error).all()


@pytest.mark.parametrize("dim", [2, 12, 300])
def test_knn_is_the_published_one_to_half_precision(dim: int) -> None:
    assert_close_to_half_precision(
        features_of(90, dim), features_of(30, dim, seed=1), features_of(60, dim, seed=2)
    )


def test_neighbours_of_many_images_are_those_of_each() -> None:
    """More queries than fit into a distance matrix at once."""
    bank = FeatureBank.fit(features_of(60, 3), labels_of(60))
    queries = features_of(_QUERIES + 3, 3, seed=1)
    ends = [scores_of(bank, rows) for rows in (queries[-5:-3], queries[-3:])]
    for name, whole in scores_of(bank, queries).items():
        torch.testing.assert_close(whole[-5:], torch.cat([end[name] for end in ends]))


@given(st.floats(1e-3, 1e3), st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_knn_does_not_depend_on_the_scale_of_the_features(scale: float, num_known: int) -> None:
    known, queries = features_of(num_known), features_of(8, seed=1)
    labels = labels_of(num_known)
    plain = scores_of(FeatureBank.fit(known, labels), queries)["knn"]
    scaled = scores_of(FeatureBank.fit(scale * known, labels), queries / scale)["knn"]
    # A value between two of float16 may be rounded to either.
    torch.testing.assert_close(scaled**2, plain**2, rtol=0, atol=2 * HALF_STEP)
    power_of_two = FeatureBank.fit(4 * known, labels)
    assert torch.equal(scores_of(power_of_two, queries / 8)["knn"], plain)


@pytest.mark.parametrize("num_known", [1, 2, NEIGHBOURS - 1, NEIGHBOURS, NEIGHBOURS + 1])
@pytest.mark.parametrize("num_borrowed", [1, NEIGHBOURS + 1])
def test_of_fewer_images_than_neighbours_the_farthest_counts(
    num_known: int, num_borrowed: int
) -> None:
    known, borrowed = exact_in_half(num_known, 32), exact_in_half(num_borrowed, 32, seed=1)
    queries = features_of(20, 32, seed=2)
    bank = FeatureBank.fit(torch.cat([known, borrowed]), labels_of(num_known, num_borrowed))
    expected = []
    for query in F.normalize(queries.double()):
        distances = [
            sorted(float((query - row).norm()) for row in F.normalize(rows.double()))
            for rows in (known, borrowed)
        ]
        expected.append([each[:NEIGHBOURS][-1] for each in distances])
    to_known, to_borrowed = torch.tensor(expected, dtype=torch.float64).T
    ours = scores_of(bank, queries)
    torch.testing.assert_close(ours["knn"], -to_known, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["knn_difference"], to_borrowed - to_known, rtol=0, atol=2e-6)


def test_without_borrowed_images_the_difference_is_knn() -> None:
    scores = scores_of(FeatureBank.fit(features_of(40), labels_of(40)), features_of(9, seed=1))
    assert torch.equal(scores["knn_difference"], scores["knn"])


def test_borrowed_images_change_the_difference_alone() -> None:
    known, borrowed, queries = features_of(40), features_of(20, seed=1), features_of(9, seed=2)
    alone = scores_of(FeatureBank.fit(known, labels_of(40)), queries)
    bank = FeatureBank.fit(torch.cat([borrowed, known]), labels_of(40, 20).roll(20))
    beside = scores_of(bank, queries)
    assert [torch.equal(alone[name], beside[name]) for name in FEATURE_SCORES] == [
        name != "knn_difference" for name in FEATURE_SCORES
    ]


# --- Relative Mahalanobis distance -----------------------------------------------------------


def published_rmd(features: torch.Tensor, labels: torch.Tensor) -> RMD:
    return RMD(None).fit_features(features, labels)


def test_rmds_is_the_published_one() -> None:
    """They take scatter matrices, N times the covariance, and so get an N-th of the distance."""
    mixing = torch.eye(12) + 0.1 * torch.randn(12, 12, generator=rng_of(5))
    labels = labels_of(150)
    known = (features_of(150) + 2 * features_of(4, seed=3)[labels]) @ mixing + 5
    queries = torch.cat([known[:20], 3 * features_of(40, seed=1) + 4])
    ours = rmds_of(known, labels, queries, shrinkage=0.0)
    theirs = 150 * published_rmd(known, labels).predict_features(queries)
    torch.testing.assert_close(ours, -theirs.double(), rtol=1e-4, atol=1e-3)


def rmds_by_numpy(
    known: np.ndarray, labels: np.ndarray, queries: np.ndarray, shrinkage: float
) -> list[float]:
    """Return minus the relative Mahalanobis distance, from numpy's covariances, row by row."""
    classes = np.unique(labels)
    means = [known[labels == c].mean(0) for c in classes]
    within = np.concatenate([known[labels == c] - m for c, m in zip(classes, means, strict=True)])

    def inverse(rows: np.ndarray) -> np.ndarray:
        covariance = np.atleast_2d(np.cov(rows.T, bias=True))
        ridge = shrinkage * np.trace(covariance) / len(covariance)
        return np.linalg.inv(covariance + ridge * np.eye(len(covariance)))

    precision, background = inverse(within), inverse(known)
    center = known.mean(0)
    return [
        (x - center) @ background @ (x - center)
        - min((x - mean) @ precision @ (x - mean) for mean in means)
        for x in queries
    ]


@pytest.mark.parametrize("shrinkage", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_rmds_is_that_of_numpys_covariances(shrinkage: float, num_classes: int) -> None:
    labels = labels_of(80, num_classes=num_classes)
    known = features_of(80, 6) + features_of(num_classes, 6, seed=3)[labels]
    queries = 2 * features_of(30, 6, seed=1)
    ours = rmds_of(known, 3 * labels, queries, shrinkage)  # labels with gaps
    one, two, three = (each.double().numpy() for each in (known, labels, queries))
    expected = torch.tensor(rmds_by_numpy(one, two, three, shrinkage))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["rmds", "knn"])
def test_image_of_a_known_subclass_looks_more_known_than_one_between_them(name: str) -> None:
    centers = 10 * torch.eye(4, 12)
    labels = labels_of(80)
    known = centers[labels] + 0.3 * features_of(80)
    scores = scores_of(FeatureBank.fit(known, labels), torch.stack([centers[1], centers.mean(0)]))
    assert scores[name][0] > scores[name][1]


@pytest.mark.parametrize("num_known", [1, 2, 5])
def test_one_image_per_subclass_still_gives_finite_scores(num_known: int) -> None:
    bank = FeatureBank.fit(features_of(num_known), torch.arange(num_known))
    assert all(tensor.isfinite().all() for tensor in bank.tensors(FEATURE_SCORES).values())
    scores = scores_of(bank, torch.cat([features_of(num_known), features_of(6, seed=1)]))
    assert all(each.isfinite().all() for each in scores.values())


def test_features_that_never_vary_still_give_finite_scores() -> None:
    """Units of a rectifier that are never active."""
    known = features_of(40).relu()
    known[:, :5] = 0
    queries = torch.cat([known[:3], torch.zeros(1, 12), torch.ones(1, 12)])
    scores = scores_of(FeatureBank.fit(known, labels_of(40)), queries)
    assert all(each.isfinite().all() for each in scores.values())


# --- Files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_borrowed", [0, 7])
def test_bank_read_from_a_file_scores_bit_for_bit_alike(num_borrowed: int) -> None:
    features, queries = features_of(40 + num_borrowed), features_of(30, seed=1)
    bank = FeatureBank.fit(features, labels_of(40, num_borrowed))
    tensors = bank.tensors(FEATURE_SCORES)
    stored = safetensors.torch.load(safetensors.torch.save(tensors))
    read = FeatureBank.from_tensors(stored, FEATURE_SCORES, 12)
    live = scores_of(bank, queries)
    assert all(torch.equal(each, live[name]) for name, each in scores_of(read, queries).items())
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }


# --- Real features ---------------------------------------------------------------------------


class Real(NamedTuple):
    """Features of real photographs at 32 px, by the embedded backbone."""

    known: torch.Tensor
    """float32 (160, 1280), 8 subclasses in turn."""
    borrowed: torch.Tensor
    """float32 (40, 1280), in 7 classes."""


def pixels(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    image = Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((32, 32))
    return np.asarray(image)


@pytest.fixture(scope="module")
def real() -> Real:
    with zipfile.ZipFile(REAL / "bird-dog-reptile.zip") as archive:
        folder = "bird-dog-reptile"
        text = archive.read(f"{folder}/train_data.csv").decode()
        images: list[list[Any]] = [[] for _ in range(8)]
        for row in csv.DictReader(io.StringIO(text)):
            subclass = int(row["subclass_index"])
            if subclass < 8 and len(images[subclass]) < 20:
                name = f"{folder}/train_images/{row['image']}"
                images[subclass].append(pixels(archive, name))
        known = [image for turn in zip(*images, strict=True) for image in turn]
    with zipfile.ZipFile(REAL / "novel-images.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        borrowed = [pixels(archive, name) for name in names[::126]]
    backbone = backbones.build("efficientnet_lite0", 32)
    x = torch.from_numpy(np.stack([*known, *borrowed])).permute(0, 3, 1, 2) / 255
    x = (x - 0.5) / 0.5
    with torch.inference_mode():
        for stage in backbone.stages:
            x = stage.eval()(x)
    return Real(x[:160].clone(), x[160:].clone())


@real_data
@pytest.mark.real_data
def test_knn_of_real_features_is_the_published_one(real: Real) -> None:
    queries = torch.cat([real.known[120:], real.borrowed[20:]])
    assert_close_to_half_precision(real.known[:120], real.borrowed[:20], queries)


@real_data
@pytest.mark.real_data
def test_rmds_of_real_features_is_the_published_one(real: Real) -> None:
    """On their first ten principal axes, as the covariance of so few images has no inverse."""
    axes = torch.pca_lowrank(real.known, q=10, niter=8)[2]
    known, borrowed = real.known @ axes, real.borrowed @ axes
    labels = labels_of(120, num_classes=8)
    queries = torch.cat([known[120:], borrowed])
    theirs = 120 * published_rmd(known[:120], labels).predict_features(queries)
    ours = rmds_of(known[:120], labels, queries, shrinkage=0.0)
    torch.testing.assert_close(ours, -theirs.double(), rtol=1e-3, atol=1e-3)


@real_data
@pytest.mark.real_data
def test_logit_scores_of_real_outputs_are_the_published_ones(real: Real) -> None:
    """Of a linear head fitted by least squares, with novel as its last class."""
    features = torch.cat([real.known[:120], real.borrowed[:20]]).double()
    labels = torch.cat([labels_of(120, num_classes=8), torch.full((20,), 8)])
    target = 4 * F.one_hot(labels, 9).double()
    ridge = torch.eye(features.shape[1], dtype=torch.float64)
    head = torch.linalg.solve(features.T @ features + ridge, features.T @ target)
    logits = torch.cat([real.known[120:], real.borrowed[20:]]).double() @ head
    known = logits[:, :-1]
    torch.testing.assert_close(novelty_score(logits, "max_logit"), -MaxLogit.score(known))
    torch.testing.assert_close(novelty_score(logits, "energy"), -EnergyBased.score(known))
    gen = GEN.score(known, gamma=0.1, M=100) * 8  # they average over the classes
    torch.testing.assert_close(novelty_score(logits, "gen"), -gen)
    impossible = logits.clone()
    impossible[:, -1] = -torch.inf
    torch.testing.assert_close(novelty_score(impossible, "msp"), -MaxSoftmax.score(known))
