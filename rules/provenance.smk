# Reads: the container image (container profile), this checkout, this machine
# Writes: state/{image_label,image,source_repo,environment}.json
# Where the results come from. The image is resolved outside of it, before anything is measured.


rule image_label:
    """The label that the image carries."""
    input:
        IMAGE if CONTAINER and Path(IMAGE).is_file() else [],
    output:
        OUT / "state/image_label.json",
    log:
        LOGS / "image_label.log",
    localrule: True
    container:
        IMAGE
    params:
        digest=RUNTIME.digest if RUNTIME else "",  # of an image that is no file
    shell:
        "cat /usr/local/share/invarlock/image.json > {output:q} 2> {log:q}"


rule image:
    """Reference and digest of the image; one that holds other code than this is refused."""
    input:
        label=OUT / "state/image_label.json",
    output:
        OUT / "state/image.json",
    log:
        LOGS / "image.log",
    localrule: True
    container:
        on_host
    params:
        image=IMAGE,
        expected=(
            f"--expected-digest {C['container_digest']}"
            if C["container_digest"]
            else ""
        ),
        package=package_digest(),
        engine=RUNTIME.engine if RUNTIME else "apptainer",
        digest=RUNTIME.digest if RUNTIME else "",
        code=code("provenance"),
    shell:
        "python -m invarlock advanced provenance image --image {params.image:q} --label {input.label:q}"
        " {params.expected} --engine {params.engine} --out {output:q} > {log:q} 2>&1"


rule source_repo:
    """The commit that the measuring code was first used at."""
    output:
        OUT / "state/source_repo.json",
    log:
        LOGS / "source_repo.log",
    localrule: True
    container:
        on_host
    params:
        checkout=workflow.basedir,
        measuring=MEASURING_CODE,
        code=code("provenance"),
    shell:
        "python -m invarlock advanced provenance source --checkout {params.checkout:q} --out {output:q}"
        " > {log:q} 2>&1"


rule environment:
    """The machine that measures, from inside the image if there is one."""
    input:
        IMAGE_RECORD,
    output:
        OUT / "state/environment.json",
    log:
        LOGS / "environment.log",
    localrule: not ON_GPU
    container:
        IMAGE
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        gpu=int(ON_GPU),
        runtime=lambda wc, attempt: 10 * attempt,
    params:
        measuring=MEASURING_CODE,
        code=code("provenance"),
    shell:
        "python -m invarlock advanced provenance environment --out {output:q} > {log:q} 2>&1"
