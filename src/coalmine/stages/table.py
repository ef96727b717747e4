"""Build one table: csv for machines, html and tex for people."""

from coalmine.progress import reporter
from coalmine.reporting.writers import write_table
from coalmine.stages import _command, _report


def main() -> None:
    """Read the run's results, build the table, write its files."""
    arguments = _command.parser(__doc__).parse_args()
    module, settings, results = _report.load(arguments)
    frame = module.build(results, settings)
    layout = module.layout(frame) if hasattr(module, "layout") else None
    write_table(frame, settings.title, (), arguments.out[0].with_suffix(""), layout)
    _report.determine(arguments, "table")
    reporter(arguments.spec["name"])(f"{len(frame)} rows")


if __name__ == "__main__":
    _command.run(main)
