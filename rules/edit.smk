# Reads: <model>/models/baseline/
# Writes: <model>/models/<scenario>/ (removed after its evaluations unless keep_subjects),
#         <model>/edits/<scenario>/{edit,error}_metadata.json (kept), <model>/training_windows.json

TRAINING = [s for s in EDITS if S.scenario(s).edit_type in TRAINED]


rule edit:
    """Make an edited checkpoint, tensor by tensor."""
    input:
        edited_baseline,
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/edit.log",
    benchmark:
        LOGS / "{model}/{scenario}/edit.benchmark.tsv"
    wildcard_constraints:
        scenario=any_of([s for s in EDITS if s not in TRAINING]),
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        runtime=edit_minutes,
    params:
        spec=edit_spec,
        seed=C["seed"],
        code=code("edit"),
    shell:
        ROOM
        + "python -m invarlock edit --baseline {input:q} --spec {params.spec:q} --seed {params.seed}"
        " --out {output.folder:q} --metadata {output.metadata:q} > {log:q} 2>&1"


# None that is judged or calibrated on.
use rule windows as training_windows with:
    input:
        revisions=OUT / "state/model_revisions.json",
        tokenizer=OUT / "{model}/models/baseline",
        others=expand(
            OUT / "{model}" / "{file}",
            file=[
                "windows.json",
                *[f"presets/windows_seed_{n}.json" for n in S.calibration_seeds()],
            ],
            allow_missing=True,
        ),
    output:
        OUT / "{model}/training_windows.json",
    log:
        LOGS / "{model}/training_windows.log",
    params:
        geometry=lambda wc: geometry(wc, C["training"]["windows"]),
        seed=S.calibration_seeds().stop,
        apart="--exclude",


rule train:
    """Make an edited checkpoint by training: the same command, with a text and a model."""
    input:
        baseline=edited_baseline,
        windows=OUT / "{model}/training_windows.json",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/edit.log",
    benchmark:
        LOGS / "{model}/{scenario}/edit.benchmark.tsv"
    wildcard_constraints:
        scenario=any_of(TRAINING),
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=train_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        gpu=gpus,
        runtime=lambda wc, attempt: train_minutes(wc, attempt) + ROOM_MINUTES,
    params:
        spec=edit_spec,
        loading=loading,
        code=code("edit"),
    shell:
        ROOM
        + "python -m invarlock edit --baseline {input.baseline:q} --spec {params.spec:q}"
        " --windows {input.windows:q} {params.loading} --gpus {resources.gpu}"
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
    benchmark:
        LOGS / "{model}/{scenario}/inject.benchmark.tsv"
    wildcard_constraints:
        scenario=any_of(DAMAGE),
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        runtime=edit_minutes,
    params:
        error=lambda wc: S.scenario(wc.scenario).error_type,
        parameters=lambda wc: json.dumps(
            dict(S.scenario(wc.scenario).parameters), sort_keys=True
        ),
        seed=C["seed"],
        code=code("inject"),
    shell:
        ROOM
        + "python -m invarlock inject --baseline {input:q} --error-type {params.error}"
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
        mem_mb=lambda wc, attempt: 1000 * attempt + edit_mb(wc, attempt),
        runtime=lambda wc, attempt: int(10 + weights_mb(wc) / 500) * attempt,
    params:
        label=given("--label", C["edit_label"]),
        remote=on("allow_remote_code", "--allow-remote-code"),
        state=state_of(C["subject"]),
        code=code("edit"),
    shell:
        "python -m invarlock edit --baseline {input.baseline:q} --spec custom {params.label}"
        " --subject {input.subject:q} {params.remote} --metadata {output:q} > {log:q} 2>&1"
