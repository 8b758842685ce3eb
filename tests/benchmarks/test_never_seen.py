"""Does the benchmark of scores ask about every image, subclass and superclass left out?"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import never_seen
from trainable.data.splits import LEFT_OUT, PSEUDO_NOVEL, SEEN
from trainable.novelty.thresholds import Outputs


@pytest.mark.slow
def test_never_seen_says_what_each_score_rejects_and_finds(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Outputs] = []
    ask = never_seen.asked

    def listened(*given: Any) -> Outputs:
        said.append(ask(*given))
        return said[0]

    monkeypatch.setattr(never_seen, "asked", listened)
    scores = ["--scores", "max_logit", "knn_difference+rmds", "--bounds", "0.05", "0.3"]
    sizes = ["--backbone", "efficientnet_lite0", "--image-size", "32", "--novel-images", "4"]
    never_seen.main(["--data", str(data), *scores, *sizes, "--epochs", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = said[0].kind.bincount().tolist()
    num = kinds[PSEUDO_NOVEL]
    assert kinds[LEFT_OUT] == num == len(said[0].rows.unique())
    assert 0.4 * num <= kinds[SEEN] <= 0.6 * num
    rows = [(row["score"], row["bound"]) for row in result["rows"]]
    assert rows == [(s, b) for s in ("max_logit", "knn_difference+rmds") for b in (0.05, 0.3)]
    for strict, loose in (result["rows"][:2], result["rows"][2:]):
        for name in ("seen", "unseen", "found", "worst"):
            assert 0 <= strict[name] <= loose[name] <= 1
        assert strict["found"] < loose["found"]
        assert loose["worst"] <= loose["found"]
    assert result["rows"][2]["seen"] + result["rows"][2]["unseen"] <= 0.11
