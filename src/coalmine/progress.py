"""Progress that a person can follow: one line at a time, each naming the job it belongs to."""

from collections.abc import Callable


def reporter(job: str) -> Callable[[str], None]:
    """Return a function that prints ``job: message`` at once, also when standard output is a file or pipe."""

    def report(message: str) -> None:
        print(f"{job}: {message}", flush=True)

    return report
