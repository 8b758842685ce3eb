"""No image, and no class that must stay unseen, is in two pools."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_data import make_data
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import (
    LEFT_OUT,
    NOVEL_SUPER,
    PSEUDO_NOVEL,
    SECOND,
    SEEN,
    Pools,
    leave_out,
    make_folds,
    make_pools,
    make_refit_pools,
    true_classes,
)
from trainable.errors import DataError

# Four subclasses or more: two are always seen, and give an image to each half.
datas = st.builds(
    make_data,
    subclasses=st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda n: sum(n) > 3),
    images=st.integers(2, 9),
    borrowed=st.one_of(st.integers(2, 30), st.lists(st.integers(2, 6), min_size=2, max_size=6)),
)
configs = st.builds(
    TrialConfig,
    seed=st.integers(0, 2**31 - 1),
    pseudo_novel_fraction=st.floats(0.0, 0.5),
    second_pseudo_novel_fraction=st.floats(0.0, 0.12),
    val_fraction=st.floats(0.001, 0.5),
    novel_images=st.integers(0, 40),
)
any_pools = settings(deadline=None, max_examples=40)


def held_out(data: Data, pools: Pools) -> set[int]:
    return set(range(len(data.subclasses))) - set(pools.subclasses)


def borrowed_training_rows(data: Data, pools: Pools) -> torch.Tensor:
    return pools.train[pools.train >= data.num_known]


def is_same(one: Pools, other: Pools) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Pools)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# --- What no pool may share -------------------------------------------------------------------


@given(datas, configs)
@any_pools
def test_no_image_is_in_two_pools_or_twice_in_one(data: Data, config: TrialConfig) -> None:
    pools = make_pools(data, config)
    rows = torch.cat([pools.train, pools.val]).tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(len(data.images)))


@given(datas, configs)
@any_pools
def test_every_known_image_is_in_a_pool(data: Data, config: TrialConfig) -> None:
    pools = make_pools(data, config)
    assert set(range(data.num_known)) <= set(torch.cat([pools.train, pools.val]).tolist())


@given(datas, configs)
@any_pools
def test_held_out_subclasses_are_never_in_training(data: Data, config: TrialConfig) -> None:
    pools = make_pools(data, config)
    out = held_out(data, pools)
    assert not out & set(data.subclass[pools.train].tolist())
    pseudo = pools.val[(pools.val_kind == PSEUDO_NOVEL) | (pools.val_kind == SECOND)]
    expected = {i for i, c in enumerate(data.subclass.tolist()) if c in out}
    assert set(pseudo.tolist()) == expected


@given(datas, configs)
@any_pools
def test_kind_tells_seen_from_held_out_from_borrowed(data: Data, config: TrialConfig) -> None:
    pools = make_pools(data, config)
    out = held_out(data, pools)
    for row, kind in zip(pools.val.tolist(), pools.val_kind.tolist(), strict=True):
        if row >= data.num_known:
            assert kind == NOVEL_SUPER
        else:
            assert kind in ((PSEUDO_NOVEL, SECOND) if int(data.subclass[row]) in out else (SEEN,))


@given(datas, configs)
@any_pools
def test_parts_share_no_image_and_each_has_half_of_every_kind(
    data: Data, config: TrialConfig
) -> None:
    """Half of the images, or of the classes where these are whole."""
    pools = make_pools(data, config)
    in_part_a = pools.val_in_part_a
    assert not set(pools.val[in_part_a].tolist()) & set(pools.val[~in_part_a].tolist())
    shown = true_classes(data)[pools.val]
    for kind in (SEEN, PSEUDO_NOVEL, NOVEL_SUPER, SECOND):
        of_kind = pools.val_kind == kind
        each = [shown[of_kind & part].tolist() for part in (in_part_a, ~in_part_a)]
        by_class = kind != SEEN and len(set(shown[of_kind].tolist())) > 1
        a, b = (set(part) if by_class else part for part in each)
        assert abs(len(a) - len(b)) <= 1
        if kind in (SEEN, NOVEL_SUPER):
            assert min(len(a), len(b)) > 0


@given(datas, configs)
@any_pools
def test_what_chooses_and_what_judges_show_different_held_out_and_borrowed_classes(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    shown = true_classes(data)[pools.val]
    for kind in (PSEUDO_NOVEL, NOVEL_SUPER, SECOND):
        of_kind = pools.val_kind == kind
        classes = set(shown[of_kind].tolist())
        a, b = (
            set(shown[of_kind & part].tolist())
            for part in (pools.val_in_part_a, ~pools.val_in_part_a)
        )
        if len(classes) > 1:
            assert min(len(a), len(b)) > 0
            assert not a & b


def test_parts_have_as_many_held_out_subclasses_of_each_superclass() -> None:
    data = make_data(subclasses=(8, 8, 8), images=2)
    for seed in range(5):
        pools = make_pools(data, TrialConfig(pseudo_novel_fraction=0.5, seed=seed))
        pseudo = pools.val_kind == PSEUDO_NOVEL
        for superclass in range(3):
            of_super = pseudo & (data.superclass[pools.val] == superclass)
            a, b = (
                set(data.subclass[pools.val[of_super & part]].tolist())
                for part in (pools.val_in_part_a, ~pools.val_in_part_a)
            )
            assert (len(a), len(b)) == (2, 2)


@given(datas, configs)
@any_pools
def test_parts_share_the_images_of_every_seen_subclass(data: Data, config: TrialConfig) -> None:
    pools = make_pools(data, config)
    for subclass in pools.subclasses:
        of_class = pools.val_in_part_a[data.subclass[pools.val] == subclass]
        assert abs(int(of_class.sum()) - int((~of_class).sum())) <= 1


@given(st.lists(st.integers(2, 6), min_size=2, max_size=12), configs)
@any_pools
def test_borrowed_classes_that_judge_are_not_those_that_train(
    borrowed: list[int], config: TrialConfig
) -> None:
    data = make_data(borrowed=borrowed)
    pools = make_pools(data, config)
    judging = data.borrowed_class[pools.val[pools.val_kind == NOVEL_SUPER]]
    training = data.borrowed_class[borrowed_training_rows(data, pools)]
    assert not set(judging.tolist()) & set(training.tolist())
    # A quarter of the classes, rounded as Python does, and one for each part: all their images.
    classes = set(judging.tolist())
    assert len(classes) == max(2 if len(borrowed) > 2 else 1, round(len(borrowed) / 4))
    assert len(judging) == sum(borrowed[b] for b in classes)


@pytest.mark.parametrize("borrowed", [40, (40,)], ids=["no classes", "one class"])
def test_pool_without_several_classes_is_split_by_image(borrowed: Any) -> None:
    data = make_data(borrowed=borrowed)
    pools = make_pools(data, TrialConfig())
    judging = set(pools.val[pools.val_kind == NOVEL_SUPER].tolist())
    training = set(borrowed_training_rows(data, pools).tolist())
    assert (len(judging), len(training)) == (10, 30)
    assert not judging & training


def test_novel_validation_is_capped_and_the_rest_of_its_classes_stays_out() -> None:
    data = make_data(borrowed=(1500,) * 5)
    pools = make_pools(data, TrialConfig(novel_images=10_000))
    assert int((pools.val_kind == NOVEL_SUPER).sum()) == 1000
    assert pools.novel_images_used == 4500


@given(
    datas.flatmap(
        lambda data: st.lists(st.integers(0, len(data.images) - 1), min_size=2, max_size=30).map(
            lambda rows: with_copies(data, rows)
        )
    ),
    configs,
)
@any_pools
def test_copies_of_an_image_never_part_training_from_validation(
    data: Data, config: TrialConfig
) -> None:
    try:
        pools = make_pools(data, config)
    except DataError:
        return  # all images of a pool are copies of one
    train, val = set(pools.train.tolist()), pools.val.tolist()
    assert len(val) == len(set(val))
    assert not train & set(val)
    half = dict(zip(val, pools.val_in_part_a.tolist(), strict=True))
    for copies in data.copies:
        assert not (train & set(copies) and set(val) & set(copies))
        assert len({half[row] for row in copies if row in half}) <= 1
    train_classes = {c for row, c in enumerate(data.subclass.tolist()) if row in train}
    assert train_classes >= set(pools.subclasses)


def with_copies(data: Data, rows: list[int]) -> Data:
    """Make those of the rows that are of one class copies of each other."""
    groups: dict[tuple[int, int], set[int]] = {}
    for row in rows:
        key = int(data.subclass[row]), int(data.borrowed_class[row])
        groups.setdefault(key, set()).add(row)
    copies = tuple(tuple(sorted(group)) for group in groups.values() if len(group) > 1)
    return replace(data, copies=copies)


def test_copies_leave_as_many_to_judge_and_other_classes_as_they_are() -> None:
    """Every image of the first class is there twice, as in a data set merged with itself."""
    data = make_data(subclasses=(2,), images=(40, 20))
    rows = [row for row, c in enumerate(data.subclass.tolist()) if c == 0]
    config = TrialConfig(pseudo_novel_fraction=0.0, val_fraction=0.2)
    twice = replace(data, copies=tuple(zip(rows[::2], rows[1::2], strict=True)))
    plain, paired = (make_pools(each, config) for each in (data, twice))
    counts = [Counter(data.subclass[pools.val].tolist()) for pools in (plain, paired)]
    assert counts[0] == counts[1]
    assert [r for r in plain.val.tolist() if r not in rows] == [
        r for r in paired.val.tolist() if r not in rows
    ]


# --- Held-out subclasses ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.15, 0.3, 0.5])
def test_held_out_subclasses_are_spread_over_the_superclasses(fraction: float, seed: int) -> None:
    data = make_data(subclasses=(8, 8, 8), images=2)
    out = held_out(data, make_pools(data, TrialConfig(pseudo_novel_fraction=fraction, seed=seed)))
    assert len(out) == round(fraction * 24)
    per_superclass = Counter({0: 0, 1: 0, 2: 0})
    per_superclass.update(data.super_of_sub[subclass] for subclass in out)
    assert max(per_superclass.values()) - min(per_superclass.values()) <= 1


@given(datas, configs)
@any_pools
def test_only_subclass_of_a_superclass_is_never_held_out(data: Data, config: TrialConfig) -> None:
    out = held_out(data, make_pools(data, config))
    alone = {k for k, count in Counter(data.super_of_sub).items() if count == 1}
    assert not alone & {data.super_of_sub[subclass] for subclass in out}


@given(datas, configs)
@any_pools
def test_every_superclass_keeps_a_subclass_to_train_on(data: Data, config: TrialConfig) -> None:
    """Without one its output would never be trained, and the interaction loss would be NaN."""
    pools = make_pools(data, config)
    assert {data.super_of_sub[c] for c in pools.subclasses} == set(range(len(data.superclasses)))
    known = pools.train[pools.train < data.num_known]
    assert set(data.superclass[known].tolist()) == set(range(len(data.superclasses)))


def test_every_superclass_keeps_a_subclass_among_many_with_only_one() -> None:
    data = make_data(subclasses=(2, *[1] * 8))
    pools = make_pools(data, TrialConfig(pseudo_novel_fraction=0.15))
    assert {data.super_of_sub[c] for c in pools.subclasses} == set(range(9))


def test_other_seed_holds_out_other_subclasses() -> None:
    data = make_data(subclasses=(8, 8, 8), images=2)
    chosen = [held_out(data, make_pools(data, TrialConfig(seed=seed))) for seed in range(5)]
    assert len({frozenset(out) for out in chosen}) == 5


def subclasses_of(data: Data, pools: Pools, kind: int) -> set[int]:
    return set(data.subclass[pools.val[pools.val_kind == kind]].tolist())


@given(datas, configs)
@any_pools
def test_second_hold_out_shares_no_subclass_with_any_other_pool(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    second = subclasses_of(data, pools, SECOND)
    for kind in (SEEN, PSEUDO_NOVEL):
        assert not second & subclasses_of(data, pools, kind)
    assert not second & set(data.subclass[pools.train].tolist())
    assert not second & set(pools.subclasses)


@pytest.mark.parametrize("seed", range(3))
def test_second_hold_out_is_its_fraction_and_leaves_the_first_as_it_is(seed: int) -> None:
    data = make_data(subclasses=(8, 8, 8), images=4)
    firsts, seconds = [], []
    for fraction in (0.0, 0.125, 0.25):
        config = TrialConfig(second_pseudo_novel_fraction=fraction, seed=seed)
        pools = make_pools(data, config)
        of_first = pools.val_kind == PSEUDO_NOVEL
        firsts.append((pools.val[of_first].tolist(), pools.val_in_part_a[of_first].tolist()))
        seconds.append(subclasses_of(data, pools, SECOND))
    assert firsts[0] == firsts[1] == firsts[2]
    assert [len(each) for each in seconds] == [0, 3, 6]
    assert seconds[1] < seconds[2]


# --- Sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "images", "expected"), [(0.1, 30, 3), (0.5, 9, 4), (0.001, 9, 1), (0.3, 10, 3)]
)
def test_fraction_of_each_seen_subclass_validates(
    fraction: float, images: int, expected: int
) -> None:
    data = make_data(images=images)
    pools = make_pools(data, TrialConfig(val_fraction=fraction))
    seen = data.subclass[pools.val[pools.val_kind == SEEN]]
    assert Counter(seen.tolist()) == dict.fromkeys(pools.subclasses, expected)


def test_subclass_of_one_image_only_trains() -> None:
    data = make_data(images=(1, 8, 8, 8, 8, 8, 8))
    pools = make_pools(data, TrialConfig(pseudo_novel_fraction=0.0))
    assert 0 in data.subclass[pools.train]
    assert 0 not in data.subclass[pools.val]


@pytest.mark.parametrize(("asked", "used"), [(0, 0), (7, 7), (18, 18), (19, 18), (10**9, 18)])
def test_pool_smaller_than_asked_is_used_whole_and_its_size_recorded(asked: int, used: int) -> None:
    data = make_data(borrowed=(6, 6, 6, 6, 6))  # two classes of five judge
    pools = make_pools(data, TrialConfig(novel_images=asked))
    assert pools.novel_images_used == used
    assert len(borrowed_training_rows(data, pools)) == used


def test_number_of_novel_images_changes_nothing_else() -> None:
    """Trials of one search are judged on the same images, whatever they train on."""
    data = make_data()
    few, many = (make_pools(data, TrialConfig(novel_images=count)) for count in (3, 12))
    assert torch.equal(few.val, many.val)
    assert torch.equal(few.val_in_part_a, many.val_in_part_a)
    assert set(few.train.tolist()) < set(many.train.tolist())
    assert few.subclasses == many.subclasses


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (make_data(images=1), "0 of seen subclasses and 12 borrowed"),
        (make_data(images=(2, 1, 1, 1, 1, 1, 1)), "1 of seen subclasses and 12 borrowed"),
        (make_data(borrowed=1), "1 borrowed"),
        (make_data(borrowed=0), "0 borrowed"),
        (make_data(borrowed=(1, 1)), "1 borrowed"),
    ],
    ids=["one image each", "one validates", "one borrowed", "none borrowed", "one each borrowed"],
)
def test_too_few_images_for_two_parts_are_refused(data: Data, counts: str) -> None:
    with pytest.raises(DataError, match=f"at least 2 images, .* {counts}: add images$"):
        make_pools(data, TrialConfig(pseudo_novel_fraction=0.0))


# --- Seeds ------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_pools() -> None:
    first, second = (make_pools(make_data(), TrialConfig(seed=3)) for _ in range(2))
    assert is_same(first, second)


def test_other_seed_gives_other_pools() -> None:
    data = make_data()
    first, second = (make_pools(data, TrialConfig(seed=seed)) for seed in (3, 4))
    for kind in (SEEN, NOVEL_SUPER):
        rows = [set(pools.val[pools.val_kind == kind].tolist()) for pools in (first, second)]
        assert rows[0] != rows[1]
    assert first.subclasses != second.subclasses


def test_other_seed_draws_other_borrowed_images_from_a_pool_without_classes() -> None:
    data = make_data(borrowed=40)
    first, second = (make_pools(data, TrialConfig(seed=s, novel_images=10)) for s in (3, 4))
    judging = [set(pools.val[pools.val_kind == NOVEL_SUPER].tolist()) for pools in (first, second)]
    training = [set(borrowed_training_rows(data, pools).tolist()) for pools in (first, second)]
    assert judging[0] != judging[1]
    assert training[0] != training[1]


def test_keys_that_do_not_concern_the_pools_leave_them_alone() -> None:
    data = make_data()
    other = TrialConfig(lr=0.01, architecture="two_models", epochs=3, tau_sub=0.5)
    assert is_same(make_pools(data, TrialConfig()), make_pools(data, other))


# --- Labels as the heads see them -------------------------------------------------------------


@given(datas, configs)
@any_pools
def test_subclass_target_maps_back_to_the_subclass_or_is_novel(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    assert list(pools.subclasses) == sorted(set(pools.subclasses))
    novel_output = len(pools.subclasses)
    for subclass, target in zip(data.subclass.tolist(), pools.sub_target.tolist(), strict=True):
        if subclass in pools.subclasses:
            assert pools.subclasses[target] == subclass
        else:  # held out or borrowed
            assert target == novel_output


@given(datas, configs)
@any_pools
def test_superclass_target_is_the_superclass_and_novel_for_borrowed_images(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    assert torch.equal(pools.super_target, data.superclass)
    assert (pools.super_target[data.num_known :] == len(data.superclasses)).all()


@given(datas, configs)
@any_pools
def test_subclass_outputs_know_their_superclass_and_novel_belongs_to_novel(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    *known, novel = pools.super_of_sub
    assert known == [data.super_of_sub[subclass] for subclass in pools.subclasses]
    assert novel == len(data.superclasses)
    # So every training label agrees with itself, which the interaction loss relies on.
    of_target = torch.tensor(pools.super_of_sub)[pools.sub_target[pools.train]]
    assert torch.equal(of_target, pools.super_target[pools.train])


# --- Superclasses left out --------------------------------------------------------------------


@given(datas, configs)
@any_pools
def test_a_fold_trains_on_and_knows_nothing_of_what_it_leaves_out(
    data: Data, config: TrialConfig
) -> None:
    pools = make_pools(data, config)
    for superclass in range(len(data.superclasses) if len(data.superclasses) > 1 else 0):
        fold = leave_out(pools, superclass)
        is_out = data.superclass == superclass
        assert not is_out[fold.train].any()
        assert set(fold.train.tolist()) == set(pools.train[~is_out[pools.train]].tolist())
        assert superclass not in {data.super_of_sub[each] for each in fold.subclasses}
        assert torch.equal(fold.val, pools.val)
        judged = is_out[pools.val] & (pools.val_kind != SECOND)
        assert torch.equal(fold.val_kind == LEFT_OUT, judged)
        assert torch.equal(fold.val_kind[~judged], pools.val_kind[~judged])
        novel_super, novel_sub = len(data.superclasses) - 1, len(fold.subclasses)
        others = [each for each in range(len(data.superclasses)) if each != superclass]
        for row, (of_super, of_sub) in enumerate(
            zip(fold.super_target.tolist(), fold.sub_target.tolist(), strict=True)
        ):
            if is_out[row] or row >= data.num_known:
                assert (of_super, of_sub) == (novel_super, novel_sub)
            else:
                assert others[of_super] == int(data.superclass[row])
                known = int(data.subclass[row]) in fold.subclasses
                assert (of_sub < novel_sub) == known
                assert not known or fold.subclasses[of_sub] == int(data.subclass[row])
        of_target = torch.tensor(fold.super_of_sub)[fold.sub_target[fold.train]]
        assert torch.equal(of_target, fold.super_target[fold.train])


def test_every_superclass_is_left_out_once_unless_there_is_one_or_none_is_wanted() -> None:
    data, config = make_data(subclasses=(4, 3, 2)), TrialConfig()
    assert [*make_folds(make_pools(data, config), config)] == [0, 1, 2]
    off = replace(config, left_out="none")
    assert make_folds(make_pools(data, off), off) == {}
    one = make_data(subclasses=(7,))
    assert make_folds(make_pools(one, config), config) == {}
    assert make_folds(make_refit_pools(data, config), config) == {}


def test_of_many_superclasses_ten_are_drawn_by_the_seed() -> None:
    data, configs = (
        make_data(subclasses=[2] * 14, images=20),
        [TrialConfig(seed=seed) for seed in range(4)],
    )
    drawn = [frozenset(make_folds(make_pools(data, each), each)) for each in configs]
    assert {len(each) for each in drawn} == {10}
    assert len(set(drawn)) > 1


def test_superclass_without_images_in_both_parts_is_not_left_out() -> None:
    """Of one validation image nobody learns much, and one part would have none to judge."""
    data = make_data(subclasses=(1, 3, 3), images=(4, 20, 20, 20, 20, 20, 20))
    config = TrialConfig(pseudo_novel_fraction=0.0)
    assert [*make_folds(make_pools(data, config), config)] == [1, 2]


# --- Refit ------------------------------------------------------------------------------------


@given(datas, configs)
@any_pools
def test_refit_trains_on_every_known_image_and_holds_nothing_out(
    data: Data, config: TrialConfig
) -> None:
    pools = make_refit_pools(data, config)
    rows = pools.train.tolist()
    assert len(set(rows)) == len(rows)
    assert set(range(data.num_known)) <= set(rows)
    assert len(pools.val) == len(pools.val_kind) == len(pools.val_in_part_a) == 0
    assert pools.subclasses == tuple(range(len(data.subclasses)))
    assert torch.equal(pools.sub_target, data.subclass)
    num_borrowed = len(data.images) - data.num_known
    assert pools.novel_images_used == min(config.novel_images, num_borrowed)
    assert len(rows) == data.num_known + pools.novel_images_used


def test_refit_draws_borrowed_images_of_every_class() -> None:
    data = make_data(borrowed=(5, 5, 5, 5))
    pools = make_refit_pools(data, TrialConfig(novel_images=20))
    assert set(data.borrowed_class[borrowed_training_rows(data, pools)].tolist()) == {0, 1, 2, 3}


def test_true_class_tells_subclasses_and_borrowed_classes_apart() -> None:
    data = make_data(subclasses=(2, 1), images=2, borrowed=(1, 2))
    assert true_classes(data).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 4]
    unnamed = make_data(subclasses=(2, 1), images=1, borrowed=2)
    assert true_classes(unnamed).tolist() == [0, 1, 2, -1, -1]
