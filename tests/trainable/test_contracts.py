"""What every registered part holds to, built in or shown in docs/extending.md."""

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from upath import UPath

from trainable.config import Branch, TrialConfig
from trainable.errors import ConfigError
from trainable.model import backbones
from trainable.model.branch import BranchModel
from trainable.model.heads import build_head
from trainable.novelty.bank import FeatureBank, all_of_features
from trainable.novelty.rule import novelty_score
from trainable.parts import HEADS, REGISTRIES, SCORES, Registry, needs_bank
from trainable.rng import generator
from trainable.user_parts import PartsError, UserParts

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCKS = dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```", PAGE.read_text(), re.M | re.S))
OWN = UserParts(
    files=("my_head.py", "my_score.py", "my_backbone.py"),
    sources={name: text for name, text in BLOCKS.items() if name != "my_space.py"},
)
SCORE_NAMES, HEAD_NAMES = [*SCORES, "centroid"], [*HEADS, "two_layers"]
BACKBONE_NAMES = ["efficientnet_lite0", "resnet18", "vit_b_16", "test_resnet", "three_blocks"]
"""One of each family: they share its code."""
NUM_CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def own_parts() -> Iterator[None]:
    OWN.use()
    yield
    UserParts().use()


def known_and_borrowed(num_borrowed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in four clusters, and borrowed ones elsewhere."""
    rng = torch.Generator().manual_seed(0)
    target = torch.cat([torch.arange(60) % NUM_CLASSES, torch.full((num_borrowed,), -1)])
    centres = torch.cat([4 * torch.eye(NUM_CLASSES, 8), -4 * torch.ones(1, 8)])
    return centres[target] + 0.3 * torch.randn(len(target), 8, generator=rng), target


def scored(name: str, features: torch.Tensor, bank: FeatureBank) -> torch.Tensor:
    """The score of images with these features; their logits are the first ones, novel's is low."""
    if needs_bank(name):
        return bank.scores(features, [name])[name]
    novel = torch.full((len(features), 1), -4.0)
    return novelty_score(torch.cat([features[:, :NUM_CLASSES], novel], 1), name)


# --- Every part ------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda each: each.key)
def test_every_part_says_what_it_is_and_where_it_comes_from(registry: Registry[object]) -> None:
    assert len(registry) > 0
    for name in registry:
        about = registry.about(name)
        assert about.meaning.endswith((".", "installation.")), name
        assert about.source


# --- Novelty scores --------------------------------------------------------------------------


@pytest.mark.parametrize("num_borrowed", [0, 20])
@pytest.mark.parametrize("name", SCORE_NAMES)
def test_score_is_higher_where_an_image_looks_more_known(name: str, num_borrowed: int) -> None:
    """Also without borrowed images."""
    bank = FeatureBank.fit(*known_and_borrowed(num_borrowed))
    near, far = 4 * torch.eye(NUM_CLASSES, 8), -4 * torch.ones(3, 8)
    assert scored(name, near, bank).min() > scored(name, far, bank).max()


@pytest.mark.parametrize("num_borrowed", [0, 20])
@pytest.mark.parametrize("name", [*all_of_features(), "centroid"])
def test_score_from_a_file_is_the_live_one_bit_for_bit(name: str, num_borrowed: int) -> None:
    bank = FeatureBank.fit(*known_and_borrowed(num_borrowed))
    stored = safetensors.torch.load(safetensors.torch.save(bank.tensors([name])))
    read = FeatureBank.from_tensors(stored, [name], 8)
    queries = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(scored(name, queries, read), scored(name, queries, bank))


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_equal_images_have_equal_and_finite_scores(name: str) -> None:
    bank = FeatureBank.fit(*known_and_borrowed(20))
    queries = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    score = scored(name, queries.repeat_interleave(4, 0), bank)
    assert (score.shape, score.dtype) == ((64,), torch.float64)
    assert score.isfinite().all()
    assert all(len(each.unique()) == 1 for each in score.split(4))


# --- Heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_head_gives_logits_and_is_drawn_from_its_seed_alone(name: str) -> None:
    first, again, other = (
        build_head(name, 8, NUM_CLASSES, generator(seed, "head")) for seed in (0, 0, 1)
    )
    state, same, differs = (each.state_dict() for each in (first, again, other))
    assert all(torch.equal(tensor, same[key]) for key, tensor in state.items())
    assert any(not torch.equal(tensor, differs[key]) for key, tensor in state.items())
    features = torch.randn(5, 8)
    assert first(features).shape == (5, NUM_CLASSES)
    other.load_state_dict(state)
    assert torch.equal(other(features), first(features))
    first(features).sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())


# --- Backbones -------------------------------------------------------------------------------


def branch_of(name: str, fine_tune: str) -> BranchModel:
    (branch,) = TrialConfig(backbone=name, image_size=32, fine_tune=fine_tune).branches()
    assert isinstance(branch, Branch)
    classes = {"super": 3, "sub": NUM_CLASSES}
    return BranchModel.build(branch, classes, 0, pretrained=False).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_backbone_is_cut_frozen_and_loaded(name: str) -> None:
    frozen, cut, full = (branch_of(name, mode) for mode in ("frozen", "last_1", "full"))
    assert (len(frozen.tuned), len(cut.tuned), len(full.frozen)) == (0, 1, 0)
    images = torch.randint(256, (2, 40, 40, 3), dtype=torch.uint8)
    with torch.no_grad():
        whole = nn.Sequential(*full.frozen, *full.tuned)
        for model in (frozen, cut):
            nn.Sequential(*model.frozen, *model.tuned).load_state_dict(whole.state_dict())
        pooled = [each.tuned(each.encode(each.prepare(images))) for each in (frozen, cut, full)]
    assert pooled[0].shape == (2, frozen.num_features)
    scale = pooled[2].abs().max()
    for each in pooled[:2]:  # a frozen part rounds in another order, see `folding`
        torch.testing.assert_close(each / scale, pooled[2] / scale, atol=1e-4, rtol=0)
    cut.train()
    assert not any(module.training for module in cut.frozen.modules())
    assert not any(parameter.requires_grad for parameter in cut.frozen.parameters())


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_backbone_normalises_by_its_own_mean_and_deviation(name: str) -> None:
    backbone = backbones.build(name, 32, pretrained=False)
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    prepared = branch_of(name, "frozen").prepare(white)[0, :, 0, 0]
    torch.testing.assert_close(prepared, expected)


# --- A user's files --------------------------------------------------------------------------


def test_parts_of_the_page_are_twenty_lines_each() -> None:
    assert {*BLOCKS} == {*OWN.files, "my_space.py"}
    assert all(len(BLOCKS[name].splitlines()) <= 20 for name in OWN.files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", r"^mine.py, line 1: ZeroDivisionError: division by zero"),
        ("x = (\n", r"^mine.py, line 1: SyntaxError"),
        (
            "from trainable.parts import HEADS\n"
            "@HEADS.register('linear', source='x')\ndef head(n, m):\n    'A head.'\n",
            r"^mine.py, line 2: there is a head 'linear' of noveltune: take another name",
        ),
        (
            "from trainable.parts import HEADS\n"
            "@HEADS.register('mine', source='x')\ndef head(n, m):\n    pass\n",
            r"^mine.py, line 2: the head 'mine' has no docstring",
        ),
        (
            "from trainable.parts import SCORES\n"
            "@SCORES.register('super_mine', source='x')\ndef score(logits):\n    'A score.'\n",
            r"^mine.py, line 2: no name of a novelty score begins with super_, but got",
        ),
    ],
)
def test_bad_file_of_parts_is_refused_with_its_line(text: str, message: str) -> None:
    try:
        with pytest.raises(PartsError, match=message):
            UserParts(files=("mine.py",), sources={"mine.py": text}).use()
        assert "two_layers" not in HEADS
    finally:
        OWN.use()


@pytest.mark.parametrize("name", ["../mine.py", "/mine.py", "mine.txt", 3])
def test_file_that_would_not_travel_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PartsError, match="PARTS names Python files beside the space file"):
        UserParts.read(UPath(tmp_path), [name])


def test_parts_travel_with_the_modules_that_they_import(tmp_path: Path) -> None:
    (tmp_path / "widths.py").write_text("HIDDEN = 5\n")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom trainable.parts import HEADS\nfrom widths import HIDDEN\n"
        "@HEADS.register('wide', source='ours')\ndef wide(n, m):\n    'Wide.'\n"
        "    return nn.Sequential(nn.Linear(n, HIDDEN), nn.Linear(HIDDEN, m))\n"
    )
    parts = UserParts.read(UPath(tmp_path), ["mine.py"])
    assert {*parts.sources} == {"mine.py", "widths.py"}
    for file in tmp_path.iterdir():
        file.unlink()
    try:
        UserParts.from_dict(parts.to_dict()).use()
        assert TrialConfig(head="wide").head == "wide"
        head = build_head("wide", 8, 3, generator(0))
        assert isinstance(head, nn.Sequential)
        assert head[0].out_features == 5
    finally:
        OWN.use()
    with pytest.raises(ConfigError, match="`head` must be one of"):
        TrialConfig(head="wide")


def used(folder: Path, sources: dict[str, str], *files: str) -> None:
    """Use parts that are kept elsewhere by now."""
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    parts = UserParts.read(UPath(folder), files)
    assert parts.sources == sources
    shutil.rmtree(folder)
    parts.use()


FAMILY = """
from trainable.novelty.scores import neighbours
from trainable.parts import SCORES

@SCORES.register("nearer", source="ours")
class Nearer(neighbours.Knn):
    "As near as knn says."
"""


def test_scores_of_one_family_have_one_fit() -> None:
    """What the one was fitted to would score the other."""
    bank = FeatureBank.fit(*known_and_borrowed(20))
    try:
        UserParts(files=("mine.py",), sources={"mine.py": FAMILY}).use()
        assert torch.equal(*bank.scores(torch.eye(3, 8), ["knn", "nearer"]).values())
        text = FAMILY + "    @staticmethod\n    def fit(features, target):\n        return {}\n"
        UserParts(files=("mine.py",), sources={"mine.py": text}).use()
        with pytest.raises(ConfigError, match="knn and nearer are of one family"):
            FeatureBank.fit(*known_and_borrowed(20)).scores(torch.eye(3, 8), ["knn"])
    finally:
        OWN.use()


LAZY = """
from trainable.parts import HEADS

@HEADS.register("{name}", source="ours")
def head(num_features, num_classes):
    "As wide as it finds when it is made."
    from {module} import Wide
    return Wide(num_features, num_classes)
"""
WIDE = "import torch\nclass Wide(torch.nn.Linear):\n    'Our own.'\n"


@pytest.mark.parametrize("module", ["lazily", "helpers.lazily"])
def test_part_imports_what_lies_beside_it_when_it_is_called(tmp_path: Path, module: str) -> None:
    file = f"{module.replace('.', '/')}.py"
    sources = {"mine.py": LAZY.format(name="lazy", module=module), file: WIDE}
    try:
        used(tmp_path / "parts", sources, "mine.py")
        assert type(build_head("lazy", 8, 3, generator(0))).__name__ == "Wide"
        with pytest.raises(ImportError):
            importlib.import_module("mine")  # by us, who are not of its folder
        UserParts().use()
        assert module not in sys.modules
    finally:
        OWN.use()


@pytest.mark.parametrize("files", [("first.py", "second.py"), ("second.py", "first.py")])
def test_files_of_parts_share_one_that_registers(tmp_path: Path, files: tuple[str, ...]) -> None:
    sources = {
        "shared.py": LAZY.format(name="shared", module="first"),
        "first.py": f"import shared\n{WIDE}",
        "second.py": "import shared, first\nassert first.shared is shared\n",
    }
    try:
        used(tmp_path / "parts", sources, *files)
        assert type(build_head("shared", 8, 3, generator(0))).__name__ == "Wide"
    finally:
        OWN.use()


def test_file_whose_failed_import_another_survives_is_refused_all_the_same() -> None:
    first = "try:\n    import second\nexcept ZeroDivisionError:\n    pass\n"
    parts = UserParts(
        files=("first.py", "second.py"), sources={"first.py": first, "second.py": "1 / 0\n"}
    )
    try:
        with pytest.raises(PartsError, match=r"^second.py, line 1: ZeroDivisionError"):
            parts.use()
    finally:
        OWN.use()
