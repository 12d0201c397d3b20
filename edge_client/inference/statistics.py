"""Statistics of one version of a model: how many requests it answered, and what time that took.

They are those of Triton's statistics extension (triton-inference-server, docs/protocol/extension_statistics.md), in
nanoseconds. Each field is written by one thread alone: those of runs by the thread that runs the model, the others by
the event loop. Every request writes them, so that they are plain numbers.
"""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Duration:
    """How often something was done, and what time it took in all."""

    count: int
    ns: int


@dataclass(slots=True)
class BatchStatistics:
    """Of the runs with a certain number of samples."""

    runs: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True)
class Statistics:
    """Of one version of a model since it came to serve."""

    last_inference_ms: int = 0
    """When the last request was answered or refused, in milliseconds since 1970; 0 if none was."""
    inference_count: int = 0
    """Samples of the requests that were answered."""
    execution_count: int = 0
    """Runs of the model."""
    answered: int = 0
    """Requests; so are the next two."""
    failed: int = 0
    ran: int = 0
    """Whose samples were in a run."""
    answered_ns: int = 0
    failed_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    """A request counts here, and in the next two, with the whole of the run that it shared."""
    infer_ns: int = 0
    output_ns: int = 0
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    """By the number of samples in a run, which the server limits."""

    def durations(self) -> dict[str, Duration]:
        """Return the requests and their time in all, by Triton's names."""
        return {
            "success": Duration(self.answered, self.answered_ns),
            "fail": Duration(self.failed, self.failed_ns),
            "queue": Duration(self.ran, self.queue_ns),
            "compute_input": Duration(self.ran, self.input_ns),
            "compute_infer": Duration(self.ran, self.infer_ns),
            "compute_output": Duration(self.ran, self.output_ns),
        }

    def note_success(self, samples: int, ns: int) -> None:
        """Count a request that was answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.inference_count += samples
        self.answered += 1
        self.answered_ns += ns

    def note_failure(self, ns: int) -> None:
        """Count a request that was not answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.failed += 1
        self.failed_ns += ns

    def note_run(
        self,
        requests: int,
        samples: int,
        *,
        queue_ns: int,
        decode_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count a run of the model for a batch of requests.

        Args:
            requests: in the batch.
            samples: in the batch.
            queue_ns: how long all its requests together waited, once their samples were decoded.
            decode_ns: how long it took to decode the samples of all its requests together.
            input_ns: to put their samples together.
            infer_ns: for the model.
            output_ns: to take the probabilities apart, and to check them.

        """
        self.execution_count += 1
        self.ran += requests
        self.queue_ns += queue_ns
        self.input_ns += decode_ns + requests * input_ns
        self.infer_ns += requests * infer_ns
        self.output_ns += requests * output_ns
        batch = self.batches.get(samples)
        if batch is None:
            batch = self.batches[samples] = BatchStatistics()
        batch.runs += 1
        batch.input_ns += input_ns
        batch.infer_ns += infer_ns
        batch.output_ns += output_ns
