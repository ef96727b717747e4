"""Methods: experts, synthetic sets, audited models and their logits, in batches of shadow models.

In: private data and audit design. Out: `privacy/<method>.json` of methods that claim differential privacy,
`pretrained/<name>.safetensors`, denoisers of public data only; `experts/<experts>/<shadow>.safetensors`, shared by the
methods that match them, `generators/<method>/<shadow>.safetensors`, `synthetic/<method>/<shadow>.npz`,
`models/<method>/<shadow>.safetensors`, `logits/<method>/<shadow>.npz`. The rules of a stage differ only in which shadow
models they make. Which stages make the sets and models of a method depends on what its file defines (`methods_that`): a
data-free method is given the models of its teacher and no private data.
"""


rule account:
    """The guarantee of a method that claims differential privacy, and the noise that it needs."""
    input:
        labels=PRIVATE[1],
        design=design_of,
    output:
        f"{ROOT}/privacy/{{method}}.json",
    log:
        f"{ROOT}/logs/account/{{method}}.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        runtime=60,
        mem_mb=4000,
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
            --out {output:q} 2>&1 | tee {log:q}
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
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            runtime=2880,
            mem_mb=16000,
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
                --out {output:q} 2>&1 | tee {log:q}
            """


for part in parts():

    rule:
        name:
            f"experts_{part.name}"
        input:
            private=PRIVATE,
            design=design_of,
        output:
            part.outputs("experts", "safetensors", of="experts"),
        log:
            f"{ROOT}/logs/experts/{{experts}}-{part.name}.log",
        wildcard_constraints:
            experts=pattern(RUN.experts if part.count == len(RUN.shadows) else []),
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=2880,
            mem_mb=16000,
        params:
            spec=lambda wildcards: RUN.spec("experts", name=wildcards.experts),
            code=RUN.code("experts"),
        message:
            f"Training the {{wildcards.experts}} experts of shadow models {part.told}"
        shell:
            """
            python -m coalmine.stages.experts \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} 2>&1 | tee {log:q}
            """

    rule:
        name:
            f"fit_{part.name}"
        input:
            private=PRIVATE,
            design=design_of,
            privacy=privacy_of,
            pretrained=pretrained_of,
        output:
            part.outputs("generators", "safetensors"),
        log:
            f"{ROOT}/logs/fit/{{method}}-{part.name}.log",
        wildcard_constraints:
            method=methods_that_fit(part.count),
        priority: 10  # the longest jobs first: at the end, nothing waits for one alone
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=2880,
            mem_mb=16000,
        params:
            spec=lambda wildcards: RUN.spec("fit", method=wildcards.method),
            code=lambda wildcards: RUN.method_code("fit", wildcards.method),
        message:
            f"Fitting the {{wildcards.method}} generative models {part.told}"
        shell:
            """
            python -m coalmine.stages.fit \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --privacy {input.privacy:q} \
                --pretrained {input.pretrained:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} 2>&1 | tee {log:q}
            """

    rule:
        name:
            f"synthesize_{part.name}"
        input:
            private=PRIVATE,
            design=design_of,
            public=public_of,
            privacy=synthesis_privacy_of,
            experts=experts_of,
            generators=generators_of,
        output:
            part.outputs("synthetic", "npz"),
        log:
            f"{ROOT}/logs/synthesize/{{method}}-{part.name}.log",
        wildcard_constraints:
            method=methods_that("synthesize", shadows=part.count),
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=720,
            mem_mb=8000,
        params:
            spec=lambda wildcards: RUN.spec("synthesize", method=wildcards.method),
            code=lambda wildcards: RUN.method_code("synthesize", wildcards.method),
        message:
            f"Synthetic sets of {{wildcards.method}} for shadow models {part.told}"
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
                --out {output:q} 2>&1 | tee {log:q}
            """

    rule:
        name:
            f"train_{part.name}"
        input:
            private=PRIVATE,
            design=design_of,
            synthetic=synthetic_of,
            privacy=training_privacy_of,
        output:
            part.outputs("models", "safetensors"),
        log:
            f"{ROOT}/logs/train/{{method}}-{part.name}.log",
        wildcard_constraints:
            method=methods_that("train", "synthesize", "reuse", shadows=part.count),
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=720,
            mem_mb=8000,
        params:
            spec=lambda wildcards: RUN.spec("train", method=wildcards.method),
            code=lambda wildcards: RUN.method_code("train", wildcards.method),
        message:
            f"Training the {{wildcards.method}} models {part.told}"
        shell:
            """
            python -m coalmine.stages.train \
                --spec {params.spec:q} \
                --private {input.private:q} \
                --design {input.design:q} \
                --synthetic {input.synthetic:q} \
                --privacy {input.privacy:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} 2>&1 | tee {log:q}
            """

    rule:
        name:
            f"distil_{part.name}"
        input:
            teachers=teachers_of,
        output:
            part.outputs("synthetic", "npz"),
            part.outputs("models", "safetensors"),
        log:
            f"{ROOT}/logs/distil/{{method}}-{part.name}.log",
        wildcard_constraints:
            method=methods_that("distil", shadows=part.count),
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=2880,
            mem_mb=8000,
        params:
            spec=lambda wildcards: RUN.spec("distil", method=wildcards.method),
            code=lambda wildcards: RUN.method_code("distil", wildcards.method),
        message:
            f"Distilling the {{wildcards.method}} students {part.told}"
        shell:
            """
            python -m coalmine.stages.distil \
                --spec {params.spec:q} \
                --teachers {input.teachers:q} \
                --device {resources.device} --mode {resources.mode} --threads {threads} \
                --out {output:q} 2>&1 | tee {log:q}
            """

    rule:
        name:
            f"logits_{part.name}"
        input:
            private=PRIVATE,
            design=design_of,
            test=TEST,
            models=models_of,
            synthetic=synthetic_of,
        output:
            part.outputs("logits", "npz"),
        log:
            f"{ROOT}/logs/logits/{{method}}-{part.name}.log",
        wildcard_constraints:
            method=methods_with(part.count),
        conda:
            "../../envs/coalmine.yaml"
        threads: 1
        resources:
            gpu=int(ON_GPU),
            device=EXECUTION.device,
            mode=EXECUTION.mode,
            runtime=60,
            mem_mb=8000,
        params:
            spec=lambda wildcards: RUN.spec("logits", method=wildcards.method),
            code=RUN.code("logits"),
        message:
            f"Querying the {{wildcards.method}} models {part.told}"
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
                --out {output:q} 2>&1 | tee {log:q}
            """
