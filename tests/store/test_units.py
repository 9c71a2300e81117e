"""Blocks: what a block's key depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.units import BlockCache


def _cache(
    store: ArtifactStore, seed: int = 0, code: str = "1", refresh: bool = False
) -> BlockCache:
    return BlockCache(
        store, "quantize-block", {"module": code}, {"seed": seed}, made=set() if refresh else None
    )


def _run(cache: BlockCache, contents: list[str], plan: list[str]) -> str:
    """Walk over the blocks; `r` where one had to be computed, `c` where it was found."""
    history = ""
    for index, (content, scheme) in enumerate(zip(contents, plan, strict=True)):
        if cache.get(index, {"scheme": scheme}):
            history += "c"
            continue
        cache.put(index, {"scheme": scheme}, lambda to, c=content: _write(to, c))  # type: ignore[misc]
        history += "r"
    return history


def _write(folder: Path, content: str) -> None:
    (folder / "block").write_text(content)


def test_finished_blocks_are_found_again(store: ArtifactStore) -> None:
    assert _run(_cache(store), ["a", "b"], ["int4", "int4"]) == "rr"
    assert _run(_cache(store), ["a", "b"], ["int4", "int4"]) == "cc"


@pytest.mark.parametrize("change", [{"seed": 1}, {"code": "2"}])
def test_static_inputs_and_code_concern_every_block(
    store: ArtifactStore, change: dict[str, object]
) -> None:
    _run(_cache(store), ["a", "b"], ["int4", "int4"])
    assert _run(_cache(store, **change), ["a", "b"], ["int4", "int4"]) == "rr"  # type: ignore[arg-type]


def test_a_refreshed_cache_finds_nothing(store: ArtifactStore) -> None:
    _run(_cache(store), ["a"], ["int4"])
    assert _run(_cache(store, refresh=True), ["a"], ["int4"]) == "r"


def test_a_plan_that_differs_from_block_k_on_reuses_the_blocks_before(store: ArtifactStore) -> None:
    _run(_cache(store), ["a", "b", "c", "d"], ["int4"] * 4)
    plan = ["int4", "int4", "int8", "int4"]
    assert _run(_cache(store), ["a", "b", "C", "D"], plan) == "ccrr"


def test_a_kept_block_does_not_hide_a_change_before_it(store: ArtifactStore) -> None:
    """Block 1 is bf16 in both plans, so its artifact is equal; block 2 sees other inputs all the same."""
    _run(_cache(store), ["int4 weights", "kept", "c"], ["int4", "bf16", "int4"])
    history = _run(_cache(store), ["int8 weights", "kept", "C"], ["int8", "bf16", "int4"])
    assert history == "rrr"


def test_a_change_without_effect_reuses_what_follows(store: ArtifactStore) -> None:
    _run(_cache(store), ["same", "b"], ["int4", "int4"])
    assert _run(_cache(store), ["same", "b"], ["fp4", "int4"]) == "rc"


def test_a_damaged_block_is_computed_again(store: ArtifactStore) -> None:
    cache = _cache(store)
    _run(cache, ["a", "b", "c"], ["int4"] * 3)
    (store.path(cache.refs[1]) / "block").unlink()
    assert _run(_cache(store), ["a", "b", "c"], ["int4"] * 3) == "crc"


def test_a_block_that_is_solved_while_another_is_written_keeps_its_seconds(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for behind that; the first one, and one behind a block that was found, begin where they are asked for."""
    _run(_cache(store), ["a"], ["int4"])
    clock = [0.0]
    monkeypatch.setattr("alphaquant.store.units.time.perf_counter", lambda: clock[0])
    cache = _cache(store)

    def wait(seconds: float) -> None:
        clock[0] += seconds

    wait(1)
    assert cache.get(0, {"scheme": "int4"})
    wait(10)
    assert cache.get(1, {}) is None
    wait(100)
    cache.put(1, {}, lambda to: _write(to, "b"))
    assert cache.seconds == 100
    wait(1000)  # the next one is solved
    assert cache.get(2, {}) is None
    cache.put(2, {}, lambda to: _write(to, "c"))
    assert cache.seconds == 1100


def test_blocks_must_be_asked_for_in_order(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="block 1 was asked for after 0 blocks"):
        _cache(store).get(1, {})
