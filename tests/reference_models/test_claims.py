"""What the files of claims and variants say about methods: such methods and settings exist, written as
records write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_models.core.config import parse_settings, to_json
from wsolbench.methods import list_detectors, load_detector, load_method, load_post
from wsolbench.records.claims import matches_claim, read_claims, read_variants
from wsolbench.records.published import LITERATURE

MEANT = sorted(
    {
        side
        for claim in read_claims(LITERATURE / "claims.csv")
        for side in (*claim.sides, *(claim.of_control.sides if claim.control else ()))
    }
    | set(read_variants(LITERATURE / "variants.csv").values())
)


@pytest.mark.parametrize(("name", "settings"), MEANT)
def test_a_run_with_these_settings_is_the_one_that_matches_claim(
    name: str, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").touch()  # the file that `part_net=checkpoint` names
    method, _, post = name.partition("+")
    pairs = dict(part.split("|")[0].split("=") for part in settings.split(";") if part)
    load = load_detector if method in {row.name for row in list_detectors()} else load_method
    of_post = {name.removeprefix("post."): pairs.pop(name) for name in [*pairs] if name.startswith("post.")}
    kind = load(method).Config
    # An empty value of a later setting is its default, which records do not state.
    pairs = {name: value for name, value in pairs.items() if value or name not in getattr(kind, "later", ())}
    described = {"name": name, "config": to_json(parse_settings(kind, pairs, what=method))}
    if post:
        described["post"] = {
            "name": post,
            "config": to_json(parse_settings(load_post(post).Config, of_post, what=post)),
        }
        assert load_post(post).method_name == post
    assert matches_claim(described, name, settings)
