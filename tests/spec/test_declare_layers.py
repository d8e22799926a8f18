"""What each kind of layer contributes: rows by shape and name alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import Group, Site, Spec


def tree(**layers: Any) -> dict[str, Any]:
    """A params tree of these shapes: `tree(a=(3, 4))` is a kernel, a dict names the leaves."""
    full = {
        name: shapes if isinstance(shapes, dict) else {"kernel": shapes}
        for name, shapes in layers.items()
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), full, is_leaf=is_shape)


def group(params: Any, *chain: Any) -> Group:
    """The only group of a chain."""
    (found,) = Spec.from_pairs([chain], params).groups
    return found


def rows(found: Group) -> dict[str, tuple[tuple[int, ...], int]]:
    return {site.path: (site.axes, int(site.power)) for site in found.sites}


def ids(found: Group, path: str) -> Any:
    (site,) = (site for site in found.sites if site.path == path and site.power < 0)
    return None if site.index is None else np.asarray(site.index).tolist()


@pytest.mark.parametrize("window", [(), (3,), (3, 3), (2, 3, 3)])
def test_dense_and_convolutions_of_any_rank(window: tuple[int, ...]) -> None:
    params = tree(a={"kernel": (*window, 5, 6), "bias": (6,)}, b=(*window, 6, 7))
    found = group(params, "a", "b")
    assert rows(found) == {
        "a/kernel": ((-1,), 1),
        "a/bias": ((-1,), 1),
        "b/kernel": ((-2,), -1),
    }
    assert found.name == "a -> b"
    assert found.shape == (6,)
    assert all(site.index is None for site in found.sites)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depthwise_reads_each_channel_as_often_as_it_multiplies_it(multiplier: int) -> None:
    params = tree(a=(3, 3, 2, 4), dw=(3, 3, 1, 4 * multiplier), b=(1, 1, 4 * multiplier, 5))
    first, second = Spec.from_pairs([("a", "dw", "b")], params).groups
    assert rows(first)["dw/kernel"] == ((-1,), -1)
    expected = None if multiplier == 1 else np.repeat(np.arange(4), multiplier).tolist()
    assert ids(first, "dw/kernel") == expected
    assert rows(second) == {"dw/kernel": ((-1,), 1), "b/kernel": ((-2,), -1)}
    assert second.shape == (4 * multiplier,)


def test_grouped_reads_its_own_group() -> None:
    found = group(tree(a=(3, 3, 2, 4), b=(3, 3, 2, 6)), "a", "b")
    assert rows(found)["b/kernel"] == ((-2, -1), -1)
    assert ids(found, "b/kernel") == [[0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3]]


def test_flatten_repeats_the_channels_by_layout() -> None:
    last = group(tree(a=(3, 3, 2, 4), b=(12, 5)), "a", "b")
    assert ids(last, "b/kernel") == [0, 1, 2, 3] * 3
    torch = tree(a={"weight": (4, 2, 3, 3)}, b={"weight": (5, 12)})
    first = group(torch, "a", "b")
    assert rows(first) == {"a/weight": ((0,), 1), "b/weight": ((1,), -1)}
    assert ids(first, "b/weight") == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_transposed_is_told_by_the_bias() -> None:
    params = tree(a=(1, 1, 2, 5), up={"kernel": (2, 2, 6, 5), "bias": (6,)}, b=(1, 1, 6, 3))
    first, second = Spec.from_pairs([("a", "up", "b")], params).groups
    assert rows(first)["up/kernel"] == ((-1,), -1)
    assert rows(second)["up/kernel"] == ((-2,), 1)


def test_transposed_is_told_by_its_neighbours() -> None:
    params = tree(a=(1, 1, 2, 5), up=(2, 2, 6, 5), b=(1, 1, 6, 3))
    first, second = Spec.from_pairs([("a", "up", "b")], params).groups
    assert rows(first)["up/kernel"] == ((-1,), -1)
    assert rows(second)["up/kernel"] == ((-2,), 1)
    (second,) = Spec.from_pairs([("up", "b")], params).groups
    assert rows(second)["up/kernel"] == ((-2,), 1)


def test_a_layout_once_found_holds_in_all_chains() -> None:
    params = tree(a=(1, 1, 2, 5), up=(2, 2, 4, 5), b=(1, 1, 4, 3), c=(1, 1, 5, 3))
    Spec.from_pairs([("a", "up"), ("up", "b")], params)
    with pytest.raises(ValueError, match="'c' can't read the channels of 'up'"):
        Spec.from_pairs([("a", "up"), ("up", "c")], params)


def test_suffix_tells_the_axes() -> None:
    params = tree(a=(1, 1, 2, 6), up=(2, 2, 6, 6), b=(1, 1, 6, 3))
    first, second = Spec.from_pairs([("a", "up[out=-2, in=-1]", "b")], params).groups
    assert rows(first)["up/kernel"] == ((-1,), -1)
    assert rows(second)["up/kernel"] == ((-2,), 1)
    assert second.name == "up -> b"


def test_suffix_tells_stacked_layers() -> None:
    params = tree(a={"kernel": (4, 5, 6), "bias": (4, 6)}, b=(4, 6, 5))
    found = group(params, "a[out=0+2]", "b[in=0+1]")
    assert found.shape == (4, 6)
    assert rows(found) == {
        "a/kernel": ((0, 2), 1),
        "a/bias": ((-2, -1), 1),
        "b/kernel": ((0, 1), -1),
    }


def test_suffix_tells_a_grouped_convolution() -> None:
    found = group(tree(a=(3, 2, 4), b=(4, 2, 4)), "a", "b[in=-2+-1]")
    assert ids(found, "b/kernel") == [[0, 0, 2, 2], [1, 1, 3, 3]]
    found = group(tree(a=(3, 2, 4), b=(4, 2, 4)), "a", "b[in=0]")
    assert rows(found)["b/kernel"] == ((0,), -1)


def test_several_feature_axes_are_told_by_the_bias() -> None:
    params = tree(value={"kernel": (8, 2, 3), "bias": (2, 3)}, out=(2, 3, 8))
    found = group(params, "value", "out")
    assert found.shape == (2, 3)
    assert rows(found) == {
        "value/kernel": ((-2, -1), 1),
        "value/bias": ((-2, -1), 1),
        "out/kernel": ((0, 1), -1),
    }


@pytest.mark.parametrize("parts", [("query", "key", "value", "out"), ("q", "k", "v", "o")])
def test_several_feature_axes_are_told_by_attention_names(parts: tuple[str, ...]) -> None:
    *_, value, out = parts
    params = {"attention": tree(**dict.fromkeys(parts[:3], (8, 2, 3)), **{out: (2, 3, 8)})}
    found = group(params, f"attention/{value}", f"attention/{out}")
    assert found.shape == (2, 3)
    assert rows(found)[f"attention/{out}/kernel"] == ((0, 1), -1)
    norm = {**params, "norm": {"scale": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    read = group(norm, "norm", tuple(f"attention/{part}" for part in parts[:3]))
    assert {rows(read)[f"attention/{part}/kernel"] for part in parts[:3]} == {((0,), -1)}


def test_without_names_or_biases_features_share_the_scale_of_a_convolution() -> None:
    found = group(tree(a=(8, 2, 3), b=(2, 3, 8)), "a", "b")
    assert rows(found) == {"a/kernel": ((-1,), 1), "b/kernel": ((-2,), -1)}


def test_features_flow_into_a_reshaped_dense_and_back() -> None:
    params = tree(a={"kernel": (8, 2, 3), "bias": (2, 3)}, b=(6, 4), c=(3, 2, 4, 4))
    found = group(params, "a", "b")
    assert found.shape == (2, 3)
    assert ids(found, "b/kernel") == [0, 1, 2, 3, 4, 5]
    back = group(tree(a=(5, 6), b=(2, 3, 4)), "a", "b[in=0+1]")
    assert ids(back, "b/kernel") == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["embedding", "embeddings"])
def test_embedding_makes_and_reads_its_features(name: str) -> None:
    params = tree(embed={name: (11, 6)}, a=(6, 4), b=(4, 6))
    assert rows(group(params, "embed", "a"))[f"embed/{name}"] == ((-1,), 1)
    assert rows(group(params, "b", "embed"))[f"embed/{name}"] == ((-1,), -1)


def test_embedding_that_is_called_weight() -> None:
    params = tree(embed={"weight": (11, 6)}, a={"weight": (4, 6)})
    assert rows(group(params, "embed", "a")) == {"embed/weight": ((1,), 1), "a/weight": ((1,), -1)}


def test_live_batch_norm_between_is_a_member() -> None:
    params = {
        "params": tree(a=(3, 3, 2, 4), n={"scale": (4,), "bias": (4,)}, b=(1, 1, 4, 5)),
        "batch_stats": tree(n={"mean": (4,), "var": (4,)}),
    }
    assert rows(group(params, "a", "n", "b")) == {
        "params/a/kernel": ((-1,), 1),
        "batch_stats/n/mean": ((-1,), 1),
        "params/n/bias": ((-1,), 1),
        "params/b/kernel": ((-2,), -1),
    }
    assert group(params, "params/a", "params/n", "b") == group(params, "a", "n", "b")


@pytest.mark.parametrize("kind", ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm"])
def test_norm_at_the_start_is_a_producer(kind: str) -> None:
    leaves = {"scale": (4,)} | ({} if kind == "RMSNorm" else {"bias": (4,)})
    leaves |= {"mean": (4,), "var": (4,)} if kind == "BatchNorm" else {}
    found = rows(group(tree(**{kind: leaves}, b=(4, 5)), kind, "b"))
    moved = {f"{kind}/{leaf}" for leaf in leaves if leaf in ("scale", "bias")}
    assert found == {**dict.fromkeys(moved, ((-1,), 1)), "b/kernel": ((-2,), -1)}


def test_activation_between_has_no_row() -> None:
    params = tree(a=(3, 4), act={"negative_slope": (4,)}, b=(4, 5))
    assert group(params, "a", "act", "b") == group(params, "a", "b")


def test_clip_bounds_of_producers_and_norms_are_rows() -> None:
    params = {
        "params": tree(a={"kernel": (3, 4), "bias": (4,)}, n={"bias": (4,)}, b=(4, 5)),
        "batch_stats": tree(n={"mean": (4,), "var": (4,)}),
        "clips": tree(a={"max": (4,), "min": (4,)}, n={"max": (4,)}, b={"max": (5,)}),
    }
    found = rows(group(params, "a", "n", "b"))
    for path in ("clips/a/max", "clips/a/min", "clips/n/max", "params/n/bias"):
        assert found[path] == ((-1,), 1)
    assert "clips/b/max" not in found


def test_clip_bounds_beside_a_plain_tree_and_by_their_own_name() -> None:
    params = tree(a=(3, 4), b=(4, 5)) | {"clips": tree(a={"max": (4,)}, block={"max": (4,)})}
    assert rows(group(params, "a", "b"))["clips/a/max"] == ((-1,), 1)
    assert rows(group(params, "a", "clips/block", "b"))["clips/block/max"] == ((-1,), 1)


def test_concat_slices_have_positions() -> None:
    params = tree(a=(3, 3, 2, 4), b=(3, 3, 2, 5), c=(3, 3, 9, 6))
    spec = Spec.from_pairs([("a", "c[at=0]"), ("b", "c[at=4]")], params)
    assert ids(spec.groups[0], "c/kernel") == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    assert ids(spec.groups[1], "c/kernel") == [-1, -1, -1, -1, 0, 1, 2, 3, 4]


def test_concat_into_depthwise_batch_norm_and_twice() -> None:
    params = tree(
        a=(3, 3, 2, 2),
        norm={"mean": (6,), "var": (6,), "bias": (6,)},
        dw=(3, 3, 1, 6),
        c=(1, 1, 6, 3),
    )
    found = group(params, "a", "norm[at=3]", "dw[at=3]")
    assert rows(found)["dw/kernel"] == ((-1,), -1)
    assert ids(found, "dw/kernel") == [-1, -1, -1, 0, 1, -1]
    (mean,) = (site for site in found.sites if site.path == "norm/mean")
    assert np.asarray(mean.index).tolist() == [-1, -1, -1, 0, 1, -1]
    assert ids(group(params, "a", "c[at=0+4]"), "c/kernel") == [0, 1, -1, -1, 0, 1]


def test_flattened_batch_norm_repeats_the_channels() -> None:
    params = tree(a=(3, 3, 2, 2), norm={"mean": (6,), "var": (6,)}, b=(6, 3))
    (mean,) = (site for site in group(params, "a", "norm", "b").sites if site.path == "norm/mean")
    assert np.asarray(mean.index).tolist() == [0, 1, 0, 1, 0, 1]


def test_several_producers_and_consumers_share_one_scale() -> None:
    params = tree(a=(2, 4), b=(3, 4), c=(4, 5), d=(4, 6))
    found = group(params, ("a", "b"), ["c", "d"])
    assert found.name == "a + b -> c + d"
    assert rows(found) == {
        "a/kernel": ((-1,), 1),
        "b/kernel": ((-1,), 1),
        "c/kernel": ((-2,), -1),
        "d/kernel": ((-2,), -1),
    }


def test_a_layer_in_a_loop_is_producer_and_consumer() -> None:
    found = group(tree(stem=(2, 4), cell=(4, 4), head=(4, 3)), ("stem", "cell"), ("cell", "head"))
    assert [(site.path, site.power) for site in found.sites if site.path == "cell/kernel"] == [
        ("cell/kernel", 1),
        ("cell/kernel", -1),
    ]


def test_plain_trees_are_read_by_rank() -> None:
    layers = [(np.ones((3, 4), "f"), np.ones(4, "f")), (np.ones((4, 2), "f"), np.ones(2, "f"))]
    assert rows(group(layers, "0", "1")) == {
        "0/0": ((-1,), 1),
        "0/1": ((-1,), 1),
        "1/0": ((-2,), -1),
    }
    flat = {"w1": layers[0][0], "b1": layers[0][1], "w2": layers[1][0]}
    assert rows(group(flat, ("w1", "b1"), "w2")) == {
        "w1": ((-1,), 1),
        "b1": ((-1,), 1),
        "w2": ((-2,), -1),
    }


def test_bias_leaves_inside_a_chain_belong_to_the_next_group() -> None:
    params = {"w1": np.ones((2, 3), "f"), "w2": np.ones((3, 4), "f"), "w3": np.ones((4, 5), "f")}
    params |= {"b1": np.ones(3, "f"), "b2": np.ones(4, "f")}
    spec = Spec.from_pairs([(("w1", "b1"), ("w2", "b2"), "w3")], params)
    assert [g.name for g in spec.groups] == ["w1 + b1 -> w2", "w2 + b2 -> w3"]
    assert "b1" in rows(spec.groups[0])
    assert "b2" in rows(spec.groups[1])


def test_a_kernel_leaf_stands_for_its_layer() -> None:
    params = tree(a={"kernel": (3, 4), "bias": (4,)}, b=(4, 5))
    assert group(params, "a/kernel", "b/kernel") == group(params, "a", "b")


def test_an_addition_between_is_a_row() -> None:
    params = tree(a=(3, 4), b=(4, 5)) | {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}
    assert rows(group(params, "a", "bias", "b"))["bias"] == ((-1,), 1)


def test_int_keys_resolve_as_text() -> None:
    params = {"layers": {0: tree(k=(3, 4))["k"], 1: tree(k=(4, 2))["k"]}}
    assert rows(group(params, "layers/0", "layers/1")) == {
        "layers/0/kernel": ((-1,), 1),
        "layers/1/kernel": ((-2,), -1),
    }


def test_equal_names_are_numbered() -> None:
    stacked = tree(a=(2, 3, 4), b=(2, 4, 5))
    pairs = [("a[out=-1]", "b[in=-2]"), ("a[out=0]", "b[in=0]")]
    assert [g.name for g in Spec.from_pairs(pairs, stacked).groups] == ["a -> b", "a -> b #2"]


def test_long_lists_are_counted() -> None:
    names = [f"stage_{i}/block/projection" for i in range(3)]
    params = tree(**dict.fromkeys(names, (3, 4)), head=(4, 2))
    assert group(params, tuple(names), "head").name == f"{names[0]} + 2 more -> head"


def test_rows_are_listed_producers_first() -> None:
    params = tree(a={"kernel": (3, 4), "bias": (4,)}, b=(4, 5))
    assert [site.power > 0 for site in group(params, "a", "b").sites] == [True, True, False]
    assert isinstance(group(params, "a", "b").sites[0], Site)
