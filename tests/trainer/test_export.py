"""Exports as others open them: plain transformers and peft, in a process that does not see dure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import disk
from data_pipeline.stage import read_manifest, verify_files, write_manifest
from tests.trainer.small_world import SmallWorld, question, small_world
from trainer import merge
from trainer.conversation import open_speaker
from trainer.errors import RunError
from trainer.export import KIND, ExportOptions, export, export_full, made_beside, write_tokenizer
from trainer.generate import Sampling
from trainer.merge import MergeError
from trainer.saved import Saved, find_saved, open_model

pytestmark = pytest.mark.stages

READER = Path(__file__).with_name("fresh_reader.py")
ROWS = [[5, 80, 200, 310, 77, 9], [400, 41, 42, 43], list(range(60, 100))]
ASKED = [
    [{"role": "user", "content": question("작은", "여우", "숲")}],
    [
        {"role": "user", "content": question("큰", "사슴", "강")},
        {"role": "assistant", "content": "강에 산다."},
        {"role": "user", "content": question("작은", "토끼", "들")},
    ],
]
LORA = {"rank": 4}
NF4 = {"quantization": {"compute_dtype": "fp32"}}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def qlora(world: SmallWorld) -> Path:
    return world.tuned("qlora", base=world.base, adapter=LORA, **NF4)


def our_logits(run: Path, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    opened = open_model(find_saved(run), dtype=dtype)
    return merge.logits_of(opened.model, ROWS, device=opened.device)


def is_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


class Exports:
    """Folders to be opened by plain transformers and peft, all in one process: an import costs seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests: dict[str, dict[str, Any]] = {}
        self._plan: dict[str, dict[str, Any]] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def add(self, name: str, run: Path, *, nf4: bool = False, **options: Any) -> None:
        manifest = export(find_saved(run), self.root / name, ExportOptions(**options))
        told = {"folder": str(self.root / name), "kind": "model", "dtype": manifest["dtype"], "nf4": nf4, "rows": ROWS}
        if manifest["what"] == "adapter":
            peft = json.loads((self.root / name / "adapter_config.json").read_text())
            told |= {"kind": "adapter", "base": peft["base_model_name_or_path"]}
        elif manifest["template"]:
            told["messages"] = ASKED
        self.manifests[name], self._plan[name] = manifest, told

    def add_base_of(self, name: str) -> None:
        self._plan[f"{name}-base"] = self._plan[name] | {"kind": "model"}

    def read(self) -> None:
        file = self.root / "plan.json"
        file.write_text(json.dumps(list(self._plan.values())))
        command = [sys.executable, str(READER), str(file)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        self._results = dict(zip(self._plan, torch.load(file.with_suffix(".pt")), strict=True))

    def logits(self, name: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self._results[name]["logits"]
        return found

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._results[name]


@pytest.fixture(scope="module")
def runs(world: SmallWorld, qlora: Path) -> dict[str, Path]:
    neox = world.pretrained("neox", architecture="gpt_neox")
    dora = {"rank": 4, "weight_decomposed": True, "rank_stabilized": True, "targets": ["q_proj", "v_proj"]}
    return {
        "llama": world.base,
        "neox": neox,
        "talker": world.talker,
        "qlora": qlora,
        "lora": world.tuned("lora", base=world.base, adapter=LORA),
        "dora": world.tuned("dora", base=world.base, adapter=dora),
        "neox-qlora": world.tuned("neox-qlora", base=neox, adapter={"rank": 4, "targets": ["query_key_value"]}, **NF4),
    }


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    made = Exports(tmp_path_factory.mktemp("exports"))
    for name in ("llama", "neox"):
        for dtype in ("fp32", "bf16"):
            made.add(f"{name}-{dtype}", runs[name], dtype=dtype)
    for name in ("talker", "lora", "dora"):
        made.add(name, runs[name])
    for name in ("qlora", "neox-qlora"):
        made.add(name, runs[name], nf4=True)
        made.add(f"{name}-merged", runs[name], merge=True)
    for name in ("qlora", "neox-qlora", "lora", "dora"):
        made.add_base_of(name)
    made.read()
    return made


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "neox"])
def test_a_full_export_equals_the_run_to_the_bit_in_plain_transformers(
    runs: dict[str, Path], exports: Exports, name: str, dtype: str
) -> None:
    ours = our_logits(runs[name], dtype=DTYPES[dtype])

    assert is_equal(ours, exports.logits(f"{name}-{dtype}"))
    other = "bf16" if dtype == "fp32" else "fp32"
    assert not is_equal(ours, exports.logits(f"{name}-{other}"))


