"""Checkpoints on the Hugging Face hub: a folder goes up with a short card, and comes down again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dtme._files import write_text
from dtme.plan.plan import Plan

CARD = "README.md"


def push(folder: Path, repository: str, files: Sequence[str], *, private: bool | None, token: str | None) -> str:
    """Upload files of a folder, all in one commit, and make the repository first if it is not there.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The name is no repository's, or the hub refuses; what is in the folder stays.
        ConnectionError: The hub is not reached.
    """
    api = HfApi(token=token, library_name="dtme")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        additions = [CommitOperationAdd(name, folder / name) for name in files]
        commit = api.create_commit(repository, additions, commit_message="Upload dtme checkpoint")
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(
            f"push_to_hub={repository!r}: {_first_line(error)} Give 'owner/name' with an owner you may write to, and log in "
            f"(`hf auth login`) or give token=. {folder} is written."
        ) from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise ConnectionError(
            f"push_to_hub={repository!r}: the hub at {api.endpoint} is not reached ({_first_line(error)}). {folder} is written: "
            "save once more when the network is back."
        ) from error
    return commit.commit_url


def pull(repository: str, files: Sequence[str], *, revision: str | None, token: str | None) -> Path:
    """A folder of this machine that holds the files of a repository; those that were fetched before are used again.

    Raises:
        ValueError: There is no such repository or revision, or it is not open to this token.
        ConnectionError: The hub is not reached, and nothing was fetched before.
    """
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, token=token, allow_patterns=list(files), library_name="dtme"
            )
        )
    except GatedRepoError as error:
        why = f"access to the repository {repository!r} has to be granted: ask for it on its page, then log in."
        raise ValueError(f"load_pretrained: {why}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"load_pretrained: the hub knows no repository {repository!r}, or it is private. Check the name, which may also "
            "be meant for a folder here that is missing; for a private one log in (`hf auth login`) or give token=."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"load_pretrained: the repository {repository!r} has no revision {revision!r}. Give a branch, a tag or a commit; "
            "None is the main branch."
        ) from error
    except HFValidationError as error:
        raise ValueError(
            f"load_pretrained: {repository!r} is no name of a repository ({_first_line(error)})"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, EntryNotFoundError, HfHubHTTPError) as error:
        raise ConnectionError(
            f"load_pretrained: {repository!r} is no folder here, was not fetched before, and the hub is not reached "
            f"({_first_line(error.__cause__ or error)}). Connect to the network, or give a folder that save_pretrained wrote."
        ) from error


def write_card(folder: Path, plan: Plan, tasks: Sequence[str], base: str, repository: str) -> None:
    """Write the card of a repository: what it holds, the plan as a table, how to load it. One that is there stays."""
    if (folder / CARD).exists():
        return
    rows = "\n".join(
        f"| `{_plain(block)}` | "
        + " | ".join(
            ", ".join(map(_escaped, place.get(block, ()))) or "-"
            for place in (plan.modulate, plan.expand, plan.adapt, plan.copies)
        )
        + " |"
        for block in plan.blocks
    )
    write_text(
        folder / CARD,
        f"""---
library_name: dtme
tags:
- dtme
- multi-task-learning
---

# {_escaped(repository.rpartition("/")[2])}

Task-specific modulators, task tokens, low-rank updates and copies of blocks
for the tasks {", ".join(map(_escaped, tasks))}, inserted into {_escaped(base)} by dtme, an implementation of DTME-MTL ([arXiv 2507.07485](https://arxiv.org/abs/2507.07485)).

| block | modulators | task tokens ({plan.tokens_per_task} per task) | adaptation (rank {plan.rank}) | copy of the block |
| --- | --- | --- | --- | --- |
{rows}

```python
import dtme

model = ...  # {_plain(base)} with the weights these inserts were trained beside, and a branch per task
dtme.load_pretrained(model, {json.dumps(repository)})
```
""",
    )


def _escaped(name: str) -> str:
    r"""A name as Markdown shows it, whatever it holds.

    Example:
        >>> print(_escaped("a|b_c <img>\n# d"))
        a\|b_c &lt;img&gt; \# d
    """
    plain = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#!~$]|(?<!\w)_|_(?!\w)|^[-+]|^\d+(?=[.)]))", r"\\\1", plain)


def _plain(name: str) -> str:
    """A name inside code, which nothing escapes: without what would end it."""
    return " ".join(name.split()).replace("`", "'").replace("|", "/")


def _is_of_the_network(error: Exception) -> bool:
    """The errors of the client below huggingface_hub (requests, later httpx) share names, not a class."""
    return isinstance(error, OSError) or any("TransportError" in kind.__name__ for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
