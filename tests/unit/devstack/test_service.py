"""Ports of embedded servers."""

from c360_pipeline.devstack.service import free_port


def test_servers_that_are_about_to_start_get_different_ports() -> None:
    """Some seven of 500 would be given twice, and one of the two servers would not start."""
    given = [free_port(0) for _ in range(500)]
    assert len(set(given)) == len(given)


def test_a_port_that_is_asked_for_is_given_again() -> None:
    """People's dashboards hold the port of the last time."""
    preferred = free_port(0)
    assert [free_port(preferred), free_port(preferred)] == [preferred, preferred]
