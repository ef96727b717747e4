"""Download one archive, resuming and retrying, and check its size and hash before it gets its name."""

from coalmine.data.download import RemoteFile, fetch
from coalmine.progress import reporter
from coalmine.stages import _command


def main() -> None:
    """Read the arguments and download."""
    arguments = _command.parser(__doc__).parse_args()
    remote = RemoteFile(**arguments.spec)
    fetch(remote, arguments.out[0], progress=reporter(f"download {remote.name}"))


if __name__ == "__main__":
    _command.run(main)
