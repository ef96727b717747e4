"""Features of the FID's Inception network: torch-fidelity's own, from a file that is checked and runs no code."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coalmine.diffusion import inception
from coalmine.errors import CoalmineError

CPU = torch.device("cpu")


def published(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a file count as the published one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "REMOTE", replace(inception.REMOTE, sha256=digest))
    return path


@pytest.fixture(scope="module")
def package():
    reason = "torch-fidelity is not installed: pip install 'coalmine[fid]'"
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason)


@pytest.fixture(scope="module")
def random_weights(package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of the right names and shapes; the published ones cannot be fetched here."""
    folder = tmp_path_factory.mktemp("inception")

    class Untrained(package.FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            """Keep the random ones."""

    torch.save({}, folder / "none.pth")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = Untrained("random", ["2048"], str(folder / "none.pth"))
    torch.save(network.state_dict(), folder / "random.pth")
    return folder / "random.pth"


def test_features_are_those_of_torch_fidelity(package, random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "IMAGES_AT_ONCE", 2)
    features = inception.read(published(random_weights, monkeypatch), CPU)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = features(images)
    assert (found.dtype, found.shape) == (np.float64, (3, 2048))
    theirs = package.FeatureExtractorInceptionV3("theirs", ["2048"], str(random_weights))
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(images).movedim(-1, 1))
    spread = expected.std(dim=0).mean().item()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3 * spread)
    assert spread > 0


def test_grey_stands_for_all_three_colours(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = inception.read(published(random_weights, monkeypatch), CPU)
    grey = np.random.default_rng(1).integers(0, 256, (1, 6, 6, 1), dtype=np.uint8)
    np.testing.assert_array_equal(features(grey), features(np.repeat(grey, 3, axis=3)))


def test_reading_draws_nothing_from_the_global_generator(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    inception.read(published(random_weights, monkeypatch), CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 4), np.uint8)])
def test_what_is_no_image_for_the_fid_is_refused(
    random_weights: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    features = inception.read(published(random_weights, monkeypatch), CPU)
    with pytest.raises(CoalmineError, match=r"expected uint8 \(n, height, width, channel\) with 1 or 3 channels"):
        features(images)


def test_a_file_that_is_missing_or_another_one_is_named_with_where_to_get_it(package, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(CoalmineError, match=r"weights\.pth: no such file, .* fetch https://github\.com/.* and set qua"):
        inception.read(path, CPU)
    path.write_bytes(b"other")
    with pytest.raises(CoalmineError, match=r"weights\.pth: SHA-256 is .*, expected 6726825d.* set quality\.inception"):
        inception.read(path, CPU)


def test_no_code_in_the_file_is_run(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    torch.save({"fc.bias": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        inception.read(published(tmp_path / "trap.pth", monkeypatch), CPU)
    assert not ran.exists()


def test_a_missing_package_is_told_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(CoalmineError, match=r"needs the package torch-fidelity.*pip install 'coalmine\[fid\]'"):
        inception.read(tmp_path / "weights.pth", CPU)


def test_the_published_file_carries_its_hash_in_its_name() -> None:
    assert inception.REMOTE.name == inception.REMOTE.url.rpartition("/")[2]
    assert inception.REMOTE.name.endswith(f"-{inception.REMOTE.sha256[:8]}.pth")
