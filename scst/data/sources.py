"""Every accepted form of a dataset, read into the same rows.

A row is one image: ``image`` (stored, not decoded), ``references: list[str]``, ``image_id: str``,
``split: str`` (``""`` when the source has none) and whatever further columns the source has.
"""

import re
from collections import Counter
from pathlib import Path

import datasets

from scst.data.columns import (
    check_columns,
    concatenate,
    normalise,
    text_batches,
)
from scst.data.data_files import (
    parquet_files,
    parquet_layout,
    read_parquet,
    resolve_paths,
    stem_split,
    tar_files,
)
from scst.data.risc import (
    CAPTIONS_FILE,
    IMAGES_FOLDER,
    refuse_links_outside,
    risc_layout,
)
from scst.data.risc_rows import risc_rows
from scst.errors import DataError
from scst.files.reading import refuse_pipes

ACCEPTED_FORMS = (
    f"a RISC folder ({CAPTIONS_FILE} beside {IMAGES_FOLDER}/), a parquet file or a folder of them (columns "
    "image, captions, image_id, split), a folder written by datasets' save_to_disk, tar archives "
    "(webdataset), a hub id (owner/name), or embedded:scenes"
)
EMBEDDED = "embedded:scenes"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HUB_FAILURES = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


def read_rows(dataset: str) -> datasets.Dataset:
    """Read a dataset in any accepted form; images stay encoded.

    Args:
        dataset: a path, a hub id, or ``embedded:scenes``.

    Returns:
        Columns ``image`` (``datasets.Image(decode=False)``), ``references``, ``image_id``, ``split`` and the
        source's further columns, in the source's order.

    Raises:
        DataError: the form is not one of those accepted, or its columns are wrong; the message says what was
            found.
    """
    rows = open_rows(dataset)
    if find_form(dataset) == "risc":
        for (images,) in text_batches(rows, "image"):
            refuse_links_outside(Path(dataset).expanduser(), (image["path"] for image in images))
    return rows


def open_rows(dataset: str) -> datasets.Dataset:
    """:func:`read_rows` for a caller that looks at the image files itself (``scst.data.image_files``)."""
    rows = READERS[find_form(dataset)](dataset)
    if len(rows) == 0:
        raise DataError(f"{dataset}: the dataset has no rows.")
    return rows


def source_files(dataset: str) -> list[Path]:
    """The files that rows and captions of a dataset come from; none for a hub id and the embedded scenes."""
    form, path = find_form(dataset), Path(dataset).expanduser()
    if form == "risc":
        return [path / CAPTIONS_FILE]
    if form == "parquet":
        return parquet_files(path)
    return sorted(file for file in path.rglob("*") if file.is_file()) if form == "saved" else []


def check_layout(dataset: str) -> dict:
    """Check a dataset's layout quickly, without decoding or even reading images.

    Returns:
        ``{"form": ..., "splits": {name: rows}}``; RISC folders add ``missing_images``. A hub id asks the hub
        for its description, which may leave row counts ``None``.

    Raises:
        DataError: as :func:`read_rows`.
    """
    return LAYOUTS[find_form(dataset)](dataset)


def find_form(dataset: str) -> str:
    """Name the form of a dataset: ``risc``, ``parquet``, ``saved``, ``tar``, ``hub`` or ``embedded``.

    Raises:
        DataError: it is none of these; the message lists what is there and what is accepted.
    """
    if dataset.startswith("embedded:"):
        if dataset != EMBEDDED:
            raise DataError(f"unknown embedded dataset {dataset!r}; there is one: {EMBEDDED}.")
        return "embedded"
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _folder_form(path)
    if path.is_file():
        if path.suffix in (".parquet", ".tar"):
            return path.suffix[1:]
        raise DataError(f"{path} is a {path.suffix or 'nameless'} file; accepted are {ACCEPTED_FORMS}.")
    if HUB_ID.fullmatch(dataset) and not dataset.endswith((".parquet", ".csv")):
        return "hub"
    raise DataError(f"no such file or folder: {path}; accepted are {ACCEPTED_FORMS}.")


