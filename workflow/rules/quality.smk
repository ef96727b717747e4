"""What synthetic images are worth: as images, and to classifiers that learn from them.

In: private and test data, audit design, synthetic sets. Out: `quality/<method>.json`, `sizes/<method>.json`,
`recipes/<method>.json`.
"""


rule quality:
    """Fréchet distance, precision and recall, and nearness of one method's images."""
    input:
        private=PRIVATE,
        design=audit_design_of,
        synthetic=synthetic_of,
        features=FEATURES if RUN.quality_network == "features" else [],
        inception=inception_weights() if RUN.quality_network == "inception" else [],
    output:
        f"{ROOT}/quality/{{method}}.json",
    log:
        f"{ROOT}/logs/quality/{{method}}.log",
    wildcard_constraints:
        method=methods_that("synthesize", "distil"),
    conda:
        "../../envs/coalmine.yaml"
    threads: THREADS
    resources:
        **asked("quality", gpu=GPU, runtime=240, mem_mb=8000),
        device=EXECUTION.device,
    params:
        spec=lambda wildcards: RUN.spec("quality", method=wildcards.method),
        code=RUN.code("quality"),
    message:
        "Measuring the quality of the images of {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.quality \
            --spec {params.spec:q} \
            --private {input.private:q} \
            --design {input.design:q} \
            --synthetic {input.synthetic:q} \
            --features {input.features:q} \
            --inception {input.inception:q} \
            --device {resources.device} --threads {threads} \
            --out {output:q} >{log:q} 2>&1
        """


rule sizes:
    """Accuracy of classifiers by the number of one method's images that they learn from."""
    input:
        private=PRIVATE,
        design=audit_design_of,
        test=TEST,
        synthetic=synthetic_of,
    output:
        f"{ROOT}/sizes/{{method}}.json",
    log:
        f"{ROOT}/logs/sizes/{{method}}.log",
    wildcard_constraints:
        method=methods_that("synthesize", "distil"),
    conda:
        "../../envs/coalmine.yaml"
    threads: THREADS
    resources:
        **asked("sizes", gpu=GPU, runtime=1440, mem_mb=8000),
        device=EXECUTION.device,
        mode=EXECUTION.mode,
    params:
        spec=lambda wildcards: RUN.spec("sizes", method=wildcards.method),
        code=RUN.code("sizes"),
    message:
        "Training on more and more images of {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.sizes \
            --spec {params.spec:q} \
            --private {input.private:q} \
            --design {input.design:q} \
            --test {input.test:q} \
            --synthetic {input.synthetic:q} \
            --device {resources.device} --mode {resources.mode} --threads {threads} \
            --out {output:q} >{log:q} 2>&1
        """


rule recipes:
    """Accuracy of classifiers by recipe, on synthetic and on real validation data."""
    input:
        private=PRIVATE,
        design=audit_design_of,
        test=TEST,
        synthetic=synthetic_of,
    output:
        f"{ROOT}/recipes/{{method}}.json",
    log:
        f"{ROOT}/logs/recipes/{{method}}.log",
    wildcard_constraints:
        method=methods_that("synthesize", "distil"),
    conda:
        "../../envs/coalmine.yaml"
    threads: THREADS
    resources:
        **asked("recipes", gpu=GPU, runtime=1440, mem_mb=8000),
        device=EXECUTION.device,
        mode=EXECUTION.mode,
    params:
        spec=lambda wildcards: RUN.spec("recipes", method=wildcards.method),
        code=RUN.code("recipes"),
    message:
        "Ranking recipes on the images of {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.recipes \
            --spec {params.spec:q} \
            --private {input.private:q} \
            --design {input.design:q} \
            --test {input.test:q} \
            --synthetic {input.synthetic:q} \
            --device {resources.device} --mode {resources.mode} --threads {threads} \
            --out {output:q} >{log:q} 2>&1
        """
