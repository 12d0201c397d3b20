"""Statistics of one version of a model: how many requests it answered, and what time that took.

They are those of Triton's statistics extension (triton-inference-server, docs/protocol/extension_statistics.md), in
nanoseconds. Each field is written by one thread alone: those of runs by the thread that runs the model, the others by
the event loop.
"""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often something was done, and what time it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Count something that was done so many times."""
        self.count += count
        self.ns += ns


@dataclass(frozen=True)
class Run:
    """A run of the model for a batch of requests."""

    requests: int
    samples: int
    queue_ns: int
    """How long all its requests together waited, once their samples were decoded."""
    decode_ns: int
    """How long it took to decode the samples of all its requests together."""
    input_ns: int
    """To put their samples together."""
    infer_ns: int
    """For the model."""
    output_ns: int
    """To take the probabilities apart, and to check them."""


@dataclass(slots=True)
class BatchStatistics:
    """Of the runs with a certain number of samples; a run counts once."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """Of one version of a model since it came to serve."""

    last_inference_ms: int = 0
    """When the last request was answered or refused, in milliseconds since 1970; 0 if none was."""
    inference_count: int = 0
    """Samples of the requests that were answered."""
    execution_count: int = 0
    """Runs of the model."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    """A request counts once here, and with the whole of its run in the three that follow."""
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    """By the number of samples in a run, which the server limits."""

    def note_success(self, samples: int, ns: int) -> None:
        """Count a request that was answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.inference_count += samples
        self.success.add(1, ns)

    def note_failure(self, ns: int) -> None:
        """Count a request that was not answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.fail.add(1, ns)

    def note_run(self, run: Run) -> None:
        """Count a run of the model."""
        requests = run.requests
        self.execution_count += 1
        self.queue.add(requests, run.queue_ns)
        self.compute_input.add(requests, run.decode_ns + requests * run.input_ns)
        self.compute_infer.add(requests, requests * run.infer_ns)
        self.compute_output.add(requests, requests * run.output_ns)
        batch = self.batches.get(run.samples)
        if batch is None:
            batch = self.batches[run.samples] = BatchStatistics()
        batch.compute_input.add(1, run.input_ns)
        batch.compute_infer.add(1, run.infer_ns)
        batch.compute_output.add(1, run.output_ns)
