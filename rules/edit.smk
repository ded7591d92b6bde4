# Reads: <model>/models/baseline/
# Writes: <model>/models/<scenario>/ (removed after its evaluations unless keep_subjects),
#         <model>/edits/<scenario>/{edit,error}_metadata.json (kept)


rule edit:
    """Make an edited checkpoint, tensor by tensor."""
    input:
        OUT / "{model}/models/baseline",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/edit.log",
    wildcard_constraints:
        scenario=any_of(EDITS),
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        runtime=lambda wc: int(10 + weights_mb(wc) / 1000),
    params:
        spec=lambda wc: S.edit_specs[wc.model, wc.scenario],
        seed=C["seed"],
        code=code("edit"),
    shell:
        "python -m invarlock edit --baseline {input:q} --spec {params.spec:q} --seed {params.seed}"
        " --out {output.folder:q} --metadata {output.metadata:q} > {log:q} 2>&1"


rule inject:
    """Make a deliberately damaged checkpoint; one that is not damaged fails the rule."""
    input:
        OUT / "{model}/models/baseline",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/error_metadata.json",
    log:
        LOGS / "{model}/{scenario}/inject.log",
    wildcard_constraints:
        scenario=any_of(DAMAGE),
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        runtime=lambda wc: int(10 + weights_mb(wc) / 1000),
    params:
        error=lambda wc: S.scenario(wc.scenario).error_type,
        parameters=lambda wc: json.dumps(
            dict(S.scenario(wc.scenario).parameters), sort_keys=True
        ),
        seed=C["seed"],
        code=code("inject"),
    shell:
        "python -m invarlock inject --baseline {input:q} --error-type {params.error}"
        " --parameters {params.parameters:q} --seed {params.seed}"
        " --out {output.folder:q} --metadata {output.metadata:q} > {log:q} 2>&1"


rule describe_subject:
    """What differs between the user's two folders."""
    input:
        baseline=OUT / "{model}/models/baseline",
        subject=C["subject"] or [],
    output:
        OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/describe.log",
    wildcard_constraints:
        scenario=any_of(CUSTOM),
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        runtime=lambda wc: int(10 + weights_mb(wc) / 500),
    params:
        label=C["edit_label"],
        code=code("edit"),
    shell:
        "python -m invarlock edit --baseline {input.baseline:q} --spec custom --label {params.label:q}"
        " --subject {input.subject:q} --metadata {output:q} > {log:q} 2>&1"
