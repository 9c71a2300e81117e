"""The points of a sweep: every combination once, each checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphaquant.config import RunConfig
from alphaquant.config.file import load_config, parse_config
from alphaquant.errors import ConfigError, UserError
from alphaquant.store.artifacts import ArtifactStore
from flows.points import Axis, folder_name, points_of, read_axis


def test_an_axis_is_a_key_and_yaml_values() -> None:
    axis = read_axis("allocation.formats=[int4, mxfp4], [int8]")
    assert axis.key == "allocation.formats"
    assert axis.values == ('["int4", "mxfp4"]', '["int8"]')
    assert read_axis("allocation.target_bits=3,3.5").values == ("3", "3.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allocation.target_bits", "is not section.key=value"),
        ("bits=3,4", "is not section.key=value.* nor recipe=fast,balanced,best"),
        ("allocation.target_bits=", "names no values"),
        ("allocation.target_bits=[3", "is not a list of values"),
        ("calibration.dataset=2026-01-01", "is not a list of values"),
        ("calibration.dataset=2026-13-01", "is not a list of values"),
    ],
)
def test_a_wrong_axis_is_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_axis(text)


def test_points_are_all_combinations_in_order(
    config: RunConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    over = [read_axis("quantization.method=gptq,rtn"), read_axis("allocation.target_bits=4,6,4")]
    points = points_of(config, over, store, tmp_path / "out", ("alpha",))
    assert [point.name for point in points] == [
        "method=gptq, target_bits=4",
        "method=gptq, target_bits=6",
        "method=rtn, target_bits=4",
        "method=rtn, target_bits=6",
    ]
    last = points[-1].request
    assert (last.config.quantization.method, last.config.allocation.target_bits) == ("rtn", 6)
    assert last.config.quantization.group_size == 16
    assert last.out == tmp_path / "out" / "method-rtn_target_bits-6"
    assert last.force == ("alpha",)


def test_recipes_are_taken_in_turn_and_keys_of_the_config_win(
    store: ArtifactStore, tmp_path: Path, config: RunConfig
) -> None:
    said = ["rotation.kind=none", f"model.path={config.model.path}"]
    over = [read_axis("recipe=fast,best"), read_axis("calibration.samples=4,8")]
    points = points_of(load_config(None, said), over, store, tmp_path / "out")
    assert [point.name for point in points] == [
        f"recipe={name}, samples={samples}" for name in ("fast", "best") for samples in (4, 8)
    ]
    for point in points:
        spelt = [*said, f"calibration.samples={point.settings['calibration.samples']}"]
        assert point.request.config == load_config(None, spelt, point.settings["recipe"])


@pytest.mark.parametrize("filled", ["best", None])
def test_recipes_that_could_change_nothing_are_refused(
    store: ArtifactStore, tmp_path: Path, config: RunConfig, filled: str | None
) -> None:
    """Neither behind a recipe of the config's own, nor behind a form, which sends its defaults along."""
    given = load_config(None, [f"model.path={config.model.path}"], filled)
    if filled is None:
        given = parse_config(given.model_dump(mode="json"))
    with pytest.raises(ConfigError, match=r"recipes fast and balanced are the same here: .*tune"):
        points_of(given, [read_axis("recipe=fast,balanced")], store, tmp_path / "out")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([], "needs config keys to go over"),
        ([("allocation.target_bits", ("3",)), ("allocation.target_bits", ("4",))], "each once"),
        ([("execution.device", ("cpu",))], "decides no result"),
        ([("allocation.target_bits", ())], "allocation.target_bits is given no values"),
        (
            [("allocation.target_bits", ("3", "[4"))],
            r"'\[4' is no value for allocation.target_bits",
        ),
        ([("calibration.dataset", ("2026-01-01",))], "text in quotes"),
        ([("allocation.targetbits", ("3",))], "unknown config key 'allocation.targetbits'"),
        ([("allocation.target_bits", ("3", "99"))], r"at .*99.*less than or equal to 16"),
        ([("recipe", ("bets",))], "'bets' is not known; nearest: best"),
        ([("calibration.seed", tuple(map(str, range(201))))], "201 points are too many"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(
    config: RunConfig,
    store: ArtifactStore,
    tmp_path: Path,
    axes: list[tuple[str, tuple[str, ...]]],
    message: str,
) -> None:
    over = [Axis(key=key, values=values) for key, values in axes]
    with pytest.raises(UserError, match=message):
        points_of(config, over, store, tmp_path / "out")
    assert not store.root.exists()


def test_folder_names_are_plain() -> None:
    assert folder_name({"a.bits": 3.5, "b.method": "gptq"}) == "bits-3.5_method-gptq"
    assert folder_name({"a.text": "a/b"}).startswith("text-a-b-")


def test_no_two_points_share_a_folder() -> None:
    long = [f"int{bits}-g{group}" for bits in (2, 3, 4, 6, 8) for group in (16, 32, 64, 128)]
    settings = [{"a.formats": long}, {"a.formats": long[:-1]}, {"a.x": "a/b"}, {"a.x": "a-b"}]
    names = {folder_name(one) for one in settings}
    assert len(names) == 4
    assert all(len(name) < 128 for name in names)
