"""Jobs one after the other in the process of the test, which saves starting workers where these are not what is tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.runner.jobs import Display, Job


def run(jobs: Sequence[Job], display: Display) -> None:
    """Run every job once those it waits for have ended."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    waiting, ended = list(jobs), set[str]()
    try:
        while waiting:
            job = next(job for job in waiting if ended.issuperset(job.after))
            job.work(*job.arguments, lambda done, total: None)
            waiting.remove(job)
            ended.add(job.name)
    finally:
        torch.set_num_threads(threads)
