"""Is what the promise benchmark calls its test kept from the search, and does it run to its end?"""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.benchmarks import promise
from tests.made_data import make_data
from trainable.data.splits import make_pools
from trainable.out_of_fold import pools_of_refit


@pytest.mark.parametrize("number", range(4))
def test_search_has_no_image_of_the_test_and_no_class_that_was_taken_away(number: int) -> None:
    whole = make_data(subclasses=(6, 5, 7), images=9, borrowed=(6, 6, 6, 6))
    split = promise.make_split(whole, number)
    taken = number % 3
    test, rows = set(split.test.tolist()), set(split.rows.tolist())
    assert not test & rows
    assert test | rows == set(range(len(whole.images)))
    assert not (whole.superclass[split.rows] == taken).any()
    novel = split.subclass == len(split.data.subclasses)
    away = set(split.true_class[novel].tolist())
    assert not away & set(whole.subclass[split.rows].tolist())
    others = {i for i, s in enumerate(whole.super_of_sub) if s != taken}
    assert len(away & others) == round(0.15 * len(others))
    # Every other subclass has images on both sides, and names follow the labels.
    for place in (~novel).nonzero()[:, 0].tolist():
        name = split.data.subclasses[split.subclass[place]]
        assert name == whole.subclasses[split.true_class[place]]
    assert set(split.subclass[~novel].tolist()) == set(range(len(split.data.subclasses)))
    config = promise.configuration(0, rejection=False)
    searched = split.searched
    asked = pools_of_refit(searched, config)
    refits = asked.whole, *asked.shares
    for made in (make_pools(searched, config), *refits):
        pools = promise.in_whole(made, split)
        assert set(torch.cat([pools.train, pools.val]).tolist()) <= rows
        named = [whole.subclasses[whole.subclass[r]] for r in pools.train if r < whole.num_known]
        outputs = pools.sub_target[pools.train[pools.train < whole.num_known]].tolist()
        assert named == [split.data.subclasses[pools.subclasses[each]] for each in outputs]


def test_configurations_are_the_same_but_for_what_rejects() -> None:
    drawn = [promise.configuration(n, rejection=False).to_dict() for n in range(12)]
    bounded = [promise.configuration(n, rejection=True).to_dict() for n in range(12)]
    assert len({json.dumps(each) for each in drawn}) == 12
    changed = {k for a, b in zip(drawn, bounded, strict=True) for k in a if a[k] != b[k]}
    assert changed == {"known_rejection_super", "known_rejection_sub"}


@pytest.mark.slow
def test_promise_compares_every_configuration_and_the_refit_of_the_best(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--splits", "1", "--configs", "2", "--epochs", "1", "--image-size", "32"]
    file = tmp_path / "rows.csv"
    promise.main(["--data", str(data), *arguments, "--rows", str(file)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = pd.read_csv(file)
    assert rows.groupby(["model", "configuration"]).ngroups == 3
    scores = rows[(rows["metric"] == "score") & (rows["model"] == "trial")]
    best = scores.loc[scores["promised"].idxmax()]
    assert result["trial"]["score"]["promised"] == pytest.approx(best["promised"])
    assert result["trial"]["score"]["found"] == pytest.approx(best["found"])
    assert {*result["refit"]} == {*promise.SHOWN}
    refit = rows[rows["model"] == "refit"]
    assert (refit["configuration"] == best["configuration"]).all()
    assert (rows["low"] <= rows["high"]).all()
    assert math.isfinite(result["rank_correlation"]["score"])
