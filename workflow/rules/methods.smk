"""Methods: experts, synthetic sets, audited models and their logits, in batches of shadow models.

In: private data and audit design. Out: `privacy/<method>.json` of methods that claim differential privacy,
`pretrained/<name>.safetensors`, denoisers of public data only; `experts/<experts>/<shadow>.safetensors`, shared by the
methods that match them, `generators/<method>/<shadow>.safetensors`, `synthetic/<method>/<shadow>.npz`,
`models/<method>/<shadow>.safetensors`, `logits/<method>/<shadow>.npz`. The rules of a stage differ only in which shadow
models they make, of which method. Which stages make the sets and models of a method depends on what its file defines: a
data-free method is given the models of its teacher and no private data.
"""


rule account:
    """The guarantee of a method that claims differential privacy, and the noise that it needs."""
    input:
        labels=PRIVATE[1],
        design=audit_design_of,
    output:
        f"{ROOT}/privacy/{{method}}.json",
    log:
        f"{ROOT}/logs/account/{{method}}.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        **asked("account", runtime=60, mem_mb=4000),
    params:
        spec=lambda wildcards: RUN.spec("account", method=wildcards.method),
        code=lambda wildcards: RUN.method_code("account", wildcards.method),
    message:
        "Accounting for the privacy of {wildcards.method}"
    shell:
        """
        python -m coalmine.stages.account \
            --spec {params.spec:q} \
            --labels {input.labels:q} \
            --design {input.design:q} \
            --out {output:q} >{log:q} 2>&1
        """


if RUN.pretrained:

    rule pretrain_denoiser:
        """A denoiser that public data have trained, for all shadow models to start from."""
        input:
            public=PUBLIC,
        output:
            f"{ROOT}/pretrained/{{pretrained}}.safetensors",
            f"{ROOT}/pretrained/{{pretrained}}.json",
        log:
            f"{ROOT}/logs/pretrain/{{pretrained}}.log",
        priority: 10  # much waits for it
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("pretrain_denoiser", gpu=GPU, runtime=2880, mem_mb=16000),
            device=EXECUTION.device,
        params:
            spec=lambda wildcards: RUN.spec(
                "pretrain_denoiser", name=wildcards.pretrained
            ),
            code=RUN.code("pretrain_denoiser"),
        message:
            "Training the denoiser {wildcards.pretrained} on public data"
        shell:
            """
            python -m coalmine.stages.pretrain_denoiser \
                --spec {params.spec:q} \
                --public {input.public:q} \
                --device {resources.device} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("experts"):

    rule:
        """Trajectories of networks on private data."""
        name:
            part.rule
        input:
            private=PRIVATE,
            design=part.design,
        output:
            part.outputs("experts", "safetensors"),
        log:
            part.log,
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("experts", gpu=GPU, runtime=2880, mem_mb=16000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Training the {part.of} experts of shadow models {part.told}"
        shell:
            """
            python -m coalmine.stages.experts \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("fit"):

    rule:
        """Generative models, fitted to private data."""
        name:
            part.rule
        input:
            private=PRIVATE,
            design=part.design,
            privacy=part.privacy,
            pretrained=part.pretrained,
        output:
            part.outputs("generators", "safetensors"),
        log:
            part.log,
        priority: 10  # the longest jobs first: at the end, nothing waits for one alone
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("fit", gpu=GPU, runtime=2880, mem_mb=16000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Fitting the {part.of} generative models {part.told}"
        shell:
            """
            python -m coalmine.stages.fit \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --privacy {input.privacy:q} \
                --pretrained {input.pretrained:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("synthesize"):

    rule:
        """What a method publishes in place of the private data."""
        name:
            part.rule
        input:
            private=PRIVATE,
            design=part.design,
            public=part.public,
            privacy=part.privacy,
            experts=part.experts,
            generators=part.generators,
        output:
            part.outputs("synthetic", "npz"),
        log:
            part.log,
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("synthesize", gpu=GPU, runtime=720, mem_mb=8000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Synthetic sets of {part.of} for shadow models {part.told}"
        shell:
            """
            python -m coalmine.stages.synthesize \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --public {input.public:q} \
                --privacy {input.privacy:q} \
                --experts {input.experts:q} \
                --generators {input.generators:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("train"):

    rule:
        """The audited models."""
        name:
            part.rule
        input:
            private=PRIVATE,
            design=part.design,
            synthetic=part.synthetic,
            privacy=part.privacy,
        output:
            part.outputs("models", "safetensors"),
        log:
            part.log,
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("train", gpu=GPU, runtime=720, mem_mb=8000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Training the {part.of} models {part.told}"
        shell:
            """
            python -m coalmine.stages.train \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --synthetic {input.synthetic:q} \
                --privacy {input.privacy:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("distil"):

    rule:
        """Students of audited models, and the images that taught them."""
        name:
            part.rule
        input:
            teachers=part.teachers,
        output:
            part.outputs("synthetic", "npz"),
            part.outputs("models", "safetensors"),
        log:
            part.log,
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("distil", gpu=GPU, runtime=2880, mem_mb=8000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Distilling the {part.of} students {part.told}"
        shell:
            """
            python -m coalmine.stages.distil \
                --spec {params.spec:q} \
                --teachers {input.teachers:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


for part in parts("logits"):

    rule:
        """Answers of the audited models to the queries."""
        name:
            part.rule
        input:
            private=PRIVATE,
            design=part.design,
            test=TEST,
            models=part.models,
            synthetic=part.synthetic,
        output:
            part.outputs("logits", "npz"),
        log:
            part.log,
        conda:
            "../../envs/coalmine.yaml"
        threads: THREADS
        resources:
            **asked("logits", gpu=GPU, runtime=60, mem_mb=8000),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
        params:
            spec=part.spec,
            code=part.code,
        message:
            f"Querying the {part.of} models {part.told}"
        shell:
            """
            python -m coalmine.stages.logits \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --test {input.test:q} \
                --models {input.models:q} \
                --synthetic {input.synthetic:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} >{log:q} 2>&1
            """


# Snakemake keeps each rule's function among the variables that it copies whenever it formats a job's message or command:
# with thousands of rules, minutes. These are called by nobody, as what their rules run is a command line.
for function in [name for name in globals() if name.startswith("__") and "." in name]:
    del globals()[function]
