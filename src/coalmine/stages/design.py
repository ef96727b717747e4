"""Draw the audit design: which samples are canaries, their wrong labels, and which models they are in."""

from pathlib import Path

from coalmine.artefacts import digest, read_npy, write_json
from coalmine.audit.design import average_case, draw_design
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.run_files import design_digest, read_classes, write_design
from coalmine.stages import _command


def main() -> None:
    """Draw the design for the private labels and write canaries, membership and what they depend on."""
    command = _command.parser(__doc__)
    command.add_argument("--labels", type=Path, required=True, help="data/private/labels.npy")
    command.add_argument("--classes", type=Path, required=True, help="data/classes.json")
    arguments = command.parse_args()
    spec = arguments.spec
    labels = read_npy(arguments.labels, "int64", (None,))
    classes = len(read_classes(arguments.classes))

    try:
        design = draw_design(labels, classes, spec["shadows"], spec["canaries"], spec["clean"], spec["seed"])
    except ValueError as error:
        remedy = "Change `shadows` or `audit` in the configuration."
        raise CoalmineError(f"No audit can be designed: {error}. {remedy}") from error
    if spec["average"]:
        design = average_case(design)
    canaries, membership, record = arguments.out
    write_design(canaries, membership, design)
    write_json(
        record,
        _command.header("design", spec, digests={"labels": digest(labels), "design": design_digest(design)}),
    )
    reporter("design")(
        f"{int(design.mislabelled.sum())} mislabelled canaries and {int((~design.mislabelled).sum())} audited samples "
        f"with their right label, each in half of {spec['shadows']} shadow models"
    )


if __name__ == "__main__":
    _command.run(main)
