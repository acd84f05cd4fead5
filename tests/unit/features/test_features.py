import polars as pl

from c360_pipeline.core.features.communities import canonical_communities, interaction_weights, number_members

TIES = pl.DataFrame({"tenant_id": ["t", "t"], "from_id": ["u2", "u1"], "to_id": ["p", "p"], "count": [2, 1]})


def test_a_purchase_weighs_five_views() -> None:
    weights = interaction_weights(TIES, TIES.head(1))
    assert weights.select("user_id", "weight").rows() == [("u1", 1.0), ("u2", 12.0)]


def test_members_are_numbered_by_id_not_by_order() -> None:
    members, edges = number_members(interaction_weights(TIES, TIES.head(0)))
    assert members["member"].to_list() == ["u1", "u2", "p"]
    assert edges.rows() == [(0, 2, 1.0), (1, 2, 2.0)]


def test_equal_partitions_have_equal_numbers() -> None:
    members = pl.DataFrame({"node_id": [0, 1, 2], "member": ["a", "b", "c"], "is_user": [True] * 3})
    one = canonical_communities("t", members, pl.DataFrame({"node_id": [0, 1, 2], "label": [9, 4, 9]}))
    other = canonical_communities("t", members, pl.DataFrame({"node_id": [2, 1, 0], "label": [1, 7, 1]}))
    assert one.equals(other)
    assert one.select("user_id", "community", "community_size").rows() == [("a", 0, 2), ("b", 1, 1), ("c", 0, 2)]
