import pytest

from c360_pipeline.devstack.distributions import artifact


@pytest.mark.parametrize(
    ("jar", "name"),
    [
        ("org.a.jackson-core-2.18.6.jar", "org.a.jackson-core"),
        (
            "io.netty.netty-transport-native-epoll-4.1.1.Final-linux-x86_64.jar",
            "io.netty.netty-transport-native-epoll-linux-x86_64",
        ),
        ("com.google.guava.guava-33.2.0-jre.jar", "com.google.guava.guava"),
        ("org.neo4j.gds.annotations-2.13.9.jar", "org.neo4j.gds.annotations"),
        ("org.neo4j.annotations-5.26.30.jar", "org.neo4j.annotations"),
        ("strange.jar", "strange.jar"),
    ],
)
def test_group_and_artifact_of_a_jar(jar: str, name: str) -> None:
    assert artifact(jar) == name
