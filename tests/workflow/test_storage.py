"""Results in a bucket, by Snakemake's storage plugin for S3: the bytes of a local run, made again only where needed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkouts import BRIEF, Checkout, copy_sources
from PIL import Image

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server", reason="moto, a local S3 server, is not installed")
pytest.importorskip("snakemake_storage_plugin_s3", reason="Snakemake's storage plugin for S3 is not installed")

pytestmark = pytest.mark.xdist_group("storage")  # what they share takes long to make

SETTINGS = {**BRIEF, "execution": {"device": "cpu", "batch": 6}}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAIDNOBODYMAYSEE", "AWS_SECRET_ACCESS_KEY": "key+nobody/may=see"}
RECORDS = ".snakemake/metadata"
FINISHED = ("results/table1.csv", "--cores", "2")


@dataclass
class Bucket:
    """A bucket on a server of this machine, and what has been printed by the runs that store their results in it."""

    url: str
    objects: Any
    printed: list[str]

    def options(self, prefix: str = "run") -> tuple[str, ...]:
        """Return Snakemake's options for results in this bucket."""
        return (
            "--default-storage-provider", "s3",
            "--default-storage-prefix", f"s3://{self.objects.name}/{prefix}",
            "--storage-s3-endpoint-url", self.url,
        )  # fmt: skip

    def files(self, prefix: str = "run") -> dict[str, bytes]:
        """Return the objects below a prefix, by the path that each has in a local run."""
        found = self.objects.objects.filter(Prefix=f"{prefix}/")
        return {one.key.removeprefix(f"{prefix}/"): one.get()["Body"].read() for one in found}


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def checkout(folder: Path, **changes: object) -> Checkout:
    copy_sources(folder)
    made = Checkout(folder)
    made.configure(**{**SETTINGS, **changes})
    return made


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An empty bucket; credentials are in the environment of what is started, and nowhere else."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    serving = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    serving.start()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "NO_PROXY": "127.0.0.1"}.items():
            environment.setenv(name, value)
        url = "http://{}:{}".format(*serving.get_host_and_port())
        storage = boto3.resource("s3", endpoint_url=url, region_name="us-east-1")
        yield Bucket(url, storage.create_bucket(Bucket="results-of-a-test"), [])
    serving.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a local run, by path."""
    made = checkout(tmp_path_factory.mktemp("local") / "checkout")
    made.snakemake(*FINISHED)
    return {str(path.relative_to(made.root)): path.read_bytes() for path in files_below(made.root / "results")}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Checkout:
    """The checkout of a run with the same configuration whose results lie in the bucket."""
    made = checkout(tmp_path_factory.mktemp("stored") / "checkout")
    bucket.printed.append(made.snakemake(*FINISHED, *bucket.options()))
    return made


def artefacts(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return all files but measurements, check sums and logs."""
    measured = {Path(name).with_suffix(".json") for name in files if name.endswith((".npz", ".safetensors"))}
    return {
        name: content
        for name, content in files.items()
        if Path(name) not in measured and not {".sha256", "logs"} & set(Path(name).parts)
    }


def test_objects_have_the_names_and_bytes_of_a_local_run(
    local: dict[str, bytes], stored: Checkout, bucket: Bucket
) -> None:
    objects = bucket.files()
    assert objects.keys() == {name for name in local if "/.sha256/" not in name}
    assert artefacts(objects) == artefacts(local)
    assert not (stored.root / "results").exists()


def test_a_second_run_has_nothing_to_do(stored: Checkout, bucket: Bucket) -> None:
    bucket.printed.append(stored.snakemake(*FINISHED, *bucket.options()))
    assert "Nothing to be done" in bucket.printed[-1]


def test_after_an_object_was_deleted_only_what_needs_it_is_made_again(
    local: dict[str, bytes], stored: Checkout, bucket: Bucket
) -> None:
    lost = "results/small/metrics/dm.json"
    bucket.objects.Object(f"run/{lost}").delete()
    # As of local files: what is missing behind a finished table is nobody's loss until it is asked for.
    assert not stored.planned(*bucket.options(), target="results/table1.csv")
    assert stored.planned(*bucket.options(), target=lost) == {"score dm": 1}
    bucket.printed.append(stored.snakemake(lost, "--cores", "2", *bucket.options()))
    assert stored.planned(*bucket.options(), target="results/table1.csv") == {"table": 1, "publish_table": 1}
    # These jobs find the objects that their rules name, as no copies of others are left on this machine.
    bucket.printed.append(stored.snakemake(*FINISHED, *bucket.options()))
    assert artefacts(bucket.files()) == artefacts(local)


def test_another_checkout_notices_other_settings_by_the_records_of_the_first(
    stored: Checkout, bucket: Bucket, tmp_path: Path
) -> None:
    methods = {**SETTINGS["methods"], "dm": {**SETTINGS["methods"]["dm"], "iterations": 4}}
    other = checkout(tmp_path / "checkout", methods=methods)
    # Snakemake knows by its own records alone what an object was made from; docs/running.md says so.
    assert not other.planned(*bucket.options(), target="results/table1.csv")
    shutil.copytree(stored.root / RECORDS, other.root / RECORDS, dirs_exist_ok=True)
    jobs = ["synthesize dm", "train dm", "logits dm", "score dm", "table", "publish_table"]
    assert other.planned(*bucket.options(), target="results/table1.csv") == dict.fromkeys(jobs, 1)


def test_data_that_the_configuration_names_are_read_where_they_are(bucket: Bucket, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8), dtype=np.uint8)
    for name, images in zip(("cats", "dogs"), pixels, strict=True):
        folder = tmp_path / "photographs" / name
        folder.mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number}.png")
    private = {"module": "image_folder", "path": str(tmp_path / "photographs"), "grey": True}
    data = {"private": private, "public": None, "normalisation": {"mean": [0.5], "std": [0.3]}}
    made = checkout(tmp_path / "checkout", data=data)
    options = bucket.options("photographs")
    bucket.printed.append(made.snakemake("results/small/data/private/labels.npy", "--cores", "1", *options))
    assert bucket.files("photographs").keys() == {
        "results/small/data/private/images.npy",
        "results/small/data/private/labels.npy",
        "results/small/data/test/images.npy",
        "results/small/data/test/labels.npy",
        "results/small/data/classes.json",
        "results/small/logs/prepare/private.log",
    }


@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS.keys())
def test_credentials_are_in_no_message_file_or_object(stored: Checkout, bucket: Bucket, credential: str) -> None:
    assert bucket.printed
    assert not [printed for printed in bucket.printed if credential in printed]
    files = files_below(stored.root)
    assert any(".snakemake" in path.parts for path in files)
    assert not [path for path in files if credential.encode() in path.read_bytes()]
    assert not [name for name, content in bucket.files().items() if credential.encode() in content]
