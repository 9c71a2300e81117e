"""Upload a checkpoint folder with its card to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alphaquant.errors import ModelError, first_line
from alphaquant.export.model_card import model_card, read_facts
from alphaquant.models.resolve import FACTS


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model compressed by AlphaQuant",
    consumers: Sequence[str] = (),
) -> str:
    """Upload `folder`, the `checkpoint` of a run or one that `AlphaQuantModel.save` wrote; returns its address.

    The repository is made if it does not exist, and the card's examples name it. `consumers` are serving stacks
    whose checks this checkpoint passed; only these are named. `token` is otherwise that of `hf auth login`. Raises
    ModelError for a folder that is no checkpoint of ours, and when the hub refuses.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    card = model_card(folder, read_facts(folder), name=repo_id, consumers=consumers)
    (folder / "README.md").write_text(card, encoding="utf-8")
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            ignore_patterns=[FACTS],  # it may name places on this machine; the card says the rest
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"the hub did not take {repo_id!r} ({type(error).__name__}: {first_line(error)}). Check the name "
            "(owner/name), the network, and that `hf auth login` gave a token that may write"
        ) from error
    return str(repository)
