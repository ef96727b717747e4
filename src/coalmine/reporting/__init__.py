"""Tables and figures: one file each, built from the metrics, scores and measured costs of a run."""
