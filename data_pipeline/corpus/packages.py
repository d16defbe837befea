"""Refuses an AIHub package of which almost nothing is text: a model trained on 542 KB instead of gigabytes is the known
story (notes/aihub.md). Sees only counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_pipeline.stage import StageError

Counts = Mapping[str, int]

MAX_LOST_SHARE = 0.5  # of a package's archives


def check_packages(
    packages: Mapping[str, Counts], names: Mapping[str, str], *, min_text_share: float, rejects: str
) -> None:
    """Raise StageError for every package that has AIHub's marks but too little text.

    `packages`: by `tally.package_key`, what `read.Reading` noted. `names`: the inputs by index, for the message.
    `rejects`: the folder to look into.
    """
    faults = []
    for key, noted in sorted(packages.items()):
        counts = {name: noted.get(name, 0) for name in _KEYS}
        is_aihub = counts["num_text"] or counts["num_info_file"] or counts["num_source_tsv"]
        if is_aihub and (fault := _fault(counts, min_text_share, rejects)):
            faults.append(f"{_where(key, names)}: {fault}")
    if faults:
        raise StageError("\n".join(faults))


def check_archives(packages: Mapping[str, Counts], names: Mapping[str, str], *, rejects: str) -> None:
    """Raise StageError for every package of which half of the archives or more could not be opened."""
    faults = list(_lost(packages, names, rejects))
    if faults:
        raise StageError("\n".join(faults))


def _lost(packages: Mapping[str, Counts], names: Mapping[str, str], rejects: str) -> Iterator[str]:
    for key, counts in sorted(packages.items()):
        num_lost = counts.get("num_lost_archive", 0)
        num_archives = num_lost + counts.get("num_archive", 0)
        if num_lost and num_lost >= MAX_LOST_SHARE * num_archives:
            yield (
                f"{_where(key, names)}: {num_lost:,} of {num_archives:,} archives could not be opened "
                f"(압축 파일 손상); {rejects} names each: download them again, or set accept_thin_packages: true"
            )


def _where(key: str, names: Mapping[str, str]) -> str:
    index, _, package = key.partition(":")
    return f"inputs.{index}: {names[index]}" + (f"/{package}" if package else "")


_KEYS = (
    "num_label",
    "label_bytes",
    "num_text",
    "text_bytes",
    "sample_text_bytes",
    "num_info_file",
    "num_source_tsv",
    "num_lost_archive",
    "lost_archive_bytes",
)


def _fault(counts: Counts, min_text_share: float, rejects: str) -> str:
    found = (
        f"found {counts['num_label']:,} label files (라벨링데이터) of {counts['label_bytes']:,} bytes with "
        f"{counts['text_bytes']:,} bytes of text, {counts['num_info_file']:,} INFO files, "
        f"{counts['num_source_tsv']:,} 원천 files"
    )
    if counts["num_lost_archive"]:
        found += f", archives that can't be opened: {counts['num_lost_archive']:,}, see {rejects}"
    if counts["num_label"] == 0:
        what = "원천데이터" if counts["num_source_tsv"] else "INFO files"
        return f"only {what}, no label file: {found}; give the folder with 라벨링데이터 (TL_*.zip)"
    if 0 < counts["text_bytes"] == counts["sample_text_bytes"]:
        return f"only the sample (4.Sample, 샘플): {found}; give Training too, or set accept_thin_packages: true"
    # An archive that can't be opened holds labels for all that is known, and none of their text was read.
    num_bytes = counts["label_bytes"] + counts["lost_archive_bytes"]
    if counts["text_bytes"] < min_text_share * num_bytes:
        share = counts["text_bytes"] / num_bytes
        return (
            f"almost no text: {share:.2%} of the label bytes, min_text_share is {min_text_share:.2%}; {found}; "
            f"see {rejects} for what was wrong, or set accept_thin_packages: true"
        )
    return ""
