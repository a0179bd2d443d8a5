"""The dataset card of an export: what the Hub and `datasets` read of it, and its words."""

import pyarrow.parquet as pq
import pytest
from datasets import DatasetInfo, Features
from huggingface_hub import DatasetCard

from dump_rows import CONFIGS
from retribooru.dataset_script.card import dataset_card
from retribooru.dataset_script.export import dataset_info, export_dataset
from retribooru.dataset_script.figures import SPLITS, TASK_ROWS
from retribooru.dataset_script.mini import MINI_FIGURES

FOLDERS = {config: "data" if config == "figures" else config for config in CONFIGS}


def card_of(out) -> DatasetCard:
    return DatasetCard.load(out / "README.md")


@pytest.fixture(scope="module")
def mini_card(mini_export) -> DatasetCard:
    return card_of(mini_export)


@pytest.fixture(scope="module")
def full_card(data_dir, tmp_path_factory) -> DatasetCard:
    return card_of(export_dataset(tmp_path_factory.mktemp("exports") / "full", data_dir, ratings=["unknown"]).out)


def test_configs_name_files_that_are_there(mini_card, mini_export):
    configs = {config["config_name"]: config for config in mini_card.data.configs}
    assert set(configs) == set(CONFIGS)
    assert [name for name, config in configs.items() if config.get("default")] == ["figures"]
    files = {str(path.relative_to(mini_export)) for path in mini_export.rglob("*.parquet")}
    named = set()
    for config in configs.values():
        assert [each["split"] for each in config["data_files"]] == list(SPLITS)
        for each in config["data_files"]:
            found = {str(path.relative_to(mini_export)) for path in mini_export.glob(each["path"])}
            assert found and not named & found
            named |= found
    assert named == files


def test_dataset_info_counts_what_is_there(mini_card, mini_export):
    infos = {info["config_name"]: info for info in mini_card.data.dataset_info}
    assert set(infos) == set(CONFIGS)
    for config, info in infos.items():
        splits = {split["name"]: split for split in info["splits"]}
        assert list(splits) == list(SPLITS)
        for split, numbers in splits.items():
            files = (mini_export / FOLDERS[config]).glob(f"{split}-*.parquet")
            assert numbers["num_examples"] == sum(pq.read_metadata(file).num_rows for file in files) > 0
        size = sum(file.stat().st_size for file in (mini_export / FOLDERS[config]).iterdir())
        assert info["download_size"] == size
        features = DatasetInfo._from_yaml_dict(dict(info)).features
        assert features == (MINI_FIGURES if config == "figures" else TASK_ROWS)
        assert isinstance(features, Features)
        for split, numbers in splits.items():
            assert f"{numbers['num_examples']:,}" in mini_card.text


def test_metadata(mini_card, full_card):
    assert mini_card.data.license == "cc0-1.0" and full_card.data.license == "other"
    assert mini_card.data.pretty_name != full_card.data.pretty_name
    for card in (mini_card, full_card):
        assert card.data.size_categories == ["n<1K"]
        assert {"text-to-image", "image-to-image"} <= set(card.data.task_categories)


@pytest.mark.parametrize(
    ("ratings", "for_all"),
    [(("g",), True), (("g", "s"), False), (("q",), False), (("e",), False), (("q", "e"), False), (("unknown",), False)],
)
def test_not_for_all_audiences(mini_export, ratings, for_all):
    infos = {"figures": dataset_info(mini_export / "data")}
    words = dataset_card(infos, {"figures": "data"}, False, False, None, ratings, "Made by hand.")
    assert ("not-for-all-audiences" not in DatasetCard(words).data.tags) == for_all


def test_words(mini_card, full_card):
    assert "drawn by code" in mini_card.text and "drawn by code" not in full_card.text
    assert "Masks and head boxes come from detectors" in full_card.text and "detectors" not in mini_card.text
    assert "drawings are embedded" not in full_card.text and "name them alone" in full_card.text
    for card in (mini_card, full_card):
        assert "2312.02521" in card.text and "$" not in card.text
        for config in CONFIGS:
            assert f"`{config}`" in card.text
    assert "size=64, characters=30" in mini_card.text and "`hair`" in mini_card.text and "`hair`" not in full_card.text
    assert "published\nthe figures rated: unknown" in full_card.text


def test_choices_are_named(data_dir, tmp_path):
    report = export_dataset(
        tmp_path / "out", data_dir, ["face"], embed_images=True, ratings=["unknown"], seed=5, license="cc-by-4.0"
    )
    card = card_of(report.out)
    assert card.data.license == "cc-by-4.0"
    assert {config["config_name"] for config in card.data.configs} == {"figures", "face"} == set(report.infos)
    assert "the seed of the references is 5" in card.text
    assert "| `face` |" in card.text and "| `swap` |" not in card.text
    assert "drawings are embedded" in card.text and "images=" not in card.text
