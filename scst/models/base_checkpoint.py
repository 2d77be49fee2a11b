"""Where a base model is, and whether it is one: what its ``config.json`` tells, without importing torch."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from scst.errors import DataError, RecipeError, shown
from scst.files.json_reader import read_json_object
from scst.models.families.table import FAMILIES, REFUSED

EMBEDDED_MODEL = "embedded:scenes-paligemma"
_EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "scenes-paligemma"
_CONFIG = "config.json"


def resolve_model_path(name_or_path: str) -> str:
    """The folder of the embedded model, or the name as it is."""
    return str(_EMBEDDED_FOLDER) if name_or_path == EMBEDDED_MODEL else name_or_path


def check_model_exists(name_or_path: str) -> str:
    """The ``model_type`` of a checkpoint; reads its configuration and nothing else.

    Raises:
        RecipeError: when there is none, or its family is not supported.
    """
    config = _config_file(resolve_model_path(name_or_path))
    try:
        model_type = read_json_object(config).get("model_type")
    except (OSError, DataError) as error:
        raise RecipeError(f"model_name_or_path: {error}") from error
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    reason = REFUSED.get(model_type) if isinstance(model_type, str) else None
    raise RecipeError(
        f"model_name_or_path: {shown(name_or_path)} is a {shown(model_type)} model"
        + (f": {reason}" if reason else "")
        + f"; expected a checkpoint of one of {', '.join(FAMILIES)}"
    )


def _config_file(name_or_path: str) -> str:
    """The path of the configuration, which a hub id gets from the hub or its cache."""
    try:
        if (Path(name_or_path) / _CONFIG).exists():
            return str(Path(name_or_path) / _CONFIG)
        if Path(name_or_path).exists():
            raise FileNotFoundError(f"it holds no {_CONFIG}")
        return huggingface_hub.hf_hub_download(name_or_path, _CONFIG)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"model_name_or_path: no model configuration found at {shown(name_or_path)}. Give a local "
            f"folder with a config.json, a hub id such as google/paligemma-3b-pt-224, or "
            f"{EMBEDDED_MODEL}. ({reason})"
        ) from error
