# Reads: baseline, a packed subject, its evaluation
# Writes: <model>/models/<scenario>/ and its edit_metadata.json, where a backend packs the baseline;
#         <model>/reports/<scenario>/run_<n>/{deployable_artifact_validation,backend_inventory,
#         memory_report,load_smoke,inference_smoke}.json of subjects of that class
# What is served: packed by the backend that runs it, loaded and asked in fresh processes.

from invarlock.cli.deployable import DeployableOptions
from invarlock.cli.pack_weights import PackWeightsOptions


rule pack_weights:
    """Pack the baseline by a deployment backend."""
    input:
        OUT / "{model}/models/baseline",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/pack_weights.log",
    wildcard_constraints:
        scenario=any_of(L.packed_by_backend),
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=lambda wc, attempt: int(2000 + 2.2 * weights_mb(wc)) * attempt,
        disk_mb=lambda wc: int(2 * weights_mb(wc)),
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        runtime=edit_minutes,
    params:
        spec=lambda wc: L.edit_spec(wc),
        options=L.options(PackWeightsOptions, "seed", "threads"),
        code=code("pack_weights"),
    shell:
        ROOM
        + USAGE
        + "python -m invarlock advanced pack-weights --baseline {input:q} --spec {params.spec:q}"
        " {params.options} --out {output.folder:q} --metadata {output.metadata:q} > {log[0]:q} 2>&1"


rule deployable:
    """Load a deployable subject in fresh processes, ask it, and record what it is and takes."""
    input:
        baseline=OUT / "{model}/models/baseline",
        subject=L.subject,
        report=RUN / "evaluation.report.json",
    output:
        [RUN / name for name in DEPLOYABLE_RECORDS],
    log:
        LOGS / "{model}/{scenario}/deployable.{run}.log",
    wildcard_constraints:
        scenario=any_of(L.deployable),
    priority: 30
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        gpu=gpus,
        runtime=run_minutes,
    params:
        out=lambda wc: str(RUN).format(**wc),
        state=own_state,
        options=lambda wc: L.options(
            DeployableOptions, scenario=S.scenario(wc.scenario).text
        ),
        code=code("deployable"),
    shell:
        USAGE + "python -m invarlock advanced deployable --baseline {input.baseline:q}"
        " --subject {input.subject:q} --report {input.report:q} {params.options}"
        " --gpus {resources.gpu} --out {params.out:q} > {log[0]:q} 2>&1"
