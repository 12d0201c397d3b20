"""A model's configuration and statistics as Triton's clients read them: in JSON, and as fields of its messages.

Source: the extensions of model configuration and of statistics (triton-inference-server, docs/protocol).
"""

from dataclasses import asdict
from typing import Any

from edge_client.inference.errors import UnknownModelError
from edge_client.inference.server.protocol import TensorMetadata
from edge_client.inference.server.service import ENCODED, InferenceService
from edge_client.inference.statistics import Statistics

_NOTHING = {"count": 0, "ns": 0}
"""There is no cache of answers."""


def model_config(service: InferenceService, model: str, version: str = "") -> dict[str, Any]:
    """Return the configuration of a model.

    Raises:
        RequestError: as `InferenceService.serving`.

    """
    info = service.serving(model, version).recognizer.info
    metadata = service.model_metadata(model, version)
    return {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": "edgenewton",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": service.limits.max_batch,
        "input": [{**_tensor(tensor), "optional": True} for tensor in metadata.inputs],  # a request has one of them
        "output": [_tensor(tensor) for tensor in metadata.outputs],
        "instance_group": [{"name": metadata.name, "kind": "KIND_AUTO", "count": 1}],
        "dynamic_batching": {},
        "parameters": {
            name: {"string_value": text}
            for name, text in (
                ("task", info.task),
                ("step", str(info.step)),
                ("digest", info.digest),
                ("software_version", info.software_version),
            )
        },
    }


def model_statistics(service: InferenceService, model: str = "", version: str = "") -> dict[str, Any]:
    """Return the statistics of the versions that served last.

    Args:
        service: whose.
        model: name; empty for all models.
        version: number; empty for all versions.

    Raises:
        UnknownModelError: there is no such model, or it has no statistics of the version.

    """
    entries = []
    for served in (service.find(model),) if model else service.models:
        for number, statistics in served.statistics.items():
            if version in ("", str(number)):
                entries.append(_entry(served.name, number, statistics))
    if version and not entries:
        raise UnknownModelError(f"there are no statistics of version {version!r} of {model!r}; leave the version out")
    return {"model_stats": entries}


def _tensor(tensor: TensorMetadata) -> dict[str, Any]:
    data_type = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    # Without the batch's dimension a text has none left, which Triton writes as one element.
    dims = list(tensor.shape[1:]) or ([1] if tensor.name == ENCODED or data_type == "TYPE_STRING" else [])
    return {"name": tensor.name, "data_type": data_type, "dims": dims}


def _entry(name: str, version: int, statistics: Statistics) -> dict[str, Any]:
    return {
        "name": name,
        "version": str(version),
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            **{kind: asdict(duration) for kind, duration in statistics.durations().items()},
            "cache_hit": _NOTHING,
            "cache_miss": _NOTHING,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": batch.runs, "ns": batch.input_ns},
                "compute_infer": {"count": batch.runs, "ns": batch.infer_ns},
                "compute_output": {"count": batch.runs, "ns": batch.output_ns},
            }
            for size, batch in sorted(statistics.batches.copy().items())  # the model's thread may add one
        ],
    }