def test_a_tuned_model_answers_the_same_through_the_tokenizers_own_chat_template(
    runs: dict[str, Path], exports: Exports
) -> None:
    speaker, theirs = open_speaker(find_saved(runs["talker"])), exports["talker"]

    prompts = [speaker.prompt_ids(messages) for messages in ASKED]
    answers = speaker.answers(prompts, sampling=Sampling(max_new_tokens=24), batch_size=2, rows=[0, 1])

    assert theirs["prompts"] == prompts
    assert theirs["answers"] == [[*answer.ids, *([0] if answer.ended else [])] for answer in answers]
    assert theirs["length"] == 128
    assert all(answer.ended and answer.ids for answer in answers), "else this test shows less than it says"


@pytest.mark.parametrize("name", ["lora", "qlora", "dora", "neox-qlora"])
def test_an_adapter_equals_the_run_to_the_bit_in_plain_peft(runs: dict[str, Path], exports: Exports, name: str) -> None:
    ours = our_logits(runs[name])

    assert is_equal(ours, exports.logits(name))
    assert is_equal(ours, our_logits(exports.root / name)), "dure opens its own export as well"
    assert not is_equal(ours, exports.logits(f"{name}-base")), "the adapter does something"


@pytest.mark.parametrize("name", ["qlora", "neox-qlora"])
def test_merged_from_4_bits_says_what_was_trained_and_tells_the_measure(
    runs: dict[str, Path], exports: Exports, name: str
) -> None:
    trained, told = our_logits(runs[name]), exports.manifests[f"{name}-merged"]["merge"]

    measure = merge.measure_merge(trained, exports.logits(f"{name}-merged"))

    # Rounding alone: the same products, summed in another order.
    assert measure.max_logit_error < 1e-4 and measure.top_1_agreement == 1.0
    assert told["float32"]["num_rows"] == 64
    assert told["float32"]["max_logit_error"] < 1e-4 and told["float32"]["top_1_agreement"] == 1.0
    assert not told["is_accepted"]
    untuned = merge.measure_merge(trained, exports.logits(f"{name}-base"))
    assert untuned.max_logit_error > 1e-2, "the adapter does something"


def test_merged_answers_are_those_of_the_adapter(runs: dict[str, Path], exports: Exports) -> None:
    speaker = open_speaker(find_saved(runs["qlora"]))

    prompts = [speaker.prompt_ids(messages) for messages in ASKED]
    answers = speaker.answers(prompts, sampling=Sampling(max_new_tokens=24), batch_size=2, rows=[0, 1])

    said = [[*answer.ids, *([0] if answer.ended else [])] for answer in answers]
    assert exports["qlora-merged"]["answers"] == said


def test_a_merge_written_in_bf16_tells_the_rounding_beside_the_merge(qlora: Path, tmp_path: Path) -> None:
    measures = export(find_saved(qlora), tmp_path / "merged", ExportOptions(merge=True, dtype="bf16"))["merge"]

    assert measures["float32"]["max_logit_error"] < 1e-4
    # bf16 has 8 bits: weights and products are each some 0.4 % off, layer after layer.
    scale = max(float(logits.abs().max()) for logits in our_logits(qlora))
    assert 1e-5 * scale < measures["as_written"]["max_logit_error"] < 0.08 * scale


