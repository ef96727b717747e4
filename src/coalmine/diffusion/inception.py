"""Features of the Inception network that the FID is defined by, computed by the package torch-fidelity.

The network is TensorFlow's of 2015, which Heusel et al. (2017) used, with its quirks, and images are enlarged as
TensorFlow 1 does: torchvision's Inception-v3 and other ways of resizing give other numbers (Parmar, Zhang and Zhu, "On
Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022). Its weights are given as a file, whose SHA-256
must be the published one, and read without running any code that a pickle might hold.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coalmine.data.download import RemoteFile
from coalmine.errors import CoalmineError

if TYPE_CHECKING:
    import torch

REMOTE = RemoteFile(
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
"""The weights that torch-fidelity publishes and loads by default, converted from TensorFlow's of 2015-12-05."""

LAYER = "2048"
"""The last layer before the classifier, averaged over positions: 2,048 features."""

IMAGES_AT_ONCE = 64


def read(path: Path, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Read the network; return what maps images to their features.

    Args:
        path: the file of ``REMOTE``.
        device: where to compute, in single precision.

    Returns:
        A function of uint8 (n, height, width, channel) with 1 channel (grey, which stands for all three colours) or 3,
        to float64 (n, 2048).

    Raises:
        CoalmineError: torch-fidelity is not installed, or the file is missing or another one.
    """
    import torch

    from coalmine.training.device import arithmetic

    network = _network(path).to(device)

    def features(images: np.ndarray) -> np.ndarray:
        _check(images)
        found = np.empty((len(images), int(LAYER)))
        with torch.no_grad(), arithmetic("float32"):
            for start in range(0, len(images), IMAGES_AT_ONCE):
                rows = slice(start, start + IMAGES_AT_ONCE)
                batch = torch.from_numpy(images[rows]).to(device).movedim(-1, 1)
                found[rows] = network(batch.expand(-1, 3, -1, -1).contiguous())[0].cpu().numpy()
        return found

    return features


def _network(path: Path) -> Any:
    """Return torch-fidelity's network with the weights of the file, ready to be used."""
    import torch

    try:
        package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:  # torchvision for another PyTorch raises the latter
        raise CoalmineError(
            f"the FID needs the package torch-fidelity, which cannot be used here ({error}): pip install "
            "'coalmine[fid]', or set quality.inception: null to compare features of the network that public data train."
        ) from error
    # The class reads its file as an unrestricted pickle, or fetches one: it is given bytes that are made right here.
    state = io.BytesIO()
    torch.save(_weights(path), state)
    state.seek(0)
    # It draws first weights from the global generator.
    with torch.random.fork_rng(devices=()):
        return package.FeatureExtractorInceptionV3("inception", [LAYER], state)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the named weights of the file, once its content is known to be the published one."""
    import torch

    if not path.is_file():
        raise CoalmineError(f"{path}: no such file, expected the weights of the FID's Inception network; {_remedy()}.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != REMOTE.sha256:
        raise CoalmineError(
            f"{path}: SHA-256 is {found}, expected {REMOTE.sha256}. It is damaged or another version; {_remedy()}."
        )
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _remedy() -> str:
    return f"fetch {REMOTE.url} and set quality.inception.path: LOCAL_FILE in config.yaml"


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise CoalmineError(
            f"images are {images.dtype} of shape {images.shape}, expected uint8 (n, height, width, channel) with 1 or "
            "3 channels: the FID is defined for no others"
        )
