"""``backend_inventory.json`` beside the report of a deployable subject."""

from typing import Annotated, Literal

from invarlock.documents.fields import AboveZero, Closed, Count, NotNegative, Sha256, about

TITLE = "backend_inventory.json"


class Module(Closed, kw_only=True):
    """One tensor of the model."""

    format: Annotated[str, about("How its values are stored, as people call it.")]
    packed: Annotated[bool, about("Whether it is stored as something else than its values.")]
    bits: Annotated[AboveZero, about("Of one stored value, scales not counted.")]
    elements: Annotated[Count, about("Values.")]
    bytes: Annotated[Count, about("Bytes stored, with scales and the like.")]


class Footprint(Closed):
    """Memory of the loaded model."""

    reported_bytes: Annotated[Count, about("As in memory_report.json; 0: it was not loaded.")]


class BackendInventory(Closed, kw_only=True):
    """What the deployable subject consists of, and what runs it."""

    schema: Annotated[Literal["invarlock/backend-inventory-v1"], about("Format.")]
    backend: Annotated[str | None, about("What runs it; null where nothing did.")]
    backend_version: Annotated[str | None, about("Version of the backend's package.")]
    versions: Annotated[dict[str, str], about("Packages that run it -> version.")]
    kernels: Annotated[dict[str, int], about("What multiplies -> matrices that it multiplies.")]
    device: Annotated[str | None, about("Where.")]
    detail: Annotated[dict[str, str], about("What else says which code runs.")]
    format: Annotated[str, about("Format of the files; as in the report, /meta/execution.")]
    title: Annotated[str, about("What people call it.")]
    baseline_checkpoint_sha256: Annotated[Sha256, about("The baseline.")]
    subject_checkpoint_sha256: Annotated[Sha256 | None, about("The subject.")]
    load_smoke: Annotated[bool, about("As in load_smoke.json.")]
    inference_smoke: Annotated[bool, about("As in inference_smoke.json.")]
    quantized_module_count: Annotated[Count, about("Packed tensors.")]
    quantized_module_types: Annotated[list[str], about("Their formats.")]
    modules: Annotated[
        dict[str, Module], about("Packed tensors and matrices of the blocks, by name.")
    ]
    claimed_bits: Annotated[
        AboveZero | None, about("Bits of a weight that the subject is said to have.")
    ]
    claimed_by: Annotated[
        Literal["scenario", "config.json", "weights"],
        about("Who says so; weights: nobody, it is the most common one."),
    ]
    stored_bits: Annotated[
        NotNegative | None,
        about("Bytes of the matrices of the blocks, scales included, over their values; 8 each."),
    ]
    bytes_packed: Annotated[Count, about("Files of weights.")]
    bytes_dense: Annotated[Count, about("The same weights with two bytes each.")]
    memory_footprint: Footprint


DOCUMENT = BackendInventory
