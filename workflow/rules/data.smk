"""Data: archives are downloaded and checked, then turned into arrays.

In: the sources that the configuration names. Out: `results/data/raw/` (shared by all runs) and, per run,
`data/{private,test,public}/{images,labels}.npy` with `data/classes.json`.
"""

for remote in RUN.all_downloads():

    rule:
        name:
            f"download_{remote.name.split('.')[0].replace('-', '_')}"
        output:
            f"results/data/raw/{remote.name}",
        log:
            f"results/logs/download/{remote.name}.log",
        conda:
            "../../envs/coalmine.yaml"
        resources:
            **asked("download", runtime=120, mem_mb=500),
            # No code hash: how a file is fetched does not change what it holds, which its own hash pins.
        params:
            spec=RUN.download_spec(remote),
        message:
            "Downloading {output}"
        shell:
            "python -m coalmine.stages.download --spec {params.spec:q} --out {output:q} > {log:q} 2>&1"


rule prepare_private:
    """Private and test images of the run."""
    input:
        files=source_files("private"),
    output:
        PRIVATE,
        TEST,
    log:
        f"{ROOT}/logs/prepare/private.log",
    conda:
        "../../envs/coalmine.yaml"
    resources:
        **asked("prepare", runtime=60, mem_mb=4000),
    params:
        spec=lambda wildcards: RUN.spec("prepare", role="private"),
        code=RUN.code("prepare", RUN.source_module("private")),
    message:
        "Preparing private and test data"
    shell:
        """
        python -m coalmine.stages.prepare \
            --spec {params.spec:q} \
            --files {input.files:q} \
            --out {output:q} >{log:q} 2>&1
        """


if PUBLIC:

    rule prepare_public:
        """Public images: they are not derived from private data and may be shared by all shadow models."""
        input:
            files=source_files("public"),
        output:
            PUBLIC,
            f"{ROOT}/data/public/classes.json",
        log:
            f"{ROOT}/logs/prepare/public.log",
        conda:
            "../../envs/coalmine.yaml"
        resources:
            **asked("prepare", runtime=60, mem_mb=4000),
        params:
            spec=lambda wildcards: RUN.spec("prepare", role="public"),
            code=RUN.code("prepare", RUN.source_module("public")),
        message:
            "Preparing public data"
        shell:
            """
            python -m coalmine.stages.prepare \
                --spec {params.spec:q} \
                --files {input.files:q} \
                --out {output:q} >{log:q} 2>&1
            """
