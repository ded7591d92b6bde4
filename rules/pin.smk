# Reads: the sources named in the configuration
# Writes: state/scenarios.json, state/model_revisions.json, state/config.json
# The only stage that may ask the network what a name means, and only with net: 1.


rule scenarios:
    """The effective scenario manifest: everything later reads only this."""
    output:
        OUT / "state/scenarios.json",
    log:
        LOGS / "scenarios.log",
    localrule: True
    container:
        IMAGE
    params:
        options=L.selection(),
        entries=[scenario.text for scenario in S.scenarios],
        code=code("scenarios"),
    shell:
        "python -m invarlock scenarios {params.options} --out {output:q} > {log:q} 2>&1"


rule pin_revisions:
    """Revision and sha256 of every file of every model and data set."""
    output:
        update(OUT / "state/model_revisions.json"),  # an earlier pin is read and kept
    log:
        LOGS / "pin_revisions.log",
    localrule: True
    container:
        FETCHING_IMAGE
    resources:
        net=C["net"],  # no parameter: with or without the network the result is the same
    params:
        options=L.options(
            PinOptions,
            model=[f"{m.model_id}={m.source}" for m in S.models],
            text=L.text_sources,
        ),
        local=state_of(*L.local_sources()),
        code=code("pin"),
    shell:
        "python -m invarlock pin {params.options} $([ {resources.net} -eq 0 ] || echo --net)"
        " --out {output:q} > {log:q} 2>&1"


rule fetch:
    """Pin, download and place everything (net: 1); what follows needs no network."""
    input:
        [OUT / m.slug / "baseline.json" for m in S.models],
        L.window_files(),


rule effective_config:
    """The effective settings and where each came from."""
    input:
        refreshed_settings,
    output:
        OUT / "state/config.json",
    log:
        LOGS / "effective_config.log",
    localrule: True
    container:
        on_host
    shell:
        'printf %s "$INVARLOCK_SETTINGS" > {output:q} 2> {log:q}'
