"""Makes the Spark session that reads and writes Delta tables on S3, with jars from a folder.

The jars come from `pom.xml` beside this file; a session without them computes, but knows neither Delta nor S3.

A table on S3 that Spark writes must have no other writer meanwhile, not even `deltalake`: Delta's log store for S3
looks whether a version is there and then puts it, and S3A makes that put conditional only for those who ask for it
(delta #3596, open). Reading is free, and `deltalake` sees each commit and its transaction id.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyspark
from pydantic import SecretStr
from pyspark import SparkContext
from pyspark.sql import SparkSession

from c360_pipeline.errors import ConfigError


@dataclass(frozen=True)
class S3Login:
    """Where the bucket is and who may use it; an `endpoint_url` of None means AWS."""

    access_key_id: str
    secret_access_key: SecretStr
    region: str = "us-east-1"
    endpoint_url: str | None = None


@dataclass(frozen=True)
class SparkOptions:
    """How to start Spark.

    Attributes:
        jars: the folder that Maven filled, None for a session without Delta and S3.
        s3: login of the buckets; None leaves it to the cluster, or to `log_in`.
        master: `local[n]`, or a cluster's address; None takes the one of spark-submit.
        checkpoint_folder: where `connected_components` keeps its rounds, a file system that all workers reach. None
            keeps them on the workers' disks: faster, but the loss of one worker ends the job.
        driver_memory_gib: heap of the JVM that runs everything where the master is local.
        settings: more `spark.*` settings, which win over those made here. They show on the command line of the JVM:
            no secrets.
    """

    jars: Path | None = None
    s3: S3Login | None = None
    master: str | None = "local[2]"
    checkpoint_folder: str | None = None
    driver_memory_gib: int = 4
    settings: Mapping[str, str] = field(default_factory=dict)


def spark_session(options: SparkOptions) -> SparkSession:
    """Start Spark; `end_session` ends it.

    Raises:
        ConfigError: Spark runs already in this process (jars and memory are given to its JVM at the start), or the
            jars are not those of this pyspark.
    """
    if SparkContext._gateway:
        raise ConfigError("Spark is already running in this process: end it with `end_session` first.")
    builder: SparkSession.Builder = SparkSession.builder.appName("c360")
    if options.master:
        builder = builder.master(options.master)
    settings = _settings() | _local_settings(options) | _delta_settings(options.jars)
    spark = builder.config(map={**settings, **options.settings}).getOrCreate()
    if _is_local(options):
        # Workers run the interpreter that runs this, not the first python3 of PATH.
        spark.sparkContext.pythonExec = sys.executable
    if options.s3:
        log_in(spark, options.s3)
    if options.checkpoint_folder:
        spark.sparkContext.setCheckpointDir(options.checkpoint_folder)
    return spark


def log_in(spark: SparkSession, login: S3Login) -> None:
    """Let the session use the buckets of a login, before it first opens one of them.

    After the start, because what is set before stands on the command line of the JVM for every user to see.
    """
    settings = {
        "aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
        "access.key": login.access_key_id,
        "secret.key": login.secret_access_key.get_secret_value(),
        "endpoint.region": login.region,
    }
    if login.endpoint_url:
        settings |= {
            "endpoint": login.endpoint_url,
            "connection.ssl.enabled": str(login.endpoint_url.startswith("https:")).lower(),
            # The bucket is part of the path, for an address like 127.0.0.1 has no subdomains.
            "path.style.access": "true",
        }
    context: Any = spark.sparkContext
    for name, value in settings.items():
        context._jsc.hadoopConfiguration().set(f"fs.s3a.{name}", value)


def end_session(spark: SparkSession) -> None:
    """Stop Spark and its JVM, which `SparkSession.stop` leaves running with the memory and the jars that it has."""
    context: Any = SparkContext
    gateway = context._gateway
    spark.stop()
    gateway.shutdown()
    if process := getattr(gateway, "proc", None):
        # The JVM of a Python process ends when its input does.
        process.stdin.close()
        process.wait(timeout=60)
    context._gateway = context._jvm = None


def _settings() -> dict[str, str]:
    return {
        # Thirteen times the default; 128 Ki edges of two identities are some 5 MB.
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(1 << 17),
        "spark.sql.session.timeZone": "UTC",
        "spark.cleaner.referenceTracking.cleanCheckpoints": "true",
    }


def _is_local(options: SparkOptions) -> bool:
    return (options.master or "").startswith("local")


def _local_settings(options: SparkOptions) -> dict[str, str]:
    if not _is_local(options):
        return {}
    return {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": f"{options.driver_memory_gib}g",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "16",
    }


def _delta_settings(jars: Path | None) -> dict[str, str]:
    if jars is None:
        return {}
    series = ".".join(pyspark.__version__.split(".")[:2])
    if not list(jars.glob(f"delta-spark_{series}_*.jar")):
        raise ConfigError(f"{jars} holds no delta-spark jar for pyspark {pyspark.__version__}: fill it from pom.xml.")
    return {
        "spark.jars": ",".join(str(jar) for jar in sorted(jars.glob("*.jar"))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # One address for Spark and for deltalake, which know S3 as s3a and as s3.
        "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
    }
