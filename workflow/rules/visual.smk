"""Visual leakage: how near synthetic images are to private ones, whatever an attack on the models makes of them.

In: private and public data, audit design, synthetic sets. Out: `pretrained/features.safetensors`, a network of public
data only that all shadow models share; `visual/<method>.npz`, `visual/<method>.json`.
"""


rule pretrain:
    """The network whose features tell how alike two images look."""
    input:
        public=PUBLIC,
    output:
        FEATURES,
        f"{ROOT}/pretrained/features.json",
    log:
        f"{ROOT}/logs/pretrain/features.log",
    conda:
        "../../envs/coalmine.yaml"
    threads: THREADS
    resources:
        **asked("pretrain", gpu=GPU, runtime=720, mem_mb=8000),
        device=EXECUTION.device,
    params:
        spec=lambda wildcards: RUN.spec("pretrain"),
        code=RUN.code("pretrain"),
    message:
        "Training a network on public data, to compare images with"
    shell:
        """
        python -m coalmine.stages.pretrain \
            --spec {params.spec:q} \
            --public {input.public:q} \
            --device {resources.device} --threads {threads} \
            --out {output:q} >{log:q} 2>&1
        """


rule resemble:
    """Distances of one method's synthetic images to private, held-out and public images."""
    input:
        private=PRIVATE,
        design=audit_design_of,
        synthetic=synthetic_of,
        features=FEATURES if RUN.compares_features else [],
        public=PUBLIC,
    output:
        f"{ROOT}/visual/{{method}}.npz",
        f"{ROOT}/visual/{{method}}.json",
    log:
        f"{ROOT}/logs/resemble/{{method}}.log",
    wildcard_constraints:
        method=methods_that("synthesize", "distil"),
    conda:
        "../../envs/coalmine.yaml"
    threads: THREADS
    resources:
        **asked("resemble", gpu=GPU, runtime=240, mem_mb=8000),
        device=EXECUTION.device,
    params:
        spec=lambda wildcards: RUN.spec("resemble", method=wildcards.method),
        code=RUN.code("resemble"),
    message:
        "Comparing the images of {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.resemble \
            --spec {params.spec:q} \
            --private {input.private:q} \
            --design {input.design:q} \
            --synthetic {input.synthetic:q} \
            --features {input.features:q} \
            --public {input.public:q} \
            --device {resources.device} --threads {threads} \
            --out {output:q} >{log:q} 2>&1
        """
