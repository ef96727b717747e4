"""Tables and figures, under the run and, for the run of the configuration, as `results/tableN.csv` and so on.

In: metrics, scores and measured costs. Out: csv, html and tex of tables; png, pdf and csv of figures.
"""


rule tables:
    """Every table of the run."""
    input:
        [f"results/{name}.csv" for name in RUN.reports("tables")],
    localrule: True


rule figures:
    """Every figure of the run."""
    input:
        [f"results/{name}.csv" for name in RUN.reports("figures")],
    localrule: True


rule table:
    """One table, from the results of the methods that it lists."""
    input:
        lambda wildcards: report_inputs("tables", wildcards.table),
    output:
        html=report(
            f"{ROOT}/{{table}}.html",
            category="Tables",
            caption="../report/table.rst",
            labels={"table": "{table}"},
        ),
        others=multiext(f"{ROOT}/{{table}}", ".csv", ".tex"),
    log:
        f"{ROOT}/logs/table/{{table}}.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        **asked("table", runtime=10, mem_mb=1000),
    params:
        spec=lambda wildcards: RUN.spec("table", name=wildcards.table),
        code=lambda wildcards: RUN.code(
            "table", f"coalmine.reporting.{wildcards.table}"
        ),
    message:
        "Writing {wildcards.table}"
    shell:
        """
        python -m coalmine.stages.table \
            --spec {params.spec:q} \
            --out {output:q} >{log:q} 2>&1
        """


rule figure:
    """One figure, with the numbers that it draws beside it."""
    input:
        lambda wildcards: report_inputs("figures", wildcards.figure),
    output:
        png=report(
            f"{ROOT}/{{figure}}.png",
            category="Figures",
            caption="../report/figure.rst",
            labels={"figure": "{figure}"},
        ),
        others=multiext(f"{ROOT}/{{figure}}", ".pdf", ".csv"),
    log:
        f"{ROOT}/logs/figure/{{figure}}.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        **asked("figure", runtime=10, mem_mb=1000),
    params:
        spec=lambda wildcards: RUN.spec("figure", name=wildcards.figure),
        code=lambda wildcards: RUN.code(
            "figure", f"coalmine.reporting.{wildcards.figure}"
        ),
    message:
        "Drawing {wildcards.figure}"
    shell:
        """
        python -m coalmine.stages.figure \
            --spec {params.spec:q} \
            --out {output:q} >{log:q} 2>&1
        """


# What was written, whole or not at all, like everything else.
PUBLISH = """
    python -m coalmine.checksums {input:q} 2> {log:q}
    made=({input:q})
    for target in {output:q}; do
        for file in "${{made[@]}}"; do
            [ "$(basename "$file")" != "$(basename "$target")" ] || cp "$file" "$target.tmp"
        done
        mv "$target.tmp" "$target"
    done 2>> {log:q}
    """


rule publish_table:
    """The finished table of this run, where people look for it."""
    input:
        multiext(f"{ROOT}/{{table}}", ".csv", ".html", ".tex"),
    output:
        multiext("results/{table}", ".csv", ".html", ".tex"),
    log:
        f"{ROOT}/logs/publish/{{table}}.log",
    localrule: True
    conda:
        "../../envs/coalmine.yaml"
    # The same files are published by all runs: those of another one must not pass for this one's.
    params:
        run=RUN.name,
    message:
        "Publishing {output[0]}"
    shell:
        PUBLISH


rule publish_figure:
    """The finished figure of this run, where people look for it."""
    input:
        multiext(f"{ROOT}/{{figure}}", ".png", ".pdf", ".csv"),
    output:
        multiext("results/{figure}", ".png", ".pdf", ".csv"),
    log:
        f"{ROOT}/logs/publish/{{figure}}.log",
    localrule: True
    conda:
        "../../envs/coalmine.yaml"
    # The same files are published by all runs: those of another one must not pass for this one's.
    params:
        run=RUN.name,
    message:
        "Publishing {output[0]}"
    shell:
        PUBLISH


rule configuration:
    """The whole configuration of the run, every default filled in."""
    output:
        f"{ROOT}/config.json",
    log:
        f"{ROOT}/logs/configuration.log",
    localrule: True
    conda:
        "../../envs/coalmine.yaml"
    # A function: of a plain text, Snakemake would take braces for wildcards.
    params:
        spec=lambda wildcards: RUN.spec("configuration"),
    message:
        "Writing down the configuration"
    shell:
        "python -m json.tool --sort-keys - {output:q}.tmp <<< {params.spec:q} 2> {log:q}"
        " && mv {output:q}.tmp {output:q}"
