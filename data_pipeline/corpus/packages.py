"""Refuses an AIHub package of which almost nothing is text: a model trained on 542 KB instead of gigabytes is the known
story (notes/aihub.md). Sees only counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.stage import StageError


def check_packages(
    packages: Mapping[str, Mapping[str, int]], names: Mapping[str, str], *, min_text_share: float
) -> None:
    """Raise StageError for every input that has AIHub's marks but too little text.

    `packages`: by input index, what `read.Reading` noted. `names`: by input index, for the message.
    """
    faults = []
    for index, package in sorted(packages.items()):
        counts = {key: package.get(key, 0) for key in _KEYS}
        is_aihub = counts["num_text"] or counts["num_info_file"] or counts["num_source_tsv"]
        if is_aihub and (fault := _fault(counts, min_text_share)):
            faults.append(f"inputs.{index}: {names[index]}: {fault}")
    if faults:
        raise StageError("\n".join(faults))


_KEYS = (
    "num_label",
    "label_bytes",
    "num_text",
    "text_bytes",
    "sample_text_bytes",
    "num_info_file",
    "num_source_tsv",
)


def _fault(counts: Mapping[str, int], min_text_share: float) -> str:
    found = (
        f"found {counts['num_label']:,} label files (라벨링데이터) of {counts['label_bytes']:,} bytes with "
        f"{counts['text_bytes']:,} bytes of text, {counts['num_info_file']:,} INFO files, "
        f"{counts['num_source_tsv']:,} 원천 TSV files"
    )
    if counts["num_label"] == 0:
        what = "원천데이터" if counts["num_source_tsv"] else "INFO files"
        return f"only {what}, no label file: {found}; give the folder with 라벨링데이터 (TL_*.zip)"
    if 0 < counts["text_bytes"] == counts["sample_text_bytes"]:
        return f"only the sample (4.Sample, 샘플): {found}; give Training too, or set accept_thin_packages: true"
    if counts["text_bytes"] < min_text_share * counts["label_bytes"]:
        share = counts["text_bytes"] / counts["label_bytes"]
        return (
            f"almost no text: {share:.2%} of the label bytes, min_text_share is {min_text_share:.2%}; {found}; "
            "see rejects/ for what was wrong, or set accept_thin_packages: true"
        )
    return ""
