"""Build one figure: png and pdf, and a csv with the numbers that it draws."""

from coalmine.progress import reporter
from coalmine.reporting.writers import write_figure
from coalmine.stages import _command, _report


def main() -> None:
    """Read the run's results, draw the figure, write its files."""
    arguments = _command.parser(__doc__).parse_args()
    module, settings, results = _report.load(arguments)
    figure, frame = module.build(results, settings)
    write_figure(figure, frame, arguments.out[0].with_suffix(""))
    _report.determine(arguments, "figure")
    reporter(arguments.spec["name"])(f"draws {len(frame)} rows of numbers")


if __name__ == "__main__":
    _command.run(main)
