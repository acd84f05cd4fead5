"""What is kept of recommendations, and what is not."""

from c360_pipeline.reads.recommend import RecommendationRequest
from c360_pipeline.serving.recommendation_cache import MAX_VARIANTS, RecommendationCache

WISH = RecommendationRequest("u1", 5)


def test_a_response_is_kept_for_its_user_and_wish() -> None:
    cache = RecommendationCache()
    cache.put("acme", WISH, b"it", cache.generation("acme", WISH))
    assert cache.get("acme", WISH) == b"it"
    assert cache.get("globex", WISH) is None
    assert cache.get("acme", RecommendationRequest("u1", 6)) is None


def test_a_response_that_was_begun_before_the_user_acted_is_not_kept() -> None:
    cache = RecommendationCache()
    begun = cache.generation("acme", WISH)
    cache.drop("acme", "u1", None, is_shown=True)
    cache.put("acme", WISH, b"old", begun)
    assert cache.get("acme", WISH) is None
    cache.put("acme", WISH, b"new", cache.generation("acme", WISH))
    assert cache.get("acme", WISH) == b"new"


def test_a_visitor_who_acts_is_forgotten_with_the_user_of_the_event() -> None:
    cache = RecommendationCache()
    visit = RecommendationRequest(None, 5, anonymous_id="v1")
    for wish in (WISH, visit, RecommendationRequest(None, 5, anonymous_id="v2")):
        cache.put("acme", wish, b"old", 0)
    cache.drop("acme", "u1", "v1", is_shown=True)
    assert (cache.get("acme", WISH), cache.get("acme", visit)) == (None, None)
    assert cache.get("acme", RecommendationRequest(None, 5, anonymous_id="v2")) == b"old"


def test_nothing_is_kept_while_the_graph_does_not_show_what_the_user_did() -> None:
    cache = RecommendationCache()
    cache.drop("acme", "u1", None, is_shown=False)
    cache.put("acme", WISH, b"old", cache.generation("acme", WISH))
    assert cache.get("acme", WISH) is None


def test_a_user_has_a_bounded_number_of_responses_and_wishes_that_exclude_are_not_kept() -> None:
    cache = RecommendationCache()
    for top_k in range(1, MAX_VARIANTS * 3):
        cache.put("acme", RecommendationRequest("u1", top_k), b"it", 0)
    kept = [top_k for top_k in range(1, MAX_VARIANTS * 3) if cache.get("acme", RecommendationRequest("u1", top_k))]
    assert 0 < len(kept) <= MAX_VARIANTS
    excluding = RecommendationRequest("u1", 5, None, ("p1",))
    cache.put("acme", excluding, b"it", 0)
    assert cache.get("acme", excluding) is None