def test_a_merge_beyond_the_limits_is_refused_and_leaves_nothing_unless_accepted(
    qlora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A limit that no merge keeps stands for a merge that keeps no limit.
    monkeypatch.setattr(merge, "MAX_LOGIT_ERROR", 1e-12)

    with pytest.raises(MergeError, match=r"differs from what was trained: largest logit error .* over .* 64 held-out"):
        export(find_saved(qlora), tmp_path / "merged", ExportOptions(merge=True))

    assert list(tmp_path.iterdir()) == []
    accepted = ExportOptions(merge=True, accept_merge_error=True)
    assert export(find_saved(qlora), tmp_path / "merged", accepted)["merge"]["is_accepted"]
    assert "accepted by hand" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


def test_the_folder_holds_what_its_manifest_says(world: SmallWorld, tmp_path: Path) -> None:
    written = export(find_saved(world.talker), tmp_path / "talker", ExportOptions())

    manifest = read_manifest(tmp_path / "talker", kind=KIND)

    assert manifest == written
    assert verify_files(tmp_path / "talker", manifest) == []
    names = {file["name"] for file in manifest["files"]}
    assert names | {"manifest.json"} == {path.name for path in (tmp_path / "talker").iterdir()}
    assert {"chat_template.jinja", "template.yaml", "tokenizer.json", "generation_config.json"} <= names
    assert json.loads((tmp_path / "talker" / "generation_config.json").read_text())["eos_token_id"] == 0
    assert manifest["template"]["name"] == "koalpaca"
    assert manifest["origin"]["step"] == 150


def test_the_card_names_base_data_template_figures_and_whom_to_credit(qlora: Path, tmp_path: Path) -> None:
    export(find_saved(qlora), tmp_path / "out", ExportOptions())

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    assert card.startswith("---\nlanguage: ko\nlicense: other\n")
    assert "base_model:" not in card and 'base_folder = "…"' in card, "the base has no name that others could load"
    assert "`base`, step 12, dure sha256 `" in card and "sets `base_model_name_or_path`" in card
    assert "library_name: peft" in card
    assert "characters a token" in card and "byte_level_bpe, NFC" in card and "420" in card
    # The rows of this tuning, and those of the pretraining of its base.
    assert card.count("`aihub_653`") == 2
    assert "한국지능정보사회진흥원(NIA)" in card and "National Information Society Agency of Korea" in card
    assert "`koalpaca`" in card and "held-out loss" in card and "nf4" in card
    assert card.count("fill in") >= 4
    assert "## 사용 · Use" in card and "PeftModel.from_pretrained(base, folder)" in card


def files_that_name(text: str, folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if text.encode() in path.read_bytes())


def test_no_file_names_a_path_of_this_machine_but_the_one_that_peft_opens_the_base_by(
    world: SmallWorld, qlora: Path, tmp_path: Path
) -> None:
    export(find_saved(qlora), tmp_path / "here", ExportOptions())
    export(find_saved(qlora), tmp_path / "named", ExportOptions(base_name="me/my-base"))
    export(find_saved(qlora), tmp_path / "merged", ExportOptions(merge=True))
    export(find_saved(world.talker), tmp_path / "full", ExportOptions())

    assert files_that_name(str(world.root), tmp_path / "here") == ["adapter_config.json"]
    assert [files_that_name(str(world.root), tmp_path / name) for name in ("named", "merged", "full")] == [[], [], []]
    assert files_that_name(str(tmp_path), tmp_path / "merged") == []
    assert files_that_name("me/my-base", tmp_path / "named") == ["README.md", "adapter_config.json", "manifest.json"]
    card = (tmp_path / "named" / "README.md").read_text(encoding="utf-8")
    assert 'base_model: "me/my-base"' in card and 'from_pretrained("me/my-base")' in card
    told = read_manifest(tmp_path / "merged", kind=KIND)["base"]
    assert (told["name"], told["step"], len(told["sha256"])) == ("base", 12, 64)


def test_a_tokenizer_that_was_loaded_from_a_path_does_not_tell_it(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    settings = {"eos_token": "<|endoftext|>", "name_or_path": "/home/me/models/x"}
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "to").mkdir()

    write_tokenizer(tmp_path / "from", tmp_path / "to", template=None, max_positions=64)

    written = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "<|endoftext|>", "model_max_length": 64}


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("qlora", {"dtype": "bf16"}, "--dtype: bf16 was given, but an adapter is written in fp32, .*; add --merge, or"),
        ("qlora", {"shards": Path("s")}, "--shards: s was given, but only a merge is measured .*; add --merge, or"),
        ("qlora", {"accept_merge_error": True}, "--accept-merge-error: nothing is merged, .*; add --merge, or leave"),
        ("base", {"shards": Path("s"), "accept_merge_error": True}, "--shards: s .*; leave it out\n--accept-merge-er"),
        (
            "base",
            {"base_name": "a/b"},
            "--base-name: 'a/b' was given, but .*base was trained from no base; leave it out",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    world: SmallWorld, qlora: Path, tmp_path: Path, run: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        export(find_saved(world.root / run), tmp_path / "out", ExportOptions(**options))

    assert list(tmp_path.iterdir()) == []


def test_an_export_of_an_export_keeps_its_precision_and_what_it_tells(world: SmallWorld, tmp_path: Path) -> None:
    first = export(find_saved(world.talker), tmp_path / "bf16", ExportOptions(dtype="bf16"))
    ends = tmp_path / "bf16" / "generation_config.json"  # as a chat model has them
    ends.write_text(json.dumps(json.loads(ends.read_text()) | {"eos_token_id": [0, 5]}))

    second = export(find_saved(tmp_path / "bf16"), tmp_path / "again", ExportOptions())

    assert second["dtype"] == "bf16"
    assert second["tokenizer"] == first["tokenizer"] and second["tokenizer"]["kind"] == "byte_level_bpe"
    assert second["data"] == first["data"]
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [0, 5]


def test_two_exports_into_one_folder_never_work_at_once(world: SmallWorld, tmp_path: Path) -> None:
    with made_beside(tmp_path / "out") as folder:
        (folder / "mine").write_text("whole")
        with pytest.raises(RunError, match=r"out: pid \d+ on .* writes it now; wait for it, or give another --output"):
            export(find_saved(world.base), tmp_path / "out", ExportOptions())

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_exists_is_refused_and_stays(world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")

    with pytest.raises(RunError, match="out: exists already, and an export never writes over anything; give another"):
        export(find_saved(world.base), tmp_path / "out", ExportOptions())

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_merge_of_a_model_without_an_adapter_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--merge: .* has no adapter to merge, all of its weights are its own"):
        export(find_saved(world.base), tmp_path / "out", ExportOptions(merge=True))


def export_killed_at(number: int, saved: Saved, output: Path) -> int:
    """Export in a fork that is killed at the `number`-th moment of its writes; its exit code."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    passed = iter(range(number))
    disk.set_probe(lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(passed, None) is None else None)
    try:
        export(saved, output, ExportOptions())
    finally:
        os._exit(1)


def test_a_kill_anywhere_in_an_export_leaves_nothing_that_looks_finished(world: SmallWorld, tmp_path: Path) -> None:
    saved, output = find_saved(world.base), tmp_path / "out"
    moments: list[str] = []
    disk.set_probe(lambda operation, moment, path: moments.append(operation))
    export(saved, tmp_path / "rehearsal", ExportOptions())
    disk.set_probe(None)
    # The last rename is that of the folder; the moments after it only sync its name.
    renamed = max(number for number, operation in enumerate(moments) if operation == "rename")

    for number in range(0, len(moments), 7):
        code = export_killed_at(number, saved, output)
        assert code == -signal.SIGKILL
        assert output.exists() == (number >= renamed), (number, moments[number])
        shutil.rmtree(output, ignore_errors=True)

    assert len(moments) > 30
    with pytest.raises(RunError, match="not a run folder"):
        find_saved(tmp_path / ".out.partial")
    export(saved, output, ExportOptions())
    assert verify_files(output, read_manifest(output, kind=KIND)) == []


def test_an_error_inside_an_export_removes_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), made_beside(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        raise ValueError("boom")

    assert list(tmp_path.iterdir()) == []


def test_a_full_export_for_another_run_is_made_once(qlora: Path, tmp_path: Path) -> None:
    folder = export_full(qlora, tmp_path / "full")
    before = (folder / "manifest.json").stat().st_mtime_ns

    assert export_full(qlora, tmp_path / "full") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before

    manifest = read_manifest(folder, kind=KIND)
    assert (manifest["what"], manifest["dtype"]) == ("merged", "fp32")
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    write_manifest(folder, body | {"origin": {**manifest["origin"], "step": 1}})
    with pytest.raises(RunError, match="full: holds qlora step 1 .*, but qlora step 8 .* is needed; remove the folder"):
        export_full(qlora, tmp_path / "full")
