"""The audit: the design before any model is made, and the scores of every attack after.

In: private labels; logits of all models. Out: `audit/canaries.csv`, `audit/membership.npy`; `scores/<method>.npz`,
`metrics/<method>.json`.
"""

for case in ("worst", "average"):

    rule:
        name:
            f"design_{case}"
        input:
            labels=PRIVATE[1],
            classes=PRIVATE[2],
        output:
            design_files(case),
            design_files(case)[0].replace("canaries.csv", "design.json"),
        log:
            f"{ROOT}/logs/design/{case}.log",
        conda:
            "../../envs/coalmine.yaml"
        resources:
            **asked("design", runtime=10, mem_mb=1000),
        params:
            spec=RUN.spec("design", case=case),
            code=RUN.code("design"),
        message:
            "Drawing canaries and membership"
        shell:
            """
            python -m coalmine.stages.design \
                --spec {params.spec:q} \
                --labels {input.labels:q} \
                --classes {input.classes:q} \
                --out {output:q} >{log:q} 2>&1
            """


rule score:
    """Every attack against one method, with intervals."""
    input:
        labels=PRIVATE[1],
        design=audit_design_of,
        test=TEST,
        logits=logits_of,
        synthetic=synthetic_of,
        privacy=privacy_of,
        teacher=teacher_logits_of,
    output:
        f"{ROOT}/scores/{{method}}.npz",
        f"{ROOT}/metrics/{{method}}.json",
    log:
        f"{ROOT}/logs/score/{{method}}.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        **asked("score", runtime=60, mem_mb=4000),
    params:
        spec=lambda wildcards: RUN.spec("score", method=wildcards.method),
        code=RUN.code("score"),
    message:
        "Attacking {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.score \
            --spec {params.spec:q} \
            --labels {input.labels:q} \
            --design {input.design:q} \
            --test {input.test:q} \
            --logits {input.logits:q} \
            --synthetic {input.synthetic:q} \
            --privacy {input.privacy:q} \
            --teacher {input.teacher:q} \
            --out {output:q} >{log:q} 2>&1
        """