def _folder_form(folder: Path) -> str:
    if (folder / CAPTIONS_FILE).is_file():
        return "risc"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "saved"
    if parquet_files(folder):
        return "parquet"
    if tar_files(folder):
        return "tar"
    found = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    listing = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    raise DataError(
        f"{folder} is not a dataset. Found in it: {listing or 'nothing'}. Accepted are {ACCEPTED_FORMS}."
    )


# --- RISC, embedded


def _read_risc_rows(dataset: str) -> datasets.Dataset:
    return risc_rows(Path(dataset).expanduser())


def _check_risc(dataset: str) -> dict:
    return risc_layout(Path(dataset).expanduser())


def _read_embedded(dataset: str) -> datasets.Dataset:
    from scst.data.scenes.rows import embedded_rows

    return embedded_rows(dataset)


def _check_embedded(dataset: str) -> dict:
    from scst.data.scenes.dataset import SPLIT_SEEDS

    return {"form": "embedded", "splits": {split: len(seeds) for split, seeds in SPLIT_SEEDS.items()}}


# --- tar, saved, hub


def _refuse_tar(dataset: str) -> datasets.Dataset:
    raise DataError(
        f"{dataset}: tar archives are read in order, by scst sft and scst rl with max_steps; for other "
        "commands write their rows as parquet."
    )


def _check_tar(dataset: str) -> dict:
    files = tar_files(Path(dataset).expanduser())
    return {"form": "tar", "splits": {stem_split(file) or "train": None for file in files}}


def _read_saved(dataset: str) -> datasets.Dataset:
    folder = Path(dataset).expanduser()
    rows = _from_parts(_load_saved(dataset), dataset)
    return resolve_paths(rows, folder, folder)


def _check_saved(dataset: str) -> dict:
    splits: Counter[str] = Counter()
    for name, part in _parts(_load_saved(dataset)).items():
        check_columns(part.column_names, dataset)
        values = part["split"][:] if "split" in part.column_names else [name] * len(part)
        splits.update(value or name for value in values)
    return {"form": "saved", "splits": dict(splits)}


def _load_saved(dataset: str) -> datasets.Dataset | datasets.DatasetDict:
    path = Path(dataset).expanduser()
    refuse_pipes(path.rglob("*"))
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library raises on a damaged description
        raise DataError(
            f"{path} looks like a saved dataset but does not load ({error}); save it again."
        ) from error


def _read_hub(dataset: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(dataset)
    except HUB_FAILURES as error:
        raise hub_error(dataset, error) from error
    return _from_parts(loaded, dataset)


def _check_hub(dataset: str) -> dict:
    try:
        info = datasets.load_dataset_builder(dataset).info
    except HUB_FAILURES as error:
        raise hub_error(dataset, error) from error
    if info.features is not None:
        check_columns(list(info.features), dataset)
    return {
        "form": "hub",
        "splits": {name: split.num_examples for name, split in (info.splits or {}).items()},
    }


def hub_error(dataset: str, error: Exception) -> DataError:
    """The error for a name that is neither an existing path nor a hub id."""
    return DataError(
        f"{dataset!r} is no file or folder here, and loading it as a hub id failed: "
        f"{type(error).__name__}: {error}. "
        f"Check the path, or the hub id and the connection. Accepted are {ACCEPTED_FORMS}."
    )


def _parts(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _from_parts(loaded: datasets.Dataset | datasets.DatasetDict, where: str) -> datasets.Dataset:
    return concatenate([normalise(part, where, name) for name, part in _parts(loaded).items()], where)


READERS = {
    "risc": _read_risc_rows,
    "parquet": read_parquet,
    "saved": _read_saved,
    "tar": _refuse_tar,
    "hub": _read_hub,
    "embedded": _read_embedded,
}
LAYOUTS = {
    "risc": _check_risc,
    "parquet": parquet_layout,
    "saved": _check_saved,
    "tar": _check_tar,
    "hub": _check_hub,
    "embedded": _check_embedded,
}
