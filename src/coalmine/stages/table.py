"""Build one table: csv for machines, html and tex for people."""

from coalmine.progress import reporter
from coalmine.reporting.writers import write_table
from coalmine.stages import _command


def main() -> None:
    """Read the run's results, build the table, write its files."""
    command = _command.parser(__doc__)
    _command.add_results(command)
    arguments = command.parse_args()
    module, settings, results = _command.report(arguments)
    frame = module.build(results, settings)
    layout = module.layout(frame) if hasattr(module, "layout") else None
    write_table(frame, settings.title, (), arguments.out[0].with_suffix(""), layout)
    reporter(arguments.spec["name"])(f"{len(frame)} rows")


if __name__ == "__main__":
    _command.run(main)
